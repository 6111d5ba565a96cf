"""The implicit function theorem."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bilevel import _tree, linear, optimality
from bilevel.hypergrad._base import Estimator, Hypergradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implicit(Estimator):
    """∂₂outer − Bᵀu with Aᵀu = ∂₁outer, where A = ∂₁F, B = ∂₂F and F is the problem's optimality condition.

    One adjoint solve, whatever the number of hyperparameters; its start is the last adjoint. Memory does not grow with
    the inner solver's steps.

    Args:
      linear: solver of the adjoint system.
    """

    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)

    def check(self, problem, inner):
        """Check the condition against the problem."""
        optimality.of(problem)

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
        found = system.solve_transposed(self.linear, cotangent, adjoint)
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
