"""Restarted GMRES.

Why not lineax's: its stopping test also bounds the step in the units of the unknown, so that its cost depends on the scale
of A (12 times the products for 1e-8·A); it never stops inside a cycle; and it takes leaves of one dtype only.

The basis is orthogonalized twice by classical Gram–Schmidt, one matrix product each time. Q accumulates the Givens
rotations, so that one small product rotates a new column. Within a cycle residual norms come from the rotations; at its end
the residual is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _precondition
from bilevel.linear._base import Attempt, LinearSolver, Operator


class _Cycle(NamedTuple):
    basis: jax.Array  # (restart + 1, n)
    triangle: jax.Array  # (restart, restart), R by rows of columns: triangle[j] is column j
    rotations: jax.Array  # Q, (restart + 1, restart + 1)
    rhs: jax.Array  # Q β e₁, (restart + 1,); |rhs[j]| is the residual norm after j steps
    step: jax.Array


class _State(NamedTuple):
    x: jax.Array
    residual: jax.Array
    norm: jax.Array
    reason: jax.Array
    cycles: jax.Array
    matvecs: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class GMRES(LinearSolver):
    """Restarted GMRES, for general A.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      max_steps: limit on restart cycles; `None` (default) is ten times the number of unknowns.
      restart: dimension of the Krylov space of one cycle, and the number of vectors in memory; 40 by default.
      preconditioner: one of `bilevel.linear`, or a linear function v ↦ M⁻¹ v; it acts from the right, A M⁻¹ (M x) = b, so
        that residuals remain those of A x = b.

    Statuses besides `CONVERGED`: `STAGNATED` (a cycle gained nothing), `MAX_STEPS`.

    Reference: Saad & Schultz, GMRES, 1986.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> operator = bl.linear.Operator(lambda v: jnp.array([2.0, 4.0]) * v, "general")
      >>> found = bl.linear.GMRES().solve(operator, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    max_steps: int | None = None
    restart: int = 40
    preconditioner: _precondition.Precondition = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive("linear.GMRES", restart=self.restart, max_steps=self.max_steps)
        _precondition.check("linear.GMRES", self.preconditioner)

    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Run cycles until the residual is within the tolerance or a cycle gains nothing."""
        apply, cost = _precondition.build(self.preconditioner, operator, b)
        b, unravel = ravel_pytree(b)
        restart = min(self.restart, max(b.size, 1))
        limit = 10 * b.size if self.max_steps is None else self.max_steps
        goal = 0.9 * tolerance.astype(b.dtype)

        def product(v: jax.Array) -> jax.Array:
            return ravel_pytree(operator.matvec(unravel(v)))[0].astype(b.dtype)

        def precondition(v: jax.Array) -> jax.Array:
            return v if self.preconditioner is None else ravel_pytree(apply(unravel(v)))[0].astype(b.dtype)

        def unfinished(s: _State) -> jax.Array:
            return (s.norm > goal) & (s.cycles < limit) & (s.reason == Status.MAX_STEPS)

        def cycle(s: _State) -> _State:
            correction, steps = _cycle(lambda v: product(precondition(v)), s.residual, s.norm, restart, goal)
            x = s.x + precondition(correction)
            residual = b - product(x)
            norm = _tree.norm(residual)
            better = norm < 0.9999 * s.norm
            x, residual = jnp.where(better, x, s.x), jnp.where(better, residual, s.residual)
            reason = jnp.where(better, Status.MAX_STEPS, Status.STAGNATED)
            reason = jnp.where(jnp.isfinite(norm), reason, Status.NON_FINITE).astype(jnp.int32)
            norm = jnp.where(better, norm, s.norm)
            return _State(x, residual, norm, reason, s.cycles + 1, s.matvecs + steps + 1)

        start = ravel_pytree(init)[0].astype(b.dtype)
        residual = b - product(start)
        first = _State(
            start, residual, _tree.norm(residual), jnp.int32(Status.MAX_STEPS), jnp.int32(0), jnp.int32(1 + cost)
        )
        end = jax.lax.while_loop(unfinished, cycle, first)
        reason = jnp.where(end.norm <= goal, Status.STAGNATED, end.reason)
        return Attempt(unravel(end.x), reason, end.cycles, end.matvecs)


def _cycle(
    product: Callable[[jax.Array], jax.Array], residual: jax.Array, norm: jax.Array, restart: int, goal: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The correction of one cycle, and its number of steps."""
    dtype, eps = residual.dtype, jnp.finfo(residual.dtype).eps

    def unfinished(c: _Cycle) -> jax.Array:
        return (c.step < restart) & (jnp.abs(c.rhs[c.step]) > goal)

    def extend(c: _Cycle) -> _Cycle:
        j = c.step
        w = product(c.basis[j])
        size = _tree.norm(w)
        first = c.basis @ w
        w = w - first @ c.basis
        second = c.basis @ w
        w = w - second @ c.basis
        length = _tree.norm(w)
        independent = length > 10 * eps * size
        length = jnp.where(independent, length, 0)
        basis = c.basis.at[j + 1].set(jnp.where(independent, w / _tree.positive(length), 0))
        column = c.rotations @ (first + second).at[j + 1].set(length)
        radius = jnp.hypot(column[j], column[j + 1])
        cosine = jnp.where(radius > 0, column[j] / _tree.positive(radius), 1)
        sine = _tree.divide(column[j + 1], radius)

        def rotate(rows: jax.Array) -> jax.Array:
            upper, lower = rows[j], rows[j + 1]
            return rows.at[j].set(cosine * upper + sine * lower).at[j + 1].set(cosine * lower - sine * upper)

        triangle = c.triangle.at[j].set(
            jnp.where(jnp.arange(restart, dtype=j.dtype) < j, column[:restart], 0).at[j].set(radius)
        )
        # Without a new direction the cycle ends, whatever the residual.
        step = jnp.where(independent, j + 1, restart)
        return _Cycle(basis, triangle, rotate(c.rotations), rotate(c.rhs), step)

    start = _Cycle(
        jnp.zeros((restart + 1, residual.size), dtype).at[0].set(residual / _tree.positive(norm)),
        jnp.zeros((restart, restart), dtype),
        jnp.eye(restart + 1, dtype=dtype),
        jnp.zeros(restart + 1, dtype).at[0].set(norm),
        jnp.int32(0),
    )
    end = jax.lax.while_loop(unfinished, extend, start)
    diagonal = jnp.diagonal(end.triangle)
    largest = jnp.max(jnp.abs(diagonal))
    used = jnp.abs(diagonal) > eps * largest
    upper = jnp.where(used[:, None] & used[None, :], end.triangle.T, 0) + jnp.diag(jnp.where(used, 0, 1).astype(dtype))
    weights = jax.scipy.linalg.solve_triangular(upper, jnp.where(used, end.rhs[:restart], 0))
    return weights @ end.basis[:restart], jnp.sum(jnp.any(end.triangle != 0, axis=1), dtype=jnp.int32)
