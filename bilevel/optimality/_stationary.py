"""Stationarity of a smooth inner loss."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax

from bilevel import _checks
from bilevel.linear import Operator
from bilevel.optimality._base import AdjointSystem, Condition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stationary(Condition):
    """F = ∇₁inner_loss. Its Jacobian is the Hessian: symmetric, and positive definite at a strict minimum.

    Needs a smooth unconstrained problem. Differentiable wherever the inner loss is twice differentiable and the Hessian
    is invertible.

    Args:
      structure: what to take the Hessian for. `"positive_definite"` is checked by the solvers (Cholesky, CG's
        curvature): a saddle point is reported, not differentiated. Use `"symmetric"` to differentiate one.
    """

    structure: Literal["symmetric", "positive_definite"] = "positive_definite"

    def check(self, problem):
        """Refuse a prox or a projection."""
        _checks.require_smooth(
            "optimality.Stationary", problem, "optimality.ProximalGradient or optimality.ProjectedGradient"
        )

    def residual(self, problem, params, hparams, data):
        """The inner gradient."""
        return jax.grad(problem.inner_loss)(params, hparams, data)

    def adjoint_system(self, problem, params, hparams, data):
        """The Hessian, which is its own transpose."""
        _, hvp = jax.linearize(lambda x: self.residual(problem, x, hparams, data), params)
        return AdjointSystem(Operator(hvp, self.structure))
