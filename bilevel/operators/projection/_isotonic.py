"""Isotonic regression: the projection on the vectors with sorted entries."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel.operators import _numeric


def projection_isotonic(
    x: jax.Array, increasing: bool = True, y_min: Any = -jnp.inf, y_max: Any = jnp.inf
) -> jax.Array:
    """Project a vector on those with y_min ≤ p₁ ≤ … ≤ pₙ ≤ y_max (≥ if not increasing): isotonic regression.

    Neighbors that are out of order are pooled to their mean, then the means are clipped. The derivative averages over
    each pool and is exact while the pools do not change. Sequential, about 2n short steps. NaN if y_min > y_max.

    Args:
      x: vector, shape (n,), else ValueError.
      increasing: whether the entries of the answer increase or decrease.
      y_min: lower bound, a scalar.
      y_max: upper bound, a scalar.

    Reference: Best & Chakravarti, Active set algorithms for isotonic regression, 1990.

    Example:
      >>> print(projection_isotonic(jnp.array([1.0, 4.0, 2.0])))
      [1. 3. 3.]
    """
    x = _numeric.vector("projection_isotonic", x)
    if not increasing:
        return -projection_isotonic(-x, True, -_numeric.cast(y_max, x), -_numeric.cast(y_min, x))
    low, high = _numeric.cast(y_min, x), _numeric.cast(y_max, x)
    pooled = pool_means(x, _pools(jax.lax.stop_gradient(x)))
    return _numeric.nan_unless(low <= high, jnp.clip(pooled, low, high))


def pool_means(x: jax.Array, pools: jax.Array) -> jax.Array:
    """Each entry replaced by the mean of its pool; the pools are numbered along the vector."""
    totals = jax.ops.segment_sum(x, pools, x.size, indices_are_sorted=True)
    counts = jax.ops.segment_sum(jnp.ones_like(x), pools, x.size, indices_are_sorted=True)
    return (totals / jnp.maximum(counts, 1))[pools]


@jax.jit
def _pools(x: jax.Array) -> jax.Array:
    """The number of each entry's pool, by a stack of pools that merge while they are out of order."""
    n = x.size

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        means, counts, top, following = state
        last, before = top - 1, top - 2
        merge = (top > 1) & (means[before] >= means[last]) | (following >= n)
        place = jnp.where(merge, before, top)
        count = jnp.where(merge, counts[before] + counts[last], 1)
        share = (counts[last] / jnp.maximum(count, 1)).astype(x.dtype)
        mean = jnp.where(merge, means[before] + share * (means[last] - means[before]), x[jnp.minimum(following, n - 1)])
        means, counts = means.at[place].set(mean), counts.at[place].set(count)
        return means, counts, place + 1, jnp.where(merge, following, following + 1)

    def go_on(state: tuple[Any, ...]) -> jax.Array:
        means, _, top, following = state
        return (following < n) | ((top > 1) & (means[top - 2] >= means[top - 1]))

    start = (jnp.zeros_like(x), jnp.zeros(n, int), jnp.array(0), jnp.array(0))
    _, counts, top, _ = jax.lax.while_loop(go_on, step, start)
    ends = jnp.where(jnp.arange(n) < top, jnp.cumsum(counts), n)
    return jnp.searchsorted(ends, jnp.arange(n), side="right")
