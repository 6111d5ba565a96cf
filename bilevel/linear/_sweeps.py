"""Residual correction, shared by the methods that carry the residual by a recurrence.

A recurrence drifts from the true residual, in MINRES by the square of the condition number. So a method runs in sweeps,
each on the residual that the last one left, computed truly and scaled to norm 1: no square under- or overflows, and the
final accuracy is that of the product with A.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear._base import Attempt, Operator


class Sweep(NamedTuple):
    """What one sweep hands back: a correction of x, why it ended (`MAX_STEPS` only at the limit), and its cost."""

    correction: PyTree
    reason: jax.Array | int
    steps: jax.Array | int
    matvecs: jax.Array | int


class _State(NamedTuple):
    x: PyTree
    residual: PyTree
    norm: jax.Array
    reason: jax.Array
    steps: jax.Array
    matvecs: jax.Array


def product(operator: Operator) -> Callable[[PyTree], PyTree]:
    """v ↦ A v in the dtypes of v."""
    return lambda v: _tree.cast_like(operator.matvec(v), v)


def run(
    operator: Operator,
    b: PyTree,
    init: PyTree,
    tolerance: jax.Array,
    limit: int,
    sweep: Callable[[PyTree, jax.Array, jax.Array], Sweep],
    enough: float = 0.5,
) -> Attempt:
    """Sweep until the true residual is within the tolerance, or a sweep leaves more than `enough` of it.

    `sweep(r, goal, left)` solves A d = r, where ‖r‖ = 1, to a residual norm of `goal` in at most `left` steps.
    """
    matvec = product(operator)

    def residual_of(x):
        residual = _tree.sub(b, matvec(x))
        return residual, _tree.norm(residual)

    def unfinished(s: _State):
        return (s.norm > 0.99 * tolerance) & (s.reason == Status.MAX_STEPS) & (s.steps < limit)

    def step(s: _State):
        goal = jnp.maximum(0.9 * tolerance / s.norm, _tree.eps(b)).astype(s.norm.dtype)
        found = sweep(_tree.scale(1 / s.norm, s.residual), goal, limit - s.steps)
        x = _tree.add_scaled(s.x, s.norm, found.correction)
        residual, norm = residual_of(x)
        reason = jnp.where(norm <= enough * s.norm, Status.MAX_STEPS, found.reason)
        reason = jnp.where(jnp.isfinite(norm), reason, Status.NON_FINITE).astype(jnp.int32)
        better = norm < s.norm
        x, residual = _tree.where(better, x, s.x), _tree.where(better, residual, s.residual)
        matvecs = jnp.asarray(s.matvecs + found.matvecs + 1, jnp.int32)
        steps = jnp.asarray(s.steps + found.steps, jnp.int32)
        return _State(x, residual, jnp.where(better, norm, s.norm), reason, steps, matvecs)

    start = _State(init, *residual_of(init), jnp.int32(Status.MAX_STEPS), jnp.int32(0), jnp.int32(1))
    end = jax.lax.while_loop(unfinished, step, start)
    return Attempt(end.x, end.reason, end.steps, end.matvecs)
