"""A quadratic program over vectors: made from the statement over arrays and functions, scaled, and certified hopeless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel.problem import Problem
from bilevel.statements import apply

_RUIZ = 10
_PROBES = 16
_FAR = 1e4


class Program(NamedTuple):
    """minimize ½⟨x, Qx⟩ + ⟨c, x⟩ subject to Ax = b in the rows that are `equal`, Ax ≤ b in the others.

    Attributes:
      hessian: x ↦ Qx.
      push: x ↦ Ax, the equalities first.
      pull: y ↦ Aᵀy.
      c: shape (n,).
      bound: b, shape (m,).
      equal: shape (m,), boolean.
      point: params ↦ (x, y), with y = 0 where params holds no multipliers.
      params: (x, y) ↦ params.
    """

    hessian: Callable[[jax.Array], jax.Array]
    push: Callable[[jax.Array], jax.Array]
    pull: Callable[[jax.Array], jax.Array]
    c: jax.Array
    bound: jax.Array
    equal: jax.Array
    point: Callable[[Any], tuple[jax.Array, jax.Array]]
    params: Callable[[jax.Array, jax.Array], Any]

    def system(self, weights: jax.Array, shift: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """x ↦ (Q + diag(shift) + Aᵀ diag(weights) A) x."""
        return lambda x: self.hessian(x) + shift * x + self.pull(weights * self.push(x))

    def project(self, rows: jax.Array) -> jax.Array:
        """The nearest values of Ax that are allowed."""
        return jnp.where(self.equal, self.bound, jnp.minimum(rows, self.bound))


def program_of(who: str, problem: Problem, params: Any, hparams: Any, data: Any) -> Program:
    """The program of a problem, in the precision of params. `who` asks, for the error messages."""
    stated = problem.quadratic_program(hparams, data)
    z = params.primal if problem.constrained else params
    if len(jax.tree.leaves(z)) != 1:
        raise TypeError(f"{who}: z of a quadratic program is one array, got {_tree.shapes(z)}")
    (z,) = jax.tree.leaves(z)
    shape, dtype, n = z.shape, z.dtype, z.size
    sides = [(matrix, side) for matrix, side in ((stated.E, stated.d), (stated.M, stated.h)) if matrix is not None]

    def hessian(x):
        return jnp.ravel(apply(stated.Q, x.reshape(shape))).astype(dtype)

    def push(x):
        parts = [jnp.ravel(apply(matrix, x.reshape(shape))).astype(dtype) for matrix, _ in sides]
        return jnp.concatenate([jnp.zeros(0, dtype), *parts])

    def values(matrix, side):
        like = jax.eval_shape(lambda z: apply(matrix, z), z)
        return jnp.ravel(jnp.broadcast_to(jnp.asarray(side, dtype), like.shape))

    bounds = [values(*side) for side in sides]
    bound = jnp.concatenate([jnp.zeros(0, dtype), *bounds])
    equalities = bounds[0].size if stated.E is not None else 0
    pull = jax.linear_transpose(push, jnp.zeros(n, dtype))
    flat, unravel = ravel_pytree(params)
    if problem.constrained and flat.size != n + bound.size:
        raise ValueError(
            f"{who}: params must be KKTSolution(primal, dual_eq, dual_ineq) with a multiplier for each of the {equalities} "
            f"equalities and {bound.size - equalities} inequalities, got {_tree.shapes(params)}"
        )

    def point(params):
        flat = ravel_pytree(params)[0]
        return flat[:n], flat[n:] if problem.constrained else jnp.zeros_like(bound)

    return Program(
        hessian=hessian,
        push=push,
        pull=(lambda y: pull(y)[0]) if sides else (lambda y: jnp.zeros(n, dtype)),
        c=jnp.ravel(jnp.broadcast_to(jnp.asarray(stated.c, dtype), shape)),
        bound=bound,
        equal=jnp.arange(bound.size) < equalities,
        point=point,
        params=lambda x, y: unravel(jnp.concatenate([x, y]) if problem.constrained else x),
    )


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
        hessian, rows = jnp.abs(jax.vmap(program.hessian)(unit)), jnp.abs(jax.vmap(program.push)(unit))

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


def largest(x: jax.Array) -> jax.Array:
    """The maximum norm."""
    return jnp.max(jnp.abs(x), initial=0)


def positive(x: jax.Array) -> jax.Array:
    """x, or 1 where dividing by it would fail."""
    return jnp.where(x > 0, x, 1)


def _root(x):
    return jnp.sqrt(positive(x))
