"""The implicit function theorem."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bilevel import _tree, linear, optimality
from bilevel.hypergrad._base import Estimator, Hypergradient
from bilevel.inner import InnerSolver


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implicit(Estimator):
    """∂₂outer − Bᵀu with Aᵀu = ∂₁outer, where A = ∂₁F, B = ∂₂F and F is the problem's optimality condition.

    One adjoint solve, whatever the number of hyperparameters; its start is the last adjoint. Memory does not grow with
    the inner solver's steps.

    Args:
      linear: solver of the adjoint system.
      precondition: precondition it by the inner solver's own estimate of the inverse Hessian: the pairs of `inner.LBFGS` (as
        SHINE does), the exact inverse of `inner.Ridge`. The system is then solved by `linear`, if it takes a preconditioner,
        or in place of `linear.Auto` by `linear.CG`.

    References: Blondel et al. 2022; Ramzi et al., SHINE, 2022.
    """

    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)
    precondition: bool = False

    def check(self, problem, inner):
        """Check the condition against the problem, and that there is something to precondition with."""
        condition = optimality.of(problem)
        if not self.precondition:
            return
        if type(inner).inverse is InnerSolver.inverse:
            raise ValueError(
                f"hypergrad.Implicit: precondition=True needs a solver that estimates the inverse Hessian, and "
                f"inner.{type(inner).__name__} does not: use inner.LBFGS or inner.Ridge, or precondition=False"
            )
        if not isinstance(condition, optimality.Stationary):
            raise ValueError(
                "hypergrad.Implicit: precondition=True needs the Hessian as its system, which is optimality.Stationary's, not "
                f"optimality.{type(condition).__name__}'s: use precondition=False"
            )
        self._solver(None)

    def estimate(self, problem, inner, params, adjoint, hparams, data, prepared=None):
        """Solve the inner problem, then its adjoint."""
        condition = optimality.of(problem)
        moving, fixed = _tree.split(hparams)
        solution = inner.solve(problem, params, hparams, data, prepared)
        params = solution.params

        def outer_loss(params, moving):
            return problem.outer_loss(params, _tree.merge(moving, fixed), data)

        def residual(moving):
            value = condition.residual(problem, params, _tree.merge(moving, fixed), data)
            return _tree.cast_like(value, params)

        value, (cotangent, direct) = jax.value_and_grad(outer_loss, argnums=(0, 1))(params, moving)
        system = condition.system(problem, params, hparams, data)
        solver = self._solver(solution.inverse) if self.precondition else self.linear
        found = system.solve_transposed(solver, cotangent, adjoint)
        residual_value, pull = jax.vjp(residual, moving)
        scale = _tree.norm(cotangent)
        return Hypergradient(
            grad=_tree.sub(direct, pull(found.value)[0]),
            outer_loss=value,
            outer_error=_tree.vdot(found.value, residual_value),
            params=params,
            adjoint=found.value,
            inner=solution.progress,
            adjoint_status=found.status,
            adjoint_residual=found.residual / jnp.where(scale > 0, scale, 1),
            grad_evals=solution.progress.grad_evals,
            hvps=solution.progress.hvps + found.matvecs + 1,
        )

    def _solver(self, inverse):
        """The linear solver with this preconditioner."""
        if isinstance(self.linear, linear.Auto):
            return linear.CG(rtol=self.linear.rtol, atol=self.linear.atol, preconditioner=inverse)
        if not isinstance(self.linear, linear.CG | linear.MINRES):
            raise ValueError(
                f"hypergrad.Implicit: precondition=True needs a linear solver that takes a preconditioner, and "
                f"linear.{type(self.linear).__name__} takes none: use linear.CG or linear.MINRES"
            )
        return dataclasses.replace(self.linear, preconditioner=inverse)
