"""Differentiation through the inner solver's iterations."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel.hypergrad._base import Estimator, Hypergradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unrolled(Estimator):
    """Reverse mode through a fixed number of inner steps (a plain `lax.scan`), from a start that counts as a constant.

    The gradient is that of the steps, not of the solution: compare with `Implicit`. Memory grows linearly with `steps`.

    Args:
      steps: inner iterations; always all of them.
    """

    steps: int = 100

    def __post_init__(self):
        _checks.require_positive("hypergrad.Unrolled", steps=self.steps)

    def check(self, problem, inner):
        """Require a solver whose steps can be differentiated."""
        if not inner.differentiable:
            raise ValueError(
                f"hypergrad.Unrolled differentiates through the steps of a solver, and those of inner.{type(inner).__name__} are "
                "a black box: use hypergrad.Implicit"
            )

    def estimate(self, problem, inner, params, adjoint, hparams, data, prepared=None):
        """Run the steps and pull the outer loss back through them."""
        moving, fixed = _tree.split(hparams)
        inner = inner.unrollable()
        if prepared is None:
            prepared = inner.prepare(problem, hparams, data)
        extra = () if prepared is None else (prepared,)

        def run(moving):
            hparams = _tree.merge(moving, fixed)
            state = inner.init(problem, params, hparams, data, *extra)
            state, _ = jax.lax.scan(
                lambda state, _: (inner.step(problem, state, hparams, data, *extra), None), state, length=self.steps
            )
            return problem.outer_loss(state.params, hparams, data), (
                state.params,
                jax.lax.stop_gradient(state.progress),
            )

        (value, (params, progress)), grad = jax.value_and_grad(run, has_aux=True)(moving)
        return Hypergradient(
            grad=grad,
            outer_loss=value,
            outer_error=jnp.array(jnp.nan, value.dtype),
            params=params,
            adjoint=adjoint,
            inner=progress,
            adjoint_status=jnp.array(Status.CONVERGED, jnp.int32),
            adjoint_residual=jnp.array(jnp.nan, value.dtype),
            grad_evals=progress.grad_evals,
            hvps=progress.hvps + self.steps,
        )
