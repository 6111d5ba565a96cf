"""The curvature of the inner loss, and the step sizes that follow from it."""

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
    """A step in the precision of params, without a derivative: at a solution F = 0 for every step."""
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
    """‖Av‖/‖v‖; 1 where that is zero, NaN where it overflows. Computed at v/‖v‖, so that only A can overflow."""
    found = _tree.norm(product(_tree.normalized(v)[1]))
    return jnp.where(found == 0, 1, jnp.where(jnp.isinf(found), jnp.nan, found))


def _largest_eigenvalue(at: At, params: PyTree) -> jax.Array:
    """A slight underestimate, from a fixed start."""
    frozen = at.replace(hparams=jax.lax.stop_gradient(at.hparams))
    frozen_params = jax.lax.stop_gradient(params)
    _, hvp = jax.linearize(frozen.gradient, frozen_params)
    start = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), frozen_params)

    def iterate(direction: PyTree, _: None) -> tuple[PyTree, jax.Array]:
        norm, following = _tree.normalized(hvp(direction))
        return following, norm

    _, norms = jax.lax.scan(iterate, _tree.normalized(start)[1], length=ITERATIONS)
    return _tree.positive(norms[-1])
