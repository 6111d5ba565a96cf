"""A quadratic program over vectors, made from the statement over arrays and functions, and the systems that solve it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree, linear
from bilevel._tree import PyTree
from bilevel.problem import At
from bilevel.statements import apply

_REFINEMENTS = 30


class Program(NamedTuple):
    """minimize ½⟨x, Qx⟩ + ⟨c, x⟩ subject to Ax = b in the rows that are `equal`, Ax ≤ b in the others.

    Attributes:
      hessian: x ↦ Qx.
      matrix: Q, where it is stated as a matrix over vectors; else None.
      push: x ↦ Ax, the equalities first.
      pull: y ↦ Aᵀy.
      c: shape (n,).
      bound: b, shape (m,).
      equal: shape (m,), boolean.
      point: params ↦ (x, y), with y = 0 where params holds no multipliers.
      params: (x, y) ↦ params.
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

    def formed(self) -> jax.Array:
        """Q as a matrix."""
        return jax.vmap(self.hessian)(jnp.eye(self.c.size, dtype=self.c.dtype)) if self.matrix is None else self.matrix

    def project(self, rows: jax.Array) -> jax.Array:
        """The nearest values of Ax that are allowed."""
        return jnp.where(self.equal, self.bound, jnp.minimum(rows, self.bound))


def program_of(who: str, at: At, params: PyTree) -> Program:
    """The program of a problem, in the precision of params. `who` asks, for the error messages."""
    stated = at.quadratic_program()
    z = params.primal if at.parts.constrained else params
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
    if at.parts.constrained and flat.size != n + bound.size:
        raise ValueError(
            f"{who}: params must be KKTSolution(primal, dual_eq, dual_ineq) with a multiplier for each of the {equalities} "
            f"equalities and {bound.size - equalities} inequalities, got {_tree.shapes(params)}"
        )

    def point(params):
        flat = ravel_pytree(params)[0]
        return flat[:n], flat[n:] if at.parts.constrained else jnp.zeros_like(bound)

    return Program(
        hessian=hessian,
        matrix=stated.Q.astype(dtype) if isinstance(stated.Q, jax.Array) and z.ndim == 1 else None,
        push=push,
        pull=(lambda y: pull(y)[0]) if sides else (lambda y: jnp.zeros(n, dtype)),
        c=jnp.ravel(jnp.broadcast_to(jnp.asarray(stated.c, dtype), shape)),
        bound=bound,
        equal=jnp.arange(bound.size) < equalities,
        point=point,
        params=lambda x, y: unravel(jnp.concatenate([x, y]) if at.parts.constrained else x),
    )


class Systems(NamedTuple):
    """Solves with Q + diag(shift) + Aᵀ diag(weights) A, by its factor if `dense`, else by products and `linear`."""

    program: Program
    dense: bool
    linear: linear.LinearSolver

    def factor(self, weights: jax.Array, shift: jax.Array) -> jax.Array:
        """The Cholesky factor, NaN if there is none; empty unless dense."""
        n, dtype = self.program.c.size, self.program.c.dtype
        if not self.dense:
            return jnp.zeros((0, 0), dtype)
        program, unit = self.program, jnp.eye(n, dtype=dtype)
        rows = jax.vmap(lambda x: program.pull(weights * program.push(x)))(unit)
        matrix = program.formed() + rows + jnp.diag(shift)
        return jnp.linalg.cholesky((matrix + matrix.T) / 2)

    def solver(
        self, factor: jax.Array, weights: jax.Array, shift: jax.Array
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """(right-hand side, start) ↦ the solution; by products, what leaves a tenth of the start's residual."""
        if self.dense:
            return lambda b, start: jax.scipy.linalg.cho_solve((factor, True), b)
        operator = linear.Operator(self._product(weights, shift), "positive_definite")

        def solve(b, start):
            left = b - operator.matvec(start)
            return start + self.linear.attempt(operator, left, jnp.zeros_like(left), 0.1 * _tree.norm(left)).value

        return solve

    def polish(self, columns: jax.Array, rows: jax.Array, kept: jax.Array, x: jax.Array, y: jax.Array):
        """Solve the program with the rows that are `kept` as equalities, without the others, from (x, y).

        The system of its conditions is regularized by δ in the units `columns` of Q's diagonal and `rows` of y over Ax;
        iterative refinement takes that back.
        """
        program, eps = self.program, _tree.eps(x)
        # Small enough for a few refinements, large enough not to drown Q in the rounding of AᵀA/δ.
        delta = eps**0.375 if self.dense else 1e-2
        weights, shift = jnp.where(kept, rows / delta, 0), eps**0.625 * columns
        solve = self.solver(self.factor(weights, shift), weights, shift)

        def refine(carry):
            x, y, _, count = carry
            above = jnp.where(kept, program.bound - program.push(x), 0)
            slope = program.hessian(x) + program.c + program.pull(y)
            move = solve(program.pull(weights * above) - slope, jnp.zeros_like(x))
            moving = largest(move) > eps * largest(x)
            return x + move, y + weights * (program.push(move) - above), moving, count + 1

        start = (x, jnp.where(kept, y, 0), jnp.array(True), jnp.int32(0))
        found = jax.lax.while_loop(lambda carry: carry[2] & (carry[3] < _REFINEMENTS), refine, start)
        polished = found[0], jnp.where(program.equal, found[1], jnp.maximum(found[1], 0))
        return _tree.where(_tree.all_finite(polished), polished, (x, y))

    def _product(self, weights, shift):
        program = self.program
        return lambda x: program.hessian(x) + shift * x + program.pull(weights * program.push(x))


def largest(x: jax.Array) -> jax.Array:
    """The maximum norm."""
    return jnp.max(jnp.abs(x), initial=0)


def positive(x: jax.Array) -> jax.Array:
    """x, or 1 where dividing by it would fail."""
    return jnp.where(x > 0, x, 1)
