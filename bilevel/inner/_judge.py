"""The one measure by which all solvers are judged, and stop."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree, optimality
from bilevel._curvature import curvature_along_gradient, gain
from bilevel._tree import PyTree
from bilevel.problem import At


class Verdict(NamedTuple):
    """How far a point is from a solution, and its size, in the same units: their ratio is scale-free.

    A problem with an inner loss: ‖x − G(x − ∇f(x)/L)‖₂ against ‖x‖₂, one (proximal) gradient step of length 1/L, L from
    `Problem.lipschitz` or the curvature along the gradient. A fixed point: ‖x − T(x)‖₂ against ‖x‖₂. A root of F: the move
    that would cancel F along itself, ‖F‖²/‖∂F·F‖, against ‖x‖₂. Constraint functions: the largest of the KKT conditions'
    errors, each in the maximum norm and relative to the largest of its terms, against 1; a cone program likewise, its
    embedding's F against its terms.
    """

    distance: jax.Array
    size: jax.Array


def judge(at: At, params: PyTree) -> Verdict:
    """Judge a point. At most one gradient and one Hessian-vector product."""
    parts = at.parts
    if parts.kind in ("kkt", "conic"):
        return _conic(at, params) if parts.kind == "conic" else _kkt(at, params)
    if parts.fixed_point is not None:
        moved = _tree.cast_like(at.fixed_point(params), params)
        return Verdict(_tree.norm(_tree.sub(moved, params)), _tree.norm(params))
    distance = _root(at, params) if parts.inner_loss is None else _gradient_step(at, params)
    return Verdict(distance, _tree.norm(params))


def _gradient_step(at: At, params: PyTree) -> jax.Array:
    gradient, curvature = curvature_along_gradient(at, params)
    lipschitz = at.lipschitz()
    step = 1 / (curvature if lipschitz is None else lipschitz).astype(_tree.dtype(params))
    moved = at.proximal_step(_tree.add_scaled(params, -step, gradient), step)
    return _tree.norm(_tree.sub(moved, params))


def _root(at: At, params: PyTree) -> jax.Array:
    condition = optimality.of(at.problem)
    value, push = jax.linearize(lambda x: _tree.cast_like(condition.residual(at, x), x), params)
    return _tree.norm(value) / gain(push, value)


def _kkt(at: At, params: PyTree) -> Verdict:
    def functions(z: PyTree) -> tuple[jax.Array, PyTree, PyTree]:
        return at.inner_loss(z), at.equality(z), at.inequality(z)

    z, dual_eq, dual_ineq = params
    value, pull = jax.vjp(functions, z)
    _, along = jax.jvp(functions, (z,), (z,))
    _, curved = jax.jvp(at.gradient, (z,), (z,))
    one, zero = jnp.ones_like(value[0]), jnp.zeros_like(value[0])
    nothing = jax.tree.map(jnp.zeros_like, (dual_eq, dual_ineq))
    terms = [pull(w)[0] for w in ((one, *nothing), (zero, dual_eq, nothing[1]), (zero, nothing[0], dual_ineq))]
    stationarity = _tree.add_scaled(_tree.add_scaled(terms[0], 1, terms[1]), 1, terms[2])
    above = jax.tree.map(lambda g: jnp.maximum(g, 0), value[2])
    below = jax.tree.map(lambda dual: jnp.minimum(dual, 0), dual_ineq)
    gap = jax.tree.map(jnp.multiply, dual_ineq, value[2])
    dtype = _tree.dtype(z)  # of the multipliers there may be none
    errors = [
        _relative(stationarity, [*terms, curved], dtype),
        _relative((value[1], above), [along[1:]], dtype),
        _relative(below, [dual_ineq], dtype),
        _relative(jax.tree.map(jnp.sum, gap), [along[0], jax.tree.map(jnp.multiply, dual_ineq, along[2])], dtype),
    ]
    return Verdict(jnp.stack(errors).max(), jnp.ones((), dtype))


def _conic(at: At, params: PyTree) -> Verdict:
    program = at.cone_program()
    c, e, d, _ = program
    z, dual, slack = optimality.Conic.recover(params, program)
    pull, push = dual @ e, e @ z
    errors = [
        _relative(pull + c, [pull, c], z.dtype),
        _relative(push + slack - d, [push, slack, d], z.dtype),
        _relative(jnp.vdot(c, z) + jnp.vdot(d, dual), [jnp.vdot(c, z), jnp.vdot(d, dual)], z.dtype),
    ]
    return Verdict(jnp.stack(errors).max(), jnp.ones((), z.dtype))


def _relative(error: PyTree, terms: list[PyTree], dtype: Any) -> jax.Array:
    """The largest entry of an error against the largest entry of its terms."""
    size = _largest(terms, dtype)
    return _largest(error, dtype) / jnp.where(size > 0, size, 1)


def _largest(tree: PyTree, dtype: Any) -> jax.Array:
    return jnp.max(jnp.abs(ravel_pytree(tree)[0]).astype(dtype), initial=0)
