"""BiCGStab, for general systems when the memory of GMRES is too much.

Our own, where lineax has one. Measured (lineax 0.1.1): with x64 off its breakdown test takes every negative coefficient
for a breakdown, so that a well-conditioned system ends after two steps at a residual of 0.39 ‖b‖; and its tolerance is
relative to each entry of b, so that a b with zeros never passes, and a singular system ends in NaN.
"""

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
    rho: jax.Array  # ⟨first residual, residual⟩
    norm: jax.Array
    reason: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiCGStab(_sweeps.Preconditioned):
    """Stabilized biconjugate gradients (van der Vorst 1992), for general A; a handful of vectors, two products a step.

    Residuals fall erratically. A breakdown starts afresh from the residual at hand as long as each start halves it.

    Args:
      max_steps: step limit; `None` is ten times the number of unknowns.
      preconditioner: one of `bilevel.linear`, or a function v ↦ M⁻¹ v, linear; it acts from the right.

    Statuses besides `CONVERGED`: `BREAKDOWN` (a coefficient vanished, or the residual ran away), `STAGNATED`, `MAX_STEPS`.
    """

    def sweep(self, matvec, precondition, r, goal, left):
        """One run of the recurrence."""
        eps = _tree.eps(r)
        shadow = r

        def unfinished(s: _State):
            return (s.norm > goal) & (s.steps < left) & (s.reason == Status.MAX_STEPS)

        def step(s: _State):
            p = precondition(s.direction)
            v = matvec(p)
            along = _tree.vdot(shadow, v)
            alpha = _ratio(s.rho, along)
            half = _tree.add_scaled(s.residual, -alpha, v)
            q = precondition(half)
            t = matvec(q)
            omega = _ratio(_tree.vdot(t, half), _tree.vdot(t, t))
            x = _tree.add_scaled(_tree.add_scaled(s.x, alpha, p), omega, q)
            residual = _tree.add_scaled(half, -omega, t)
            norm, rho = _tree.norm(residual), _tree.vdot(shadow, residual)
            beta = _ratio(rho, s.rho) * _ratio(alpha, omega)
            direction = _tree.add_scaled(residual, beta, _tree.add_scaled(s.direction, -omega, v))
            broken = (
                (jnp.abs(along) <= eps * _tree.norm(v)) | (jnp.abs(rho) <= eps * norm) | (omega == 0) | (norm > 1 / eps)
            )
            reason = jnp.where(broken, Status.BREAKDOWN, Status.MAX_STEPS)
            reason = jnp.where(jnp.isfinite(norm) & jnp.isfinite(rho), reason, Status.NON_FINITE).astype(jnp.int32)
            return _State(x, residual, direction, rho, norm, reason, s.steps + 1)

        one = jnp.ones((), _tree.dtype(r))
        start = _State(_tree.zeros_like(r), r, r, _tree.vdot(r, r), one, jnp.int32(Status.MAX_STEPS), jnp.int32(0))
        end = jax.lax.while_loop(unfinished, step, start)
        return _sweeps.Sweep(end.x, jnp.where(end.norm <= goal, Status.STAGNATED, end.reason), end.steps, 2 * end.steps)


def _ratio(a, b):
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))
