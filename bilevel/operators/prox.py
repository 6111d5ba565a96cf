"""Proximal operators prox_{scaling·g}(x) = argmin over z of ½‖z − x‖² + scaling·g(z), on pytrees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def prox_none(x: Any, hyperparams: Any = None, scaling: Any = 1.0) -> Any:
    """The prox of g = 0: x itself."""
    del hyperparams, scaling
    return x


def prox_lasso(x: Any, l1reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Soft thresholding, the prox of g(x) = Σ l1reg·|x|.

    Args:
      x: any pytree.
      l1reg: penalty, a scalar or of the structure of x.
      scaling: step.

    Where |x| is just at the threshold the derivative is 0.
    """

    def shrink(x, penalty):
        threshold = jnp.asarray(penalty * scaling, x.dtype)
        return jnp.where(jnp.abs(x) > threshold, x - jnp.sign(x) * threshold, 0)

    if jax.tree.structure(l1reg) == jax.tree.structure(x):
        return jax.tree.map(shrink, x, l1reg)
    return jax.tree.map(lambda leaf: shrink(leaf, l1reg), x)
