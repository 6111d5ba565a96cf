"""Residual correction, shared by the methods that carry the residual by a recurrence.

A recurrence drifts from the true residual, in MINRES by the square of the condition number. So a method runs in sweeps,
each on the residual that the last one left, computed truly and scaled to norm 1: no square under- or overflows, and the
final accuracy is that of the product with A.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _precondition
from bilevel.linear._base import Attempt, LinearSolver, Operator


class Sweep(NamedTuple):
    """What one sweep hands back: a correction of x, why it ended (`MAX_STEPS` only at the limit), and its cost."""

    correction: PyTree
    reason: jax.Array | int
    steps: jax.Array | int
    matvecs: jax.Array | int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preconditioned(LinearSolver, abc.ABC):
    """Base of the methods that sweep with products with A and a preconditioner; a subclass writes `sweep`.

    Args:
      max_steps: step limit; `None` is ten times the number of unknowns.
      preconditioner: one of `bilevel.linear`, or a function v ↦ M⁻¹ v, linear.
    """

    max_steps: int | None = None
    preconditioner: _precondition.Precondition = None

    def __post_init__(self):
        super().__post_init__()
        _checks.require_positive(f"linear.{type(self).__name__}", max_steps=self.max_steps)
        _precondition.check(f"linear.{type(self).__name__}", self.preconditioner)

    @abc.abstractmethod
    def sweep(self, matvec, precondition, r, goal, left) -> Sweep:
        """Solve A d = r, where ‖r‖ = 1, to a residual norm of `goal` in at most `left` steps."""

    def attempt(self, operator, b, init, tolerance):
        """Sweep until the true residual is within the tolerance."""
        limit = 10 * _tree.size(b) if self.max_steps is None else self.max_steps
        precondition, cost = _precondition.build(self.preconditioner, operator, b)
        matvec = product(operator)
        found = run(operator, b, init, tolerance, limit, lambda *args: self.sweep(matvec, precondition, *args))
        return dataclasses.replace(found, matvecs=found.matvecs + cost)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares(LinearSolver, abc.ABC):
    """Base of the methods that sweep with products with A and Aᵀ; a subclass writes `sweep`.

    Args:
      max_steps: step limit; `None` is ten times the number of unknowns.
    """

    max_steps: int | None = None

    def __post_init__(self):
        super().__post_init__()
        _checks.require_positive(f"linear.{type(self).__name__}", max_steps=self.max_steps)

    @abc.abstractmethod
    def sweep(self, forward, backward, r, goal, left) -> Sweep:
        """Minimize ‖A d − r‖, where ‖r‖ = 1, in at most `left` steps; corrections lie in the range of Aᵀ."""

    def attempt(self, operator, b, init, tolerance):
        """Sweep until the true residual is within the tolerance, or falls no more."""
        limit = 10 * _tree.size(b) if self.max_steps is None else self.max_steps
        forward, backward = product(operator), product(operator.transpose(b))
        return run(operator, b, init, tolerance, limit, lambda *args: self.sweep(forward, backward, *args))


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
