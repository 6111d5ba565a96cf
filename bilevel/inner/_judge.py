"""The one measure by which every point is judged, and every solver stops."""

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
    errors, each in the maximum norm and relative to the largest of its terms, against 1. A cone program: the same for F of
    its embedding.
    """

    distance: jax.Array
    size: jax.Array


def judge(at: At, params: PyTree) -> Verdict:
    """Judge a point by at most one gradient and one Hessian-vector product."""
    parts = at.parts
    if parts.kind in ("kkt", "conic"):
        largest = (_conic if parts.kind == "conic" else _kkt)(at, params)
        return Verdict(largest, jnp.ones_like(largest))
    if parts.fixed_point is not None:
        moved = _tree.cast_like(at.fixed_point(params), params)
    elif parts.inner_loss is None:
        return Verdict(_root(at, params), _tree.norm(params))
    else:
        gradient, curvature = curvature_along_gradient(at, params)
        lipschitz = at.lipschitz()
        step = 1 / (curvature if lipschitz is None else lipschitz).astype(_tree.dtype(params))
        moved = gradient_step(at, params, step, gradient)
    return Verdict(_tree.norm(_tree.sub(moved, params)), _tree.norm(params))


def gradient_step(at: At, params: PyTree, step: jax.Array, gradient: PyTree = None) -> PyTree:
    """One (proximal or projected) gradient step; the gradient is computed unless it is given."""
    gradient = at.gradient(params) if gradient is None else gradient
    return at.proximal_step(_tree.add_scaled(params, -step, gradient), step)


def _root(at: At, params: PyTree) -> jax.Array:
    condition = optimality.of(at.problem)
    value, push = jax.linearize(lambda x: _tree.cast_like(condition.residual(at, x), x), params)
    return _tree.norm(value) / gain(push, value)


def _kkt(at: At, params: PyTree) -> jax.Array:
    def functions(z: PyTree) -> tuple[jax.Array, PyTree, PyTree]:
        return at.inner_loss(z), at.equality(z), at.inequality(z)

    z, dual_eq, dual_ineq = params
    value, pull = jax.vjp(functions, z)
    _, along = jax.jvp(functions, (z,), (z,))
    _, curved = jax.jvp(at.gradient, (z,), (z,))
    one, zero = jnp.ones_like(value[0]), jnp.zeros_like(value[0])
    nothing = _tree.zeros_like((dual_eq, dual_ineq))
    terms = [pull(w)[0] for w in ((one, *nothing), (zero, dual_eq, nothing[1]), (zero, nothing[0], dual_ineq))]
    stationarity = _tree.add_scaled(_tree.add_scaled(terms[0], 1, terms[1]), 1, terms[2])
    above = jax.tree.map(lambda g: jnp.maximum(g, 0), value[2])
    below = jax.tree.map(lambda dual: jnp.minimum(dual, 0), dual_ineq)
    gap, moved_gap = (jax.tree.map(jnp.multiply, dual_ineq, g) for g in (value[2], along[2]))
    dtype = _tree.dtype(z)  # of the multipliers there may be none
    errors = (
        relative(stationarity, [*terms, curved], dtype),
        relative((value[1], above), [along[1:]], dtype),
        relative(below, [dual_ineq], dtype),
        relative(jax.tree.map(jnp.sum, gap), [along[0], moved_gap], dtype),
    )
    return jnp.stack(errors).max()


def _conic(at: At, params: PyTree) -> jax.Array:
    program = at.cone_program()
    c, e, d, _ = program
    z, dual, slack = optimality.Conic.recover(params, program)
    sums = [dual @ e, c], [e @ z, slack, -d], [jnp.vdot(c, z), jnp.vdot(d, dual)]
    return jnp.stack([relative(sum(terms), terms, z.dtype) for terms in sums]).max()


def relative(error: PyTree, terms: list[PyTree], dtype: Any) -> jax.Array:
    """The largest entry of an error, relative to the largest entry of its terms."""
    return _largest(error, dtype) / _tree.positive(_largest(terms, dtype))


def _largest(tree: PyTree, dtype: Any) -> jax.Array:
    return jnp.max(jnp.abs(ravel_pytree(tree)[0]).astype(dtype), initial=0)
