"""The Neumann series, as a solver that can tell when the series does not converge."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _sketch, _sweeps
from bilevel.linear._base import Attempt, LinearSolver


class _State(NamedTuple):
    x: PyTree
    term: PyTree
    norm: jax.Array
    reason: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neumann(LinearSolver):
    """x = α Σₖ (I − α A)ᵏ b (Lorraine, Vicol & Duvenaud 2020), for A whose eigenvalues have positive real parts.

    The k-th term is the residual after k steps of Richardson's iteration, which is how it is run: a truncated series is a
    solve with few `max_steps`, reported as such. `CG` or `GMRES` take far fewer products for the same residual.

    Args:
      max_steps: terms of the series.
      step: α; None takes 1 / ‖A‖₂, less 10 %, from the estimate below.
      power_steps: steps of the power iteration that estimates ‖A‖₂; two products each, one for symmetric A.

    Statuses besides `CONVERGED`: `MAX_STEPS`, `BREAKDOWN` (the terms grow: α is too large, or A has an eigenvalue with a
    negative real part; the answer is the start), `STAGNATED` (the terms stay: A is singular, b not in its range).
    """

    max_steps: int = 1000
    step: float | None = None
    power_steps: int = 10

    def __post_init__(self):
        super().__post_init__()
        _checks.require_positive(
            "linear.Neumann", max_steps=self.max_steps, step=self.step, power_steps=self.power_steps
        )

    def attempt(self, operator, b, init, tolerance):
        """Add terms until they are small, or no longer shrink."""
        matvec, goal = _sweeps.product(operator), 0.9 * tolerance
        step_size, cost = self._step_size(operator, b)
        first = _tree.sub(b, matvec(init))
        first_norm = _tree.norm(first)

        def unfinished(s: _State):
            return (s.norm > goal) & (s.steps < self.max_steps) & (s.reason == Status.MAX_STEPS)

        def step(s: _State):
            change = _tree.scale(step_size, matvec(s.term))
            term = _tree.sub(s.term, change)
            norm = _tree.norm(term)
            reason = jnp.where(_tree.norm(change) <= 10 * _tree.eps(b) * s.norm, Status.STAGNATED, Status.MAX_STEPS)
            # Terms of a convergent series may grow at first where A is far from normal, but not by this much.
            reason = jnp.where(norm > 100 * first_norm, Status.BREAKDOWN, reason)
            reason = jnp.where(jnp.isfinite(norm), reason, Status.NON_FINITE).astype(jnp.int32)
            return _State(_tree.add_scaled(s.x, step_size, s.term), term, norm, reason, s.steps + 1)

        start = _State(init, first, first_norm, jnp.int32(Status.MAX_STEPS), jnp.int32(0))
        end = jax.lax.while_loop(unfinished, step, start)
        reason = jnp.where(end.norm <= goal, Status.STAGNATED, end.reason)
        reason = jnp.where((end.reason == Status.MAX_STEPS) & (end.norm > first_norm), Status.BREAKDOWN, reason)
        x = _tree.where(end.norm > first_norm, init, end.x)
        return Attempt(x, reason, end.steps, end.steps + 1 + cost)

    def _step_size(self, operator, b):
        """α, and the products that it took."""
        if self.step is not None:
            return jnp.asarray(self.step, _tree.dtype(b)), 0
        norm = _sketch.norm_estimate(operator, b, self.power_steps)
        return 0.9 / jnp.where(norm > 0, norm, 1), self.power_steps * (2 if operator.structure == "general" else 1)
