"""The implicit function theorem."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import jax

from bilevel import _tree, linear, optimality
from bilevel._tree import PyTree
from bilevel.hypergrad._base import Estimator, Hypergradient, Solve
from bilevel.hypergrad._linearized import Linearized
from bilevel.hypergrad._verdict import judge
from bilevel.inner import InnerSolver
from bilevel.problem import At, Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implicit(Estimator):
    """∂₂outer − Bᵀu with Aᵀu = ∂₁outer, where A = ∂₁F, B = ∂₂F and F is the problem's optimality condition.

    One adjoint solve for any number of hyperparameters, started at the last adjoint. Memory does not grow with the inner
    solver's steps.

    Args:
      linear: solver of the adjoint system; its `rtol` and `atol` bound ‖Aᵀu − ∂₁outer‖, and its `max_steps` the iterations.
      precondition: precondition it by the inner solver's own estimate of the inverse Hessian: the pairs of `inner.LBFGS` (as
        SHINE does), the exact inverse of `inner.Ridge`. The system is then solved by `linear`, if it takes a preconditioner,
        or in place of `linear.Auto` by `linear.CG`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(lambda x, h, d: jnp.sum((x - d) ** 2) + h * jnp.sum(x**2), lambda x, h, d: jnp.sum(x))
      >>> estimator = bl.hypergrad.Implicit(linear=bl.linear.CG(rtol=1e-4))       # x* = d/(1 + h)
      >>> print(estimator.run(problem, bl.inner.LBFGS(), jnp.zeros(2), 1.0, jnp.array([1.0, 3.0])).grad.round())
      -1.0

    References: Blondel et al. 2022; Ramzi et al., SHINE, 2022.
    """

    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)
    precondition: bool = False

    def check(self, problem: Problem, inner: InnerSolver) -> None:
        """Check the condition against the problem, and that the inner solver can precondition its system."""
        condition = optimality.of(problem)
        if not self.precondition:
            return
        if not inner.estimates_inverse:
            raise ValueError(
                f"hypergrad.Implicit: precondition=True needs a solver that estimates the inverse Hessian, and "
                f"inner.{type(inner).__name__} does not: use inner.LBFGS or inner.Ridge, or precondition=False"
            )
        if not condition.system_is_hessian:
            raise ValueError(
                "hypergrad.Implicit: precondition=True needs the Hessian as its system, as optimality.Stationary has it, not "
                f"optimality.{type(condition).__name__}: use precondition=False"
            )
        self.linear.preconditioned(None)

    def adjoint_solver(self) -> linear.LinearSolver:
        """`linear`."""
        return self.linear

    def with_adjoint_solver(self, solver: linear.LinearSolver) -> Estimator:
        """With this as `linear`."""
        return dataclasses.replace(self, linear=solver)

    def init(self, at: At, params: PyTree) -> PyTree:
        """A zero adjoint."""
        del at
        return _tree.zeros_like(params)

    def estimate(self, at: At, inner: InnerSolver, params: PyTree, carry: PyTree, key: jax.Array) -> Hypergradient:
        """Solve the inner problem, then its adjoint from the last one."""
        del key
        solution = inner.solve_at(at, params)
        progress = solution.progress
        point = Linearized.of(at, optimality.of(at.problem), solution.params)
        solver = self.linear.preconditioned(solution.inverse) if self.precondition else self.linear
        found = point.system.solve_transposed(solver, point.cotangent, carry)
        grad = point.gradient(found.value)
        solves = OrderedDict(
            inner=Solve(progress.status, progress.residual),
            adjoint=Solve(found.status, found.residual / _tree.positive(_tree.norm(point.cotangent))),
        )
        failed = solves["inner"].failed | solves["adjoint"].failed
        return Hypergradient(
            grad=grad,
            outer_loss=point.outer_loss,
            outer_error=_tree.vdot(found.value, point.residual),
            params=point.params,
            carry=found.value,
            solves=solves,
            counts={"grad_evals": progress.grad_evals, "hvps": progress.hvps + found.matvecs + 1},
            approximate=point.system.approximate,
            verdict=judge(
                self.verdict, point, grad, found.value, solves["adjoint"].residual, failed | self._biased(point.system)
            ),
        )

    def _biased(self, system: linear.System) -> bool | jax.Array:
        """Whether the adjoint is not the solution of Aᵀu = w by design."""
        return system.approximate | (self.linear.effective_operator(system.operator) is not system.operator)
