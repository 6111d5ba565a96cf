"""How curved the inner loss is, and the steps that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.problem import At

ITERATIONS = 8  # of the power iteration


def choose_step(given: float | None, at: At, params: PyTree) -> jax.Array:
    """The given step, else 1/L: L as the problem states it, or the Hessian's largest eigenvalue at params."""
    if given is not None:
        return constant(given, params)
    lipschitz = at.lipschitz()
    return constant(1 / (_largest_eigenvalue(at, params) if lipschitz is None else lipschitz), params)


def constant(step: Any, params: PyTree) -> jax.Array:
    """A step in the precision of params; at a solution F = 0 whatever the step, so that its derivative is left out."""
    return jax.lax.stop_gradient(jnp.asarray(step, _tree.dtype(params)))


def unit_step(at: At, params: PyTree) -> jax.Array:
    """1/L: L as the problem states it, or the curvature along the gradient at params. Not differentiated."""
    lipschitz = at.lipschitz()
    largest = curvature_along_gradient(at, params)[1] if lipschitz is None else lipschitz
    return jax.lax.stop_gradient(1 / largest.astype(_tree.dtype(params)))


def curvature_along_gradient(at: At, params: PyTree) -> tuple[PyTree, jax.Array]:
    """The inner gradient g and ‖Hg‖/‖g‖, an underestimate of the Lipschitz constant. One gradient, one product."""
    gradient, hvp = jax.linearize(at.gradient, params)
    return gradient, gain(hvp, gradient)


def gain(product: Callable[[PyTree], PyTree], v: PyTree) -> jax.Array:
    """‖Av‖/‖v‖; 1 where that is zero, NaN where it is too large to tell. On a unit vector, so that only A can overflow."""
    norm = _tree.norm(v)
    found = _tree.norm(product(_tree.scale(1 / jnp.where(norm > 0, norm, 1), v)))
    return jnp.where(found == 0, 1, jnp.where(jnp.isinf(found), jnp.nan, found))


def _largest_eigenvalue(at: At, params: PyTree) -> jax.Array:
    """A slight underestimate, from a fixed start."""
    frozen = at.replace(hparams=jax.lax.stop_gradient(at.hparams))
    frozen_params = jax.lax.stop_gradient(params)
    _, hvp = jax.linearize(frozen.gradient, frozen_params)
    start = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), frozen_params)

    def iterate(carry: tuple[PyTree, jax.Array], none: None) -> tuple[tuple[PyTree, jax.Array], None]:
        del none
        direction = carry[0]
        product = hvp(direction)
        norm = _tree.norm(product)
        return (_tree.scale(1 / jnp.where(norm > 0, norm, 1), product), norm), None

    start = _tree.scale(1 / _tree.norm(start), start)
    (_, largest), _ = jax.lax.scan(iterate, (start, jnp.ones((), _tree.dtype(params))), length=ITERATIONS)
    return jnp.where(largest > 0, largest, 1)
