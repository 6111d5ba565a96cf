"""A quadratic program over vectors, made from the statement over arrays and functions, its units and its linear systems."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree, linear
from bilevel._tree import PyTree
from bilevel.problem import At
from bilevel.statements import apply

_REFINEMENTS, _RUIZ, _PROBES = 30, 10, 16
_FAR = 1e4


class VectorProgram(NamedTuple):
    """minimize ½⟨x, Qx⟩ + ⟨c, x⟩ subject to Ax = b in the rows that are `equal`, Ax ≤ b in the others.

    Attributes:
      hessian: x ↦ Qx.
      matrix: Q if it is stated as a matrix over vectors, else None.
      push: x ↦ Ax, the equalities first.
      pull: y ↦ Aᵀy.
      c: shape (n,).
      bound: b, shape (m,).
      equal: shape (m,), boolean.
      point: params ↦ (x, y), with y = 0 where params holds no multipliers.
      params: (x, y) ↦ params.
      dense: systems are factored, else solved by products.
      linear: solver of the systems that are not.
    """

    hessian: Callable[[jax.Array], jax.Array]
    matrix: jax.Array | None
    push: Callable[[jax.Array], jax.Array]
    pull: Callable[[jax.Array], jax.Array]
    c: jax.Array
    bound: jax.Array
    equal: jax.Array
    point: Callable[[Any], tuple[jax.Array, jax.Array]]
    params: Callable[[jax.Array, jax.Array], Any]
    dense: bool
    linear: linear.LinearSolver

    def formed(self) -> jax.Array:
        """Q as a matrix."""
        return jax.vmap(self.hessian)(jnp.eye(self.c.size, dtype=self.c.dtype)) if self.matrix is None else self.matrix

    def project(self, rows: jax.Array) -> jax.Array:
        """The nearest values of Ax that are allowed."""
        return jnp.where(self.equal, self.bound, jnp.minimum(rows, self.bound))

    def factor(self, weights: jax.Array, shift: jax.Array) -> jax.Array:
        """The Cholesky factor of Q + diag(shift) + Aᵀ diag(weights) A, NaN if there is none; empty unless dense."""
        if not self.dense:
            return jnp.zeros((0, 0), self.c.dtype)
        unit = jnp.eye(self.c.size, dtype=self.c.dtype)
        rows = jax.vmap(lambda x: self.pull(weights * self.push(x)))(unit)
        matrix = self.formed() + rows + jnp.diag(shift)
        return jnp.linalg.cholesky((matrix + matrix.T) / 2)

    def solver(
        self, factor: jax.Array, weights: jax.Array, shift: jax.Array
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """(right-hand side, start) ↦ the solution with that matrix; by products, to a tenth of the start's residual."""
        if self.dense:
            return lambda b, start: jax.scipy.linalg.cho_solve((factor, True), b)
        operator = linear.Operator(
            lambda x: self.hessian(x) + shift * x + self.pull(weights * self.push(x)), "positive_definite"
        )

        def solve(b: jax.Array, start: jax.Array) -> jax.Array:
            left = b - operator.matvec(start)
            return start + self.linear.attempt(operator, left, jnp.zeros_like(left), 0.1 * _tree.norm(left)).value

        return solve

    def polish(
        self, columns: jax.Array, rows: jax.Array, kept: jax.Array, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Solve the program with the rows that are `kept` as equalities, without the others, from (x, y).

        The system of its conditions is regularized by δ in the units `columns` of Q's diagonal and `rows` of y over Ax;
        iterative refinement removes the effect.
        """
        eps = _tree.eps(x)
        # Small enough for a few refinements, large enough not to drown Q in the rounding of AᵀA/δ.
        delta = eps**0.375 if self.dense else 1e-2
        weights, shift = jnp.where(kept, rows / delta, 0), eps**0.625 * columns
        solve = self.solver(self.factor(weights, shift), weights, shift)

        def refine(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            x, y, _, count = carry
            above = jnp.where(kept, self.bound - self.push(x), 0)
            slope = self.hessian(x) + self.c + self.pull(y)
            move = solve(self.pull(weights * above) - slope, jnp.zeros_like(x))
            moving = largest(move) > eps * largest(x)
            return x + move, y + weights * (self.push(move) - above), moving, count + 1

        start = (x, jnp.where(kept, y, 0), jnp.array(True), jnp.int32(0))
        found = jax.lax.while_loop(lambda carry: carry[2] & (carry[3] < _REFINEMENTS), refine, start)
        polished = found[0], jnp.where(self.equal, found[1], jnp.maximum(found[1], 0))
        return _tree.where(_tree.all_finite(polished), polished, (x, y))


def program_of(who: str, at: At, params: PyTree, max_dense: int, linear: linear.LinearSolver) -> VectorProgram:
    """The program of a problem, in the precision of params; dense up to a number of unknowns. `who` is for error messages."""
    stated, constrained = at.quadratic_program(), at.parts.constrained
    z = params.primal if constrained else params
    if len(jax.tree.leaves(z)) != 1:
        raise TypeError(f"{who}: z of a quadratic program is one array, got {_tree.shapes(z)}")
    (z,) = jax.tree.leaves(z)
    shape, dtype, n = z.shape, z.dtype, z.size
    sides = [(matrix, side) for matrix, side in ((stated.E, stated.d), (stated.M, stated.h)) if matrix is not None]
    none = jnp.zeros(0, dtype)

    def product(matrix: Any, x: jax.Array) -> jax.Array:
        return jnp.ravel(apply(matrix, x.reshape(shape))).astype(dtype)

    def push(x: jax.Array) -> jax.Array:
        return jnp.concatenate([none, *(product(matrix, x) for matrix, _ in sides)])

    def values(matrix: Any, side: Any) -> jax.Array:
        like = jax.eval_shape(lambda z: apply(matrix, z), z)
        return jnp.ravel(jnp.broadcast_to(jnp.asarray(side, dtype), like.shape))

    bounds = [values(*side) for side in sides]
    bound = jnp.concatenate([none, *bounds])
    equalities = bounds[0].size if stated.E is not None else 0
    pull = jax.linear_transpose(push, jnp.zeros(n, dtype))
    flat, unravel = ravel_pytree(params)
    if constrained and flat.size != n + bound.size:
        raise ValueError(
            f"{who}: params must be KKTSolution(primal, dual_eq, dual_ineq) with a multiplier for each of the "
            f"{equalities} equalities and {bound.size - equalities} inequalities, got {_tree.shapes(params)}"
        )

    def point(params: PyTree) -> tuple[jax.Array, jax.Array]:
        flat = ravel_pytree(params)[0]
        return flat[:n], flat[n:] if constrained else jnp.zeros_like(bound)

    return VectorProgram(
        hessian=functools.partial(product, stated.Q),
        matrix=stated.Q.astype(dtype) if isinstance(stated.Q, jax.Array) and z.ndim == 1 else None,
        push=push,
        pull=(lambda y: pull(y)[0]) if sides else (lambda y: jnp.zeros(n, dtype)),
        c=jnp.ravel(jnp.broadcast_to(jnp.asarray(stated.c, dtype), shape)),
        bound=bound,
        equal=jnp.arange(bound.size) < equalities,
        point=point,
        params=lambda x, y: unravel(jnp.concatenate([x, y]) if constrained else x),
        dense=n <= max_dense,
        linear=linear,
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

    def far(self, program: VectorProgram, x: jax.Array) -> jax.Array:
        """10⁴ times the largest entry of x, or of the bounds, in scaled units."""
        return _FAR * jnp.maximum(largest(x / self.variables), largest(program.bound * self.residuals))


def equilibrate(program: VectorProgram) -> Scales:
    """Scales by Ruiz's iteration on the entries if these are formed; else, for rows and loss alone, by random signs."""
    n, dtype = program.c.size, program.c.dtype
    if program.dense:
        unit = jnp.eye(n, dtype=dtype)
        hessian, rows = jnp.abs(program.formed()), jnp.abs(jax.vmap(program.push)(unit))

        def balance(_: Any, scales: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
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
    # A linear program has no curvature: the largest slope takes its place.
    curvature = _tree.positive(jnp.where(curvature > 0, curvature, largest(d * program.c)))
    return Scales(curvature / d**2, curvature * e**2, d, e)


def infeasible(program: VectorProgram, scales: Scales, x: jax.Array, v: jax.Array) -> jax.Array:
    """Whether v proves that no point within `Scales.far` satisfies the constraints, since ⟨v, b⟩ < −|⟨v, Ax⟩| there."""
    v = jnp.where(program.equal, v, jnp.maximum(v, 0))
    most = scales.far(program, x) * jnp.sum(jnp.abs(scales.variables * program.pull(v)))
    return jnp.vdot(v, program.bound) + most < 0


def unbounded(program: VectorProgram, scales: Scales, x: jax.Array, v: jax.Array) -> jax.Array:
    """Whether the loss falls along v beyond `Scales.far`, and the constraints stay satisfied."""
    length = _tree.positive(largest(v / scales.variables))
    rows = scales.residuals * program.push(v)
    leaving = largest(jnp.where(program.equal, rows, jnp.maximum(rows, 0)))
    slope = jnp.vdot(program.c, v) + scales.far(program, x) / length * jnp.vdot(v, program.hessian(v))
    return (slope < 0) & (_FAR * leaving < length)


def _root(x: jax.Array) -> jax.Array:
    return jnp.sqrt(_tree.positive(x))


def largest(x: jax.Array) -> jax.Array:
    """The maximum norm."""
    return jnp.max(jnp.abs(x), initial=0)
