"""Conditions of smooth unconstrained problems and of roots: stationarity, Newton's map, nonlinear least squares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

from bilevel import _checks, _needs, _tree, linear
from bilevel._tree import PyTree
from bilevel.linear import Operator, Reduction, System
from bilevel.optimality._base import Condition
from bilevel.problem import At, Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stationary(Condition):
    """F = ∇₁inner_loss: the condition of gradient descent, for a smooth unconstrained problem.

    ∂₁F is the Hessian: symmetric, and positive definite at a strict minimum. Differentiable wherever the inner loss is twice
    differentiable and the Hessian is invertible.

    Args:
      structure: the structure assumed of the Hessian. `"positive_definite"` is checked by the solvers (Cholesky, CG's
        curvature): a saddle point is reported, not differentiated. Use `"symmetric"` to differentiate one.
      singular: the Hessian may be singular (translations of a molecule, redundant parameters); the derivative is then
        the one of least norm, and the cotangent must be orthogonal to the null space.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(lambda x, theta, y: jnp.sum((x - y) ** 2) + theta * jnp.sum(x**2))
      >>> stationary = bl.optimality.Stationary(structure="symmetric")
      >>> print(stationary.residual(bl.At(problem, 1.0, jnp.array([2.0, 4.0])), jnp.array([1.0, 3.0])))
      [0. 4.]
    """

    needs = (_needs.LOSS, _needs.SMOOTH)
    system_is_hessian = True

    structure: Literal["symmetric", "positive_definite"] = "positive_definite"
    singular: bool = False

    def residual(self, at: At, params: PyTree) -> PyTree:
        """The inner gradient."""
        return at.gradient(params)

    def system(self, at: At, params: PyTree) -> System:
        """The Hessian, which is its own transpose."""
        operator = self._linearized(at, params)
        return System(
            dataclasses.replace(operator, structure=self.structure, singular=self.singular, self_adjoint=True)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewtonStep(Condition):
    """F = [∂₁G]⁻¹ G, a Newton step in the units of x, for a root of G, or of G = ∇₁inner_loss.

    At a root ∂₁F is the identity: `linear` solves the linear system when F is evaluated or differentiated. Differentiable where
    ∂₁G is invertible.

    Args:
      function: G(params, hparams, data), with the structure of params; None is the inner gradient.
      structure: structure assumed of ∂₁G; None is `"general"` for a function and `"symmetric"` for the inner gradient.
      linear: solver of the systems with ∂₁G; where it misses its tolerance (`rtol` relative to ‖G‖, `atol`), F is NaN.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> root = bl.Problem(optimality=bl.optimality.NewtonStep(function=lambda x, theta, data: x**2 - theta))
      >>> print(bl.root_vjp(bl.optimality.bind(root), jnp.array([2.0]), (jnp.array([4.0]),), jnp.ones(1))[0].round(3))
      [0.25]
    """

    needs = (_needs.LOSS, _needs.SMOOTH)

    function: Callable[[Any, Any, Any], Any] | None = None
    structure: Literal["general", "symmetric", "positive_definite"] | None = None
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)

    def __post_init__(self) -> None:
        _checks.require_callable("optimality.NewtonStep", function=self.function)

    def check(self, problem: Problem) -> None:
        """Require a smooth inner loss, unless a function is given."""
        if self.function is None:
            super().check(problem)

    def residual(self, at: At, params: PyTree) -> PyTree:
        """The Newton step."""

        def function(x: PyTree) -> PyTree:
            value = at.gradient(x) if self.function is None else self.function(x, at.hparams, at.data)
            return _tree.cast_like(value, x)

        value, push = jax.linearize(function, params)
        structure = self.structure or ("symmetric" if self.function is None else "general")
        return linear.differentiable_solve(self.linear, Operator(push, structure), value, nan_on_failure=True).value

    def system(self, at: At, params: PyTree) -> System:
        """The identity."""
        del at, params
        return System(Operator(lambda v: v, "positive_definite", self_adjoint=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares(Condition):
    """F = Jᵀr for the inner loss ½‖r(params, hparams, data)‖² with J = ∂₁r: the condition of Gauss–Newton methods.

    ∂₁F = JᵀJ + Σ rᵢ∇²rᵢ is symmetric, and positive definite at a strict minimum. Needs `Problem.residuals`.

    Args:
      hessian: `"gauss_newton"` drops the second term from the linear system: always positive semidefinite, two products
        with J, exact where r is zero or linear in params, with an error of O(‖r‖) elsewhere. `"exact"` keeps it.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(residuals=lambda x, theta, data: x**2 - theta)
      >>> print(bl.optimality.LeastSquares().residual(bl.At(problem, 3.0), jnp.array([2.0])))
      [4.]
    """

    needs = (_needs.RESIDUALS, _needs.SMOOTH)

    hessian: Literal["exact", "gauss_newton"] = "exact"

    def residual(self, at: At, params: PyTree) -> PyTree:
        """Jᵀr."""
        value, pull = jax.vjp(at.residuals, params)
        return pull(value)[0]

    def system(self, at: At, params: PyTree) -> System:
        """The Hessian, or its Gauss–Newton part."""
        exact = self._linearized(at, params)
        operator = dataclasses.replace(exact, structure="positive_definite", self_adjoint=True)
        if self.hessian == "exact":
            return System(operator)
        _, push = jax.linearize(at.residuals, params)
        pull = jax.linear_transpose(push, params)
        return System(operator, Reduction(Operator(lambda v: pull(push(v))[0], "positive_definite"), approximate=True))
