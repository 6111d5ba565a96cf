"""The distance by which all solvers are judged: how far one (proximal) gradient step of length 1/L goes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.problem import Problem


def displacement(problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> jax.Array:
    """‖x − G(x − ∇f(x)/L)‖₂, L from `Problem.lipschitz` or the curvature along the gradient. One gradient, one product."""
    gradient, hvp = jax.linearize(lambda x: jax.grad(problem.inner_loss)(x, hparams, data), params)
    if problem.lipschitz is not None:
        largest = jnp.asarray(problem.lipschitz(hparams, data), _tree.dtype(params))
    else:
        norm = _tree.norm(gradient)
        largest = _tree.norm(hvp(gradient)) / jnp.where(norm > 0, norm, 1)
    step = 1 / jnp.where(largest > 0, largest, 1)
    moved = problem.proximal_step(_tree.add_scaled(params, -step, gradient), hparams, data, step)
    return _tree.norm(_tree.sub(moved, params))
