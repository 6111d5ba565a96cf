"""Euclidean projections, differentiable with respect to every real argument. Rows by `jax.vmap`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_NETWORK_BELOW = 17


def projection_non_negative(x: Any, hyperparams: Any = None) -> Any:
    """Project on the non-negative orthant: max(x, 0), leaf by leaf.

    Args:
      x: any pytree.
      hyperparams: not used; for a common signature.
    """
    del hyperparams
    return jax.tree.map(jax.nn.relu, x)


def projection_box(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project on the box lower ≤ x ≤ upper.

    Args:
      x: any pytree.
      hyperparams: (lower, upper), each a scalar or of the structure of x.
    """
    lower, upper = (
        jax.tree.map(lambda _, bound=bound: bound, x) if _is_scalar(bound) else bound for bound in hyperparams
    )
    return jax.tree.map(lambda x, low, high: jnp.clip(x, _as(low, x), _as(high, x)), x, lower, upper)


def _is_scalar(value: Any) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(value)) and jnp.ndim(value) == 0


def _as(value: Any, x: Any) -> jax.Array:
    return jnp.asarray(value).astype(jnp.result_type(x))


def projection_simplex(x: jax.Array, value: Any = 1.0) -> jax.Array:
    """Project a vector on the simplex {p ≥ 0, Σp = value}: p = max(x − τ, 0).

    The derivative is that of the face on which the answer lies, p > 0 (an element of the conservative Jacobian where an
    entry is just zero): ṗ = s∘(ẋ − mean over s of ẋ) + s·valuė/|s|, with s the support.

    Args:
      x: vector, shape (n,).
      value: the sum, positive.

    Reference: Held, Wolfe & Crowder 1974; sorting as in Duchi et al. 2008.
    """
    return _simplex(x, jnp.asarray(value, x.dtype))


@jax.custom_jvp
def _simplex(x: jax.Array, value: jax.Array) -> jax.Array:
    descending = _sort_descending(x)
    excess = jnp.cumsum(descending) - value
    count = jnp.arange(1, x.size + 1)
    # The threshold is the largest of the candidate thresholds (Σ_{i≤k} x₍ᵢ₎ − value)/k.
    threshold = jnp.max(excess / count.astype(x.dtype))
    return jnp.maximum(x - threshold, 0)


@_simplex.defjvp
def _simplex_jvp(primals, tangents):
    projected = _simplex(*primals)
    x_dot, value_dot = tangents
    support = (projected > 0).astype(projected.dtype)
    shift = (jnp.sum(support * x_dot) - value_dot) / jnp.sum(support)
    return projected, support * (x_dot - shift)


def _sort_descending(x: jax.Array) -> jax.Array:
    """Sort a vector; a short one by a network of min/max, which `vmap` turns into plain vector arithmetic."""
    if x.size >= _NETWORK_BELOW:
        return -jnp.sort(-x)
    values = list(x)
    for i, j in _odd_even_merge(len(values)):
        values[i], values[j] = jnp.maximum(values[i], values[j]), jnp.minimum(values[i], values[j])
    return jnp.stack(values)


def _odd_even_merge(n: int) -> list[tuple[int, int]]:
    """Comparators of Batcher's odd-even merge sort for n inputs (Knuth, TAOCP 3, 5.2.2, algorithm M)."""
    pairs = []
    top = 1 << max(n - 1, 1).bit_length() - 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs
