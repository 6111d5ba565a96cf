"""Restarted GMRES.

Why not lineax's: its stopping test also bounds the step in the units of the unknown, so that its cost depends on the scale
of A (12 times the products for 1e-8·A); it never stops inside a cycle; and it takes leaves of one dtype only.

The basis is orthogonalized twice by classical Gram–Schmidt, one matrix product each time. Q accumulates the Givens
rotations, so that one small product rotates a new column. Within a cycle residual norms come from the rotations; at its end
the residual is computed.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _iteration
from bilevel.linear._base import Attempt, Product


class _Cycle(NamedTuple):
    basis: jax.Array  # (restart + 1, n)
    triangle: jax.Array  # (restart, restart), R by rows of columns: triangle[j] is column j
    rotations: jax.Array  # Q, (restart + 1, restart + 1)
    rhs: jax.Array  # Q e₁, (restart + 1,); |rhs[j]| is the residual norm after j steps
    step: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class GMRES(_iteration.Corrected):
    """Restarted GMRES, for general A.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      max_steps: limit on restart cycles; `None` (default) is ten times the number of unknowns.
      restart: dimension of the Krylov space of one cycle, and the number of vectors in memory; 40 by default.
      preconditioner: one of `bilevel.linear`, or a linear function v ↦ M⁻¹ v; it acts from the right, A M⁻¹ (M x) = b.

    Statuses besides `CONVERGED`: `STAGNATED` (a cycle gained nothing), `MAX_STEPS`.

    Reference: Saad & Schultz, GMRES, 1986.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.GMRES().solve(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    restart: int = 40
    enough: ClassVar[float] = 0.9999

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive("linear.GMRES", restart=self.restart)

    def correct(self, matvec: Product, precondition: Product, r: PyTree, goal: jax.Array, left: jax.Array) -> Attempt:
        """One cycle."""
        flat, unravel = ravel_pytree(r)

        def product(v: jax.Array) -> jax.Array:
            return ravel_pytree(matvec(precondition(unravel(v))))[0]

        correction, steps = _cycle(product, flat, min(self.restart, max(flat.size, 1)), goal)
        return Attempt(precondition(unravel(correction)), Status.STAGNATED, 1, steps)


def _cycle(
    product: Callable[[jax.Array], jax.Array], r: jax.Array, restart: int, goal: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The correction of one cycle for a residual r of norm 1, and its number of steps."""
    dtype, eps = r.dtype, jnp.finfo(r.dtype).eps

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
        cosine, sine, _ = _iteration.rotation(column[j], column[j + 1])

        def rotate(rows: jax.Array) -> jax.Array:
            upper, lower = rows[j], rows[j + 1]
            return rows.at[j].set(cosine * upper + sine * lower).at[j + 1].set(cosine * lower - sine * upper)

        triangle = c.triangle.at[j].set(rotate(column)[:restart])
        # Without a new direction the cycle ends, whatever the residual.
        step = jnp.where(independent, j + 1, restart)
        return _Cycle(basis, triangle, rotate(c.rotations), rotate(c.rhs), step)

    start = _Cycle(
        jnp.zeros((restart + 1, r.size), dtype).at[0].set(r),
        jnp.zeros((restart, restart), dtype),
        jnp.eye(restart + 1, dtype=dtype),
        jnp.zeros(restart + 1, dtype).at[0].set(1),
        jnp.int32(0),
    )
    end = jax.lax.while_loop(unfinished, extend, start)
    diagonal = jnp.diagonal(end.triangle)
    largest = jnp.max(jnp.abs(diagonal))
    used = jnp.abs(diagonal) > eps * largest
    upper = jnp.where(used[:, None] & used[None, :], end.triangle.T, 0) + jnp.diag(jnp.where(used, 0, 1).astype(dtype))
    weights = jax.scipy.linalg.solve_triangular(upper, jnp.where(used, end.rhs[:restart], 0))
    return weights @ end.basis[:restart], jnp.sum(jnp.any(end.triangle != 0, axis=1), dtype=jnp.int32)
