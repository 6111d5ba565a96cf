"""The step of a map that holds a gradient step: given, from the problem's Lipschitz constant, or from a power iteration."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.problem import Problem

ITERATIONS = 8


def choose_step(given: float | None, problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> jax.Array:
    """The given step, else 1/L: L from `Problem.lipschitz`, or else the Hessian's largest eigenvalue at params."""
    if given is not None:
        return constant(given, params)
    lipschitz = problem.lipschitz
    largest = _curvature(problem, params, hparams, data) if lipschitz is None else lipschitz(hparams, data)
    return constant(1 / largest, params)


def constant(step: Any, params: PyTree) -> jax.Array:
    """A step in the precision of params; at a solution F = 0 whatever the step, so that its derivative is left out."""
    return jax.lax.stop_gradient(jnp.asarray(step, _tree.dtype(params)))


def _curvature(problem, params, hparams, data):
    """A slight underestimate of the largest eigenvalue, from a fixed start."""
    frozen_params, frozen_hparams = jax.lax.stop_gradient((params, hparams))
    _, hvp = jax.linearize(lambda x: jax.grad(problem.inner_loss)(x, frozen_hparams, data), frozen_params)
    start = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), frozen_params)

    def iterate(carry, _):
        direction, _ = carry
        product = hvp(direction)
        norm = _tree.norm(product)
        return (_tree.scale(1 / jnp.where(norm > 0, norm, 1), product), norm), None

    start = _tree.scale(1 / _tree.norm(start), start)
    (_, largest), _ = jax.lax.scan(iterate, (start, jnp.ones((), _tree.dtype(params))), length=ITERATIONS)
    return jnp.where(largest > 0, largest, 1)
