"""Restarted GMRES, lineax's."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel.linear._base import Attempt, LinearSolver


@dataclasses.dataclass(frozen=True, kw_only=True)
class GMRES(LinearSolver):
    """Restarted GMRES (Saad & Schultz 1986) for general A, by `lineax.GMRES`.

    Args:
      max_steps: limit on restart cycles; `None` is ten times the number of unknowns.
      restart: dimension of the Krylov space of one cycle; memory is `restart` vectors.
    """

    max_steps: int | None = None
    restart: int = 40

    def attempt(self, operator, b, init, tolerance):
        """Solve in units of the tolerance, so that lineax's own test, an absolute one, is ours."""
        import lineax as lx

        unit = jnp.maximum(0.9 * tolerance, jnp.finfo(_tree.dtype(b)).tiny)
        limit = 10 * _tree.size(b) if self.max_steps is None else self.max_steps
        restart = min(self.restart, max(_tree.size(b), 1))
        solution = lx.linear_solve(
            lx.FunctionLinearOperator(operator.matvec, jax.eval_shape(lambda: b)),
            _tree.scale(1 / unit, b),
            lx.GMRES(rtol=0.0, atol=1.0, norm=_tree.norm, max_steps=limit, restart=restart),
            options={"y0": _tree.scale(1 / unit, init)},
            throw=False,
        )
        reason = jnp.where(solution.result == lx.RESULTS.max_steps_reached, Status.MAX_STEPS, Status.STAGNATED)
        reason = jnp.where(solution.result == lx.RESULTS.breakdown, Status.BREAKDOWN, reason)
        cycles = solution.stats["num_steps"]
        return Attempt(_tree.scale(unit, solution.value), reason, cycles, (cycles - 1) * (restart + 1) + 1)
