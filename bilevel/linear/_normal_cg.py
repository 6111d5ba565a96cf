"""Conjugate gradients on the normal equations, in the form that never applies AᵀA to a residual (CGLS)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _sweeps


class _State(NamedTuple):
    x: PyTree
    residual: PyTree
    direction: PyTree
    gamma: jax.Array  # ‖Aᵀ r‖²
    norm: jax.Array
    size: jax.Array  # ‖A‖₂, from below
    reason: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalCG(_sweeps.LeastSquares):
    """CG on AᵀA x = Aᵀ b (Hestenes & Stiefel 1952), for general A. It squares the condition number: never a default.

    For comparison with libraries that take it by default, and for A near an orthogonal matrix, where nothing is faster. A
    step is a product with A and one with Aᵀ; `LSMR` is the same space, more stably. From a zero start, the answer of
    least norm.

    Args:
      max_steps: step limit; `None` is ten times the number of unknowns.

    Statuses besides `CONVERGED`: `STAGNATED` (an inconsistent system: the answer is a least-squares one; or the limit of
    the precision), `MAX_STEPS`. `matvecs` counts the products with Aᵀ too.
    """

    def sweep(self, forward, backward, r, goal, left):
        """One run of the recurrence."""
        eps = _tree.eps(r)

        def unfinished(s: _State):
            return (s.norm > goal) & (s.steps < left) & (s.reason == Status.MAX_STEPS)

        def step(s: _State):
            product = forward(s.direction)
            square = _tree.vdot(product, product)
            alpha = s.gamma / jnp.where(square > 0, square, 1)
            x = _tree.add_scaled(s.x, alpha, s.direction)
            residual = _tree.add_scaled(s.residual, -alpha, product)
            gradient = backward(residual)
            gamma, norm = _tree.vdot(gradient, gradient), _tree.norm(residual)
            direction = _tree.add_scaled(gradient, gamma / s.gamma, s.direction)
            size = jnp.maximum(s.size, jnp.sqrt(square) / _tree.norm(s.direction))
            least_squares = (jnp.sqrt(gamma) <= 10 * eps * size * norm) | (square == 0)
            reason = jnp.where(least_squares, Status.STAGNATED, Status.MAX_STEPS)
            reason = jnp.where(jnp.isfinite(gamma) & jnp.isfinite(square), reason, Status.NON_FINITE).astype(jnp.int32)
            return _State(x, residual, direction, gamma, norm, size, reason, s.steps + 1)

        gradient = backward(r)
        gamma = _tree.vdot(gradient, gradient)
        one = jnp.ones((), _tree.dtype(r))
        reason = jnp.where(gamma > 0, Status.MAX_STEPS, Status.STAGNATED).astype(jnp.int32)
        start = _State(_tree.zeros_like(r), r, gradient, gamma, one, jnp.sqrt(gamma), reason, jnp.int32(0))
        end = jax.lax.while_loop(unfinished, step, start)
        return _sweeps.Sweep(
            end.x, jnp.where(end.norm <= goal, Status.STAGNATED, end.reason), end.steps, 2 * end.steps + 1
        )
