"""Restarted GMRES.

Our own, where lineax has one: lineax's also bounds the step in the units of the unknown, so that its cost depends on the
scale of A (12 times the products for 1e-8·A), it never stops inside a cycle, and it takes leaves of one dtype only.

The basis is orthogonalized twice by classical Gram–Schmidt, which is one matrix product each; Q accumulates the Givens
rotations, so that a new column is rotated by one small product too. Residual norms come for free within a cycle, and
truly at its end.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel.linear import _precondition
from bilevel.linear._base import Attempt, LinearSolver


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
    """Restarted GMRES (Saad & Schultz 1986), for general A.

    Args:
      max_steps: limit on restart cycles; `None` is ten times the number of unknowns.
      restart: dimension of the Krylov space of one cycle; memory is `restart` vectors.
      preconditioner: one of `bilevel.linear`, or a function v ↦ M⁻¹ v, linear; it acts from the right, A M⁻¹ (M x) = b, so
        that residuals stay those of A x = b.

    Statuses besides `CONVERGED`: `STAGNATED` (a cycle gained nothing), `MAX_STEPS`.
    """

    max_steps: int | None = None
    restart: int = 40
    preconditioner: _precondition.Precondition = None

    def __post_init__(self):
        super().__post_init__()
        _checks.require_positive("linear.GMRES", restart=self.restart, max_steps=self.max_steps)
        _precondition.check("linear.GMRES", self.preconditioner)

    def attempt(self, operator, b, init, tolerance):
        """Run cycles until the residual is within the tolerance or a cycle gains nothing."""
        apply, cost = _precondition.build(self.preconditioner, operator, b)
        b, unravel = ravel_pytree(b)
        restart = min(self.restart, max(b.size, 1))
        limit = 10 * b.size if self.max_steps is None else self.max_steps
        goal = 0.9 * tolerance.astype(b.dtype)

        def product(v):
            return ravel_pytree(operator.matvec(unravel(v)))[0].astype(b.dtype)

        def precondition(v):
            return v if self.preconditioner is None else ravel_pytree(apply(unravel(v)))[0].astype(b.dtype)

        def unfinished(s: _State):
            return (s.norm > goal) & (s.cycles < limit) & (s.reason == Status.MAX_STEPS)

        def cycle(s: _State):
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


def _cycle(product, residual, norm, restart: int, goal) -> tuple[jax.Array, jax.Array]:
    """The correction of one cycle, and the steps that it took."""
    dtype, eps = residual.dtype, jnp.finfo(residual.dtype).eps

    def unfinished(c: _Cycle):
        return (c.step < restart) & (jnp.abs(c.rhs[c.step]) > goal)

    def extend(c: _Cycle):
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
        basis = c.basis.at[j + 1].set(jnp.where(independent, w / jnp.where(independent, length, 1), 0))
        column = c.rotations @ (first + second).at[j + 1].set(length)
        radius = jnp.hypot(column[j], column[j + 1])
        cosine = jnp.where(radius > 0, column[j] / jnp.where(radius > 0, radius, 1), 1)
        sine = jnp.where(radius > 0, column[j + 1] / jnp.where(radius > 0, radius, 1), 0)

        def rotate(rows):
            upper, lower = rows[j], rows[j + 1]
            return rows.at[j].set(cosine * upper + sine * lower).at[j + 1].set(cosine * lower - sine * upper)

        triangle = c.triangle.at[j].set(
            jnp.where(jnp.arange(restart, dtype=j.dtype) < j, column[:restart], 0).at[j].set(radius)
        )
        # Without a new direction the cycle can go no further, whatever the residual.
        step = jnp.where(independent, j + 1, restart)
        return _Cycle(basis, triangle, rotate(c.rotations), rotate(c.rhs), step)

    safe = jnp.where(norm > 0, norm, 1)
    start = _Cycle(
        jnp.zeros((restart + 1, residual.size), dtype).at[0].set(residual / safe),
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
