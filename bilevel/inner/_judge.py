"""The one measure by which all solvers are judged, and stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree, optimality
from bilevel._tree import PyTree
from bilevel.problem import Problem


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


def judge(problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> Verdict:
    """Judge a point. At most one gradient and one Hessian-vector product."""
    if problem.cone_program is not None:
        return _conic(problem, params, hparams, data)
    if problem.constrained:
        return _kkt(problem, params, hparams, data)
    if problem.inner_loss is not None:
        return Verdict(_gradient_step(problem, params, hparams, data), _tree.norm(params))
    if problem.fixed_point is not None:
        moved = problem.fixed_point(params, hparams, data)
        return Verdict(_tree.norm(_tree.sub(_tree.cast_like(moved, params), params)), _tree.norm(params))
    return Verdict(_root(problem, params, hparams, data), _tree.norm(params))


def reach(problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> jax.Array:
    """1/L: from `Problem.lipschitz`, or the curvature along the gradient at params. Not differentiated."""
    if problem.lipschitz is not None:
        largest = jnp.asarray(problem.lipschitz(hparams, data))
    else:
        largest = curvature_along_gradient(problem, params, hparams, data)[1]
    return jax.lax.stop_gradient(1 / largest.astype(_tree.dtype(params)))


def curvature_along_gradient(
    problem: Problem, params: PyTree, hparams: PyTree, data: PyTree
) -> tuple[PyTree, jax.Array]:
    """The inner gradient g and ‖Hg‖/‖g‖, an underestimate of the Lipschitz constant. One gradient, one product."""
    gradient, hvp = jax.linearize(lambda x: jax.grad(problem.inner_loss)(x, hparams, data), params)
    return gradient, gain(hvp, gradient)


def gain(product: Callable[[PyTree], PyTree], v: PyTree) -> jax.Array:
    """‖Av‖/‖v‖; 1 where that is zero, NaN where it is too large to tell. On a unit vector, so that only A can overflow."""
    norm = _tree.norm(v)
    found = _tree.norm(product(_tree.scale(1 / jnp.where(norm > 0, norm, 1), v)))
    return jnp.where(found == 0, 1, jnp.where(jnp.isinf(found), jnp.nan, found))


def _gradient_step(problem, params, hparams, data):
    gradient, curvature = curvature_along_gradient(problem, params, hparams, data)
    largest = curvature if problem.lipschitz is None else jnp.asarray(problem.lipschitz(hparams, data))
    step = 1 / largest.astype(_tree.dtype(params))
    moved = problem.proximal_step(_tree.add_scaled(params, -step, gradient), hparams, data, step)
    return _tree.norm(_tree.sub(moved, params))


def _root(problem, params, hparams, data):
    condition = optimality.of(problem)
    value, push = jax.linearize(lambda x: _tree.cast_like(condition.residual(problem, x, hparams, data), x), params)
    return _tree.norm(value) / gain(push, value)


def _kkt(problem, params, hparams, data):
    def functions(z):
        parts = (problem.equality(z, hparams, data), problem.inequality(z, hparams, data))
        return problem.inner_loss(z, hparams, data), *parts

    z, dual_eq, dual_ineq = params
    value, pull = jax.vjp(functions, z)
    _, along = jax.jvp(functions, (z,), (z,))
    _, curved = jax.jvp(lambda z: jax.grad(problem.inner_loss)(z, hparams, data), (z,), (z,))
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


def _conic(problem, params, hparams, data):
    program = problem.cone_program(hparams, data)
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


def _largest(tree: PyTree, dtype) -> jax.Array:
    return jnp.max(jnp.abs(ravel_pytree(tree)[0]).astype(dtype), initial=0)
