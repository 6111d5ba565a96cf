"""What the iterative methods share: the limit on steps, the preconditioner, the loop, and residual correction.

A recurrence drifts from the true residual, in MINRES by the square of the condition number. So a method runs in rounds: each
solves for the residual that the last one left, computed anew and scaled to norm 1. Squares neither over- nor underflow, and
the final accuracy is limited by the product with A only.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _precondition
from bilevel.linear._base import Attempt, LinearSolver, Operator, Product


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iterative(LinearSolver, abc.ABC):
    """Base class of the methods with a limit on steps, by default ten times the number of unknowns."""

    max_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive(f"linear.{type(self).__name__}", max_steps=self.max_steps)

    def limit(self, b: PyTree) -> int:
        """The step limit for a right-hand side like b."""
        return 10 * _tree.size(b) if self.max_steps is None else self.max_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preconditioned(Iterative, abc.ABC):
    """Base class of the methods that take a preconditioner: one of `bilevel.linear`, or a linear function v ↦ M⁻¹ v."""

    preconditioner: _precondition.Precondition = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _precondition.check(f"linear.{type(self).__name__}", self.preconditioner)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrected(Preconditioned, abc.ABC):
    """Base class of the methods that run in rounds, with products with A and a preconditioner; a subclass defines `correct`."""

    enough: ClassVar[float] = 0.5

    @abc.abstractmethod
    def correct(self, matvec: Product, precondition: Product, r: PyTree, goal: jax.Array, left: jax.Array) -> Attempt:
        """Solve A d = r, where ‖r‖ = 1, to a residual norm of `goal` in at most `left` steps."""

    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Correct until the true residual is within the tolerance, or stops falling."""
        precondition, cost = _precondition.build(self.preconditioner, operator, b)
        correct = functools.partial(self.correct, operator, precondition)
        found = run(operator, b, init, tolerance, self.limit(b), correct, self.enough)
        return dataclasses.replace(found, matvecs=found.matvecs + cost)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquaresSolver(Iterative, abc.ABC):
    """Base class of the methods that run in rounds, with products with A and Aᵀ; a subclass defines `correct`."""

    @abc.abstractmethod
    def correct(self, forward: Product, backward: Product, r: PyTree, goal: jax.Array, left: jax.Array) -> Attempt:
        """Minimize ‖A d − r‖, where ‖r‖ = 1, in at most `left` steps, with d in the range of Aᵀ."""

    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Correct until the true residual is within the tolerance, or stops falling."""
        correct = functools.partial(self.correct, operator, operator.transpose(b))
        return run(operator, b, init, tolerance, self.limit(b), correct)


def iterate(step: Callable[[Any], Any], start: Any, goal: jax.Array, limit: jax.Array | int) -> tuple[Any, jax.Array]:
    """Repeat a step until the norm of the residual is within the goal, the limit is reached, or the method cannot continue.

    Args:
      step: state ↦ state; a state has the fields `norm`, `steps` and `reason`: `MAX_STEPS` while the method can continue.

    Returns:
      The last state, and the status to report if the true residual exceeds the tolerance.
    """

    def unfinished(s: Any) -> jax.Array:
        return (s.norm > goal) & (s.steps < limit) & (s.reason == Status.MAX_STEPS)

    end = jax.lax.while_loop(unfinished, step, start)
    return end, jnp.where(end.norm <= goal, Status.STAGNATED, end.reason)


def reason(finite: jax.Array, *cases: tuple[jax.Array, jax.Array | int]) -> jax.Array:
    """`NON_FINITE`, else the status of the first condition that holds, else `MAX_STEPS`; int32."""
    conditions, statuses = zip((~finite, Status.NON_FINITE), *cases, strict=True)
    return jnp.select(conditions, [jnp.asarray(status, jnp.int32) for status in statuses], jnp.int32(Status.MAX_STEPS))


def rotation(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The cosine and the sine of the rotation that turns (a, b) into (radius, 0), and the radius."""
    radius = jnp.hypot(a, b)
    divisor = _tree.positive(radius)
    return jnp.where(radius > 0, a / divisor, 1), b / divisor, radius


class _State(NamedTuple):
    x: PyTree
    residual: PyTree
    norm: jax.Array
    reason: jax.Array
    steps: jax.Array
    matvecs: jax.Array


def run(
    operator: Operator,
    b: PyTree,
    init: PyTree,
    tolerance: jax.Array,
    limit: int,
    correct: Callable[[PyTree, jax.Array, jax.Array], Attempt],
    enough: float = 0.5,
) -> Attempt:
    """Correct until the true residual is within the tolerance, or a round leaves more than `enough` of it.

    `correct(r, goal, left)` solves A d = r, where ‖r‖ = 1, to a residual norm of `goal` in at most `left` steps. Its reason is
    `MAX_STEPS` only if it took them all.
    """

    def residual_of(x: PyTree) -> tuple[PyTree, jax.Array]:
        residual = _tree.sub(b, operator(x))
        return residual, _tree.norm(residual)

    def step(s: _State) -> _State:
        goal = jnp.maximum(0.9 * tolerance / s.norm, _tree.eps(b)).astype(s.norm.dtype)
        found = correct(_tree.scale(1 / s.norm, s.residual), goal, limit - s.steps)
        x = _tree.add_scaled(s.x, s.norm, found.value)
        residual, norm = residual_of(x)
        ended = reason(jnp.isfinite(norm), (norm > enough * s.norm, found.reason))
        x, residual, norm = _tree.where(norm < s.norm, (x, residual, norm), (s.x, s.residual, s.norm))
        steps = jnp.asarray(s.steps + found.steps, jnp.int32)
        return _State(x, residual, norm, ended, steps, jnp.asarray(s.matvecs + found.matvecs + 1, jnp.int32))

    start = _State(init, *residual_of(init), jnp.int32(Status.MAX_STEPS), jnp.int32(0), jnp.int32(1))
    end, ended = iterate(step, start, 0.99 * tolerance, limit)
    return Attempt(end.x, ended, end.steps, end.matvecs)
