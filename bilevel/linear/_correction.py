"""Residual correction, shared by the methods that update the residual by a recurrence.

A recurrence drifts from the true residual, in MINRES by the square of the condition number. So a method runs in rounds: each
solves for the residual that the last one left, computed anew and scaled to norm 1. Squares neither over- nor underflow, and
the final accuracy is limited by the product with A only.
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
from bilevel.linear._base import Attempt, LinearSolver, Operator, Product


class Correction(NamedTuple):
    """The result of one round: what to add to x, why the round ended (`MAX_STEPS` only at the limit), and its cost."""

    value: PyTree
    reason: jax.Array | int
    steps: jax.Array | int
    matvecs: jax.Array | int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preconditioned(LinearSolver, abc.ABC):
    """Base class of the methods that take products with A and a preconditioner; a subclass defines `correct`.

    Args:
      max_steps: step limit; `None` is ten times the number of unknowns.
      preconditioner: one of `bilevel.linear`, or a linear function v ↦ M⁻¹ v.
    """

    max_steps: int | None = None
    preconditioner: _precondition.Precondition = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive(f"linear.{type(self).__name__}", max_steps=self.max_steps)
        _precondition.check(f"linear.{type(self).__name__}", self.preconditioner)

    @abc.abstractmethod
    def correct(
        self, matvec: Product, precondition: Product, r: PyTree, goal: jax.Array, left: jax.Array
    ) -> Correction:
        """Solve A d = r, where ‖r‖ = 1, to a residual norm of `goal` in at most `left` steps."""

    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Correct until the true residual is within the tolerance."""
        limit = 10 * _tree.size(b) if self.max_steps is None else self.max_steps
        precondition, cost = _precondition.build(self.preconditioner, operator, b)
        matvec = product(operator)
        found = run(operator, b, init, tolerance, limit, lambda *args: self.correct(matvec, precondition, *args))
        return dataclasses.replace(found, matvecs=found.matvecs + cost)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquaresSolver(LinearSolver, abc.ABC):
    """Base class of the methods that take products with A and Aᵀ; a subclass defines `correct`.

    Args:
      max_steps: step limit; `None` is ten times the number of unknowns.
    """

    max_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive(f"linear.{type(self).__name__}", max_steps=self.max_steps)

    @abc.abstractmethod
    def correct(self, forward: Product, backward: Product, r: PyTree, goal: jax.Array, left: jax.Array) -> Correction:
        """Minimize ‖A d − r‖, where ‖r‖ = 1, in at most `left` steps, with d in the range of Aᵀ."""

    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Correct until the true residual is within the tolerance, or stops falling."""
        limit = 10 * _tree.size(b) if self.max_steps is None else self.max_steps
        forward, backward = product(operator), product(operator.transpose(b))
        return run(operator, b, init, tolerance, limit, lambda *args: self.correct(forward, backward, *args))


class _State(NamedTuple):
    x: PyTree
    residual: PyTree
    norm: jax.Array
    reason: jax.Array
    steps: jax.Array
    matvecs: jax.Array


def product(operator: Operator) -> Product:
    """v ↦ A v in the dtypes of v."""
    return lambda v: _tree.cast_like(operator.matvec(v), v)


def run(
    operator: Operator,
    b: PyTree,
    init: PyTree,
    tolerance: jax.Array,
    limit: int,
    correct: Callable[[PyTree, jax.Array, jax.Array], Correction],
    enough: float = 0.5,
) -> Attempt:
    """Correct until the true residual is within the tolerance, or a round leaves more than `enough` of it.

    `correct(r, goal, left)` solves A d = r, where ‖r‖ = 1, to a residual norm of `goal` in at most `left` steps.
    """
    matvec = product(operator)

    def residual_of(x: PyTree) -> tuple[PyTree, jax.Array]:
        residual = _tree.sub(b, matvec(x))
        return residual, _tree.norm(residual)

    def unfinished(s: _State) -> jax.Array:
        return (s.norm > 0.99 * tolerance) & (s.reason == Status.MAX_STEPS) & (s.steps < limit)

    def step(s: _State) -> _State:
        goal = jnp.maximum(0.9 * tolerance / s.norm, _tree.eps(b)).astype(s.norm.dtype)
        found = correct(_tree.scale(1 / s.norm, s.residual), goal, limit - s.steps)
        x = _tree.add_scaled(s.x, s.norm, found.value)
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
