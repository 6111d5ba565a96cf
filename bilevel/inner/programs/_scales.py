"""The units of a quadratic program, and proofs, in these units, that it has no solution."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.inner.programs._program import Program, largest, positive

_RUIZ = 10
_PROBES = 16
_FAR = 1e4


class Scales(NamedTuple):
    """Units of the variables, D, of the rows, 1/E, and of the loss, 1/κ, in which the entries of Q and A are about 1.

    Attributes:
      columns: 1/(κD²), the units of Q's diagonal, shape (n,).
      rows: E²/κ, the units of yᵢ over those of aᵢᵀx, shape (m,).
      variables: D, shape (n,).
      residuals: E, shape (m,).
    """

    columns: jax.Array
    rows: jax.Array
    variables: jax.Array
    residuals: jax.Array

    def far(self, program: Program, x: jax.Array) -> jax.Array:
        """10⁴ times the largest entry of x, or of the bounds, in scaled units."""
        return _FAR * jnp.maximum(largest(x / self.variables), largest(program.bound * self.residuals))


def equilibrate(program: Program, dense: bool) -> Scales:
    """By Ruiz's iteration on the entries where they can be formed; else by random signs, rows and loss alone."""
    n, dtype = program.c.size, program.c.dtype
    if dense:
        unit = jnp.eye(n, dtype=dtype)
        hessian, rows = jnp.abs(program.formed()), jnp.abs(jax.vmap(program.push)(unit))

        def balance(_, scales):
            d, e = scales
            across = jnp.max(hessian * d, axis=1, initial=0), jnp.max(rows * e, axis=1, initial=0)
            down = jnp.max(rows * d[:, None], axis=0, initial=0)
            return d / _root(d * jnp.maximum(*across)), e / _root(e * down)

        d, e = jax.lax.fori_loop(0, _RUIZ, balance, (jnp.ones(n, dtype), jnp.ones_like(program.bound)))
        curvature = jnp.mean(d * jnp.max(hessian * d, axis=1, initial=0))
    else:
        signs = jax.random.rademacher(jax.random.key(0), (_PROBES, n), dtype)
        d, e = jnp.ones(n, dtype), 1 / _root(jnp.mean(jax.vmap(program.push)(signs) ** 2, axis=0))
        curvature = jnp.sum(signs * jax.vmap(program.hessian)(signs)) / (_PROBES * n)
    # Of a linear program: the largest slope.
    curvature = positive(jnp.where(curvature > 0, curvature, largest(d * program.c)))
    return Scales(curvature / d**2, curvature * e**2, d, e)


def infeasible(program: Program, scales: Scales, x: jax.Array, v: jax.Array) -> jax.Array:
    """Whether v proves that no point less far than `Scales.far` satisfies the constraints, as ⟨v, b⟩ < −|⟨v, Ax⟩| there."""
    v = jnp.where(program.equal, v, jnp.maximum(v, 0))
    most = scales.far(program, x) * jnp.sum(jnp.abs(scales.variables * program.pull(v)))
    return jnp.vdot(v, program.bound) + most < 0


def unbounded(program: Program, scales: Scales, x: jax.Array, v: jax.Array) -> jax.Array:
    """Whether the loss falls along v farther than `Scales.far`, and the constraints stay satisfied."""
    length = positive(largest(v / scales.variables))
    rows = scales.residuals * program.push(v)
    leaving = largest(jnp.where(program.equal, rows, jnp.maximum(rows, 0)))
    slope = jnp.vdot(program.c, v) + scales.far(program, x) / length * jnp.vdot(v, program.hessian(v))
    return (slope < 0) & (_FAR * leaving < length)


def _root(x):
    return jnp.sqrt(positive(x))
