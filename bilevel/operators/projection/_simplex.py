"""Projections on the simplex, with and without a bound on the number of entries."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel.operators import _numeric

_NETWORK_BELOW = 17


def projection_simplex(x: jax.Array, value: Any = 1.0) -> jax.Array:
    """Project a vector on the simplex {p ≥ 0, Σp = value}: p = max(x − τ, 0).

    The derivative is the derivative of the projection on the face of the answer, p > 0 (an element of the conservative
    Jacobian if an entry is just zero): ṗ = s∘(ẋ − mean over s of ẋ) + s·valuė/|s|, with s the support.

    Args:
      x: vector, shape (n,), else ValueError.
      value: the sum, a scalar; a negative number raises ValueError, a negative array gives NaN.

    Reference: Held, Wolfe & Crowder, Validation of subgradient optimization, 1974; sorting as in Duchi et al. 2008.

    Example:
      >>> print(projection_simplex(jnp.array([1.0, 0.5, -1.0])))
      [0.75 0.25 0.  ]
    """
    x = _numeric.vector("projection_simplex", x)
    return _simplex(x, _numeric.radius("projection_simplex", "value", value, x))


@jax.custom_jvp
def _simplex(x: jax.Array, value: jax.Array) -> jax.Array:
    # The threshold is the largest of the candidate thresholds (Σ_{i≤k} x₍ᵢ₎ − value)/k. Large entries would absorb the sum.
    x = x - jnp.max(x)
    excess = jnp.cumsum(_sort_descending(x)) - value
    return jnp.maximum(x - jnp.max(excess / jnp.arange(1, x.size + 1, dtype=x.dtype)), 0)


@_simplex.defjvp
def _simplex_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    projected = _simplex(*primals)
    x_dot, value_dot = tangents
    support = (projected > 0).astype(projected.dtype)
    shift = (jnp.sum(support * x_dot) - value_dot) / jnp.maximum(jnp.sum(support), 1)
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


def projection_sparse_simplex(
    x: jax.Array, max_nz: int, use_approx_max_nz: bool = False, value: Any = 1.0
) -> jax.Array:
    """Project on the vectors of the simplex with at most max_nz nonzero entries: keep the largest entries and project them.

    The set is not convex; of several closest points, the one with the first entries is returned. Differentiable where
    the kept entries do not change and none of them is just zero.

    Args:
      x: vector, shape (n,), else ValueError.
      max_nz: number of entries that may differ from 0, at least 1, else ValueError.
      use_approx_max_nz: find the largest entries by `jax.lax.approx_max_k`, faster on accelerators, not always right.
      value: the sum, as in `projection_simplex`.

    Reference: Kyrillidis et al., Sparse projections onto the simplex, 2013.
    """
    x = _numeric.vector("projection_sparse_simplex", x)
    if max_nz < 1:
        raise ValueError(f"projection_sparse_simplex: max_nz must be at least 1, got {max_nz}")
    largest = jax.lax.approx_max_k if use_approx_max_nz else jax.lax.top_k
    kept, places = largest(x, min(max_nz, x.size))
    return jnp.zeros_like(x).at[places].set(projection_simplex(kept, value))
