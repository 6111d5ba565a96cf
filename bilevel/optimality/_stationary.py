"""Conditions of smooth unconstrained problems and of roots: stationarity, Newton's map, nonlinear least squares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

from bilevel import _checks, _tree, linear
from bilevel.linear import Operator, Reduction, System
from bilevel.optimality._base import Condition

_ALTERNATIVES = "optimality.ProximalGradient, optimality.ProjectedGradient or optimality.KKT"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stationary(Condition):
    """F = ∇₁inner_loss: the condition of gradient descent, x = x − η∇₁inner_loss, with η divided out.

    ∂₁F is the Hessian: symmetric, and positive definite at a strict minimum. Needs a smooth unconstrained problem.
    Differentiable wherever the inner loss is twice differentiable and the Hessian is invertible.

    Args:
      structure: what to take the Hessian for. `"positive_definite"` is checked by the solvers (Cholesky, CG's
        curvature): a saddle point is reported, not differentiated. Use `"symmetric"` to differentiate one.
      singular: the Hessian may be singular (translations of a molecule, redundant parameters); the derivative is then
        the least one, and the cotangent must not point along the null space.
    """

    structure: Literal["symmetric", "positive_definite"] = "positive_definite"
    singular: bool = False

    def check(self, problem):
        """Refuse constraints and non-smooth terms."""
        _checks.require_smooth("optimality.Stationary", problem, _ALTERNATIVES)

    def residual(self, problem, params, hparams, data):
        """The inner gradient."""
        return jax.grad(problem.inner_loss)(params, hparams, data)

    def system(self, problem, params, hparams, data):
        """The Hessian, which is its own transpose."""
        operator = self._linearized(problem, params, hparams, data)
        return System(
            dataclasses.replace(operator, structure=self.structure, singular=self.singular, self_adjoint=True)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Newton(Condition):
    """F = [∂₁G]⁻¹ G: a Newton step, for a root of G, or of G = ∇₁inner_loss.

    At a root ∂₁F is the identity, so that the linear system is solved where F is evaluated and differentiated, by
    `linear`. In units of x. Differentiable where ∂₁G is invertible.

    Args:
      function: G(params, hparams, data), with the structure of params; None is the inner gradient.
      structure: of ∂₁G; None is `"general"` for a function and `"symmetric"` for the inner gradient.
      linear: solver of the systems with ∂₁G; where it misses its tolerance, F is NaN.
    """

    function: Callable[[Any, Any, Any], Any] | None = None
    structure: Literal["general", "symmetric", "positive_definite"] | None = None
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)

    def __post_init__(self):
        _checks.require_callable("optimality.Newton", function=self.function)

    def check(self, problem):
        """Require a smooth inner loss, unless a function is given."""
        if self.function is None:
            _checks.require_smooth("optimality.Newton", problem, _ALTERNATIVES)

    def residual(self, problem, params, hparams, data):
        """The Newton step."""
        function = self.function or jax.grad(problem.inner_loss)
        value, push = jax.linearize(lambda x: _tree.cast_like(function(x, hparams, data), x), params)
        structure = self.structure or ("symmetric" if self.function is None else "general")
        return linear.differentiable_solve(self.linear, Operator(push, structure), value, nan_on_failure=True).value

    def system(self, problem, params, hparams, data):
        """The identity."""
        return System(Operator(lambda v: v, "positive_definite", self_adjoint=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares(Condition):
    """F = Jᵀr for the inner loss ½‖r(params, hparams, data)‖², J = ∂₁r.

    ∂₁F = JᵀJ + Σ rᵢ∇²rᵢ is symmetric, and positive definite at a strict minimum. Needs `Problem.residuals`.

    Args:
      hessian: `"gauss_newton"` drops the second term from the linear system: always positive semidefinite, two products
        with J, exact where r is zero or linear in params and off by O(‖r‖) elsewhere. `"exact"` keeps it.
    """

    hessian: Literal["exact", "gauss_newton"] = "exact"

    def check(self, problem):
        """Require the residuals and a smooth problem."""
        _checks.require_parts("optimality.LeastSquares", problem, "residuals")
        _checks.require_smooth("optimality.LeastSquares", problem, _ALTERNATIVES)

    def residual(self, problem, params, hparams, data):
        """Jᵀr."""
        value, pull = jax.vjp(lambda x: problem.residuals(x, hparams, data), params)
        return pull(value)[0]

    def system(self, problem, params, hparams, data):
        """The Hessian, or its Gauss–Newton part."""
        exact = self._linearized(problem, params, hparams, data)
        operator = dataclasses.replace(exact, structure="positive_definite", self_adjoint=True)
        if self.hessian == "exact":
            return System(operator)
        _, push = jax.linearize(lambda x: problem.residuals(x, hparams, data), params)
        pull = jax.linear_transpose(push, params)
        return System(operator, Reduction(Operator(lambda v: pull(push(v))[0], "positive_definite"), approximate=True))
