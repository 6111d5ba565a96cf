"""The prox of the total variation of a signal."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel.operators import _numeric
from bilevel.operators.projection._isotonic import pool_means


def prox_total_variation(x: jax.Array, reg: Any = 1.0, scaling: Any = 1.0) -> jax.Array:
    """The prox of g(y) = reg·Σ|yᵢ₊₁ − yᵢ|, total variation denoising of a signal, exact.

    The answer is constant on pools: with τ = scaling·reg, (Σx + τ(up − down))/count on a pool, where up counts its higher
    neighbors and down its lower ones. The derivative is exact while pools and signs do not change. Sequential, about 2n
    short steps, at worst n².

    Args:
      x: vector, shape (n,), else ValueError.
      reg: penalty, a scalar, at least 0; None is 1.
      scaling: step.

    Reference: Condat, A direct algorithm for 1-D total variation denoising, 2013.
    """
    x = _numeric.vector("prox_total_variation", x)
    threshold = _numeric.threshold(reg, scaling, x)
    jumps = _jumps(*jax.lax.stop_gradient((x, threshold)))
    pools = jnp.cumsum(jnp.abs(jumps)) - jnp.abs(jumps)
    pull = (jumps - jnp.concatenate([jnp.zeros_like(jumps[:1]), jumps[:-1]])).astype(x.dtype)
    return pool_means(x + threshold * pull, pools)


@jax.jit
def _jumps(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """The sign of the jump behind each entry of the answer, 0 inside a pool.

    The pool that starts at `first` has a value between `low` and `high`; `slack_low` and `slack_high` are the dual variable
    at entry `k` for these two values, last at its bounds ±τ at `at_low` and `at_high`.
    """
    n = x.size

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        jumps, _, k, first, at_low, at_high, low, high, slack_low, slack_high = state
        ended = k >= n - 1
        following = x[jnp.minimum(k + 1, n - 1)]
        next_low, next_high = slack_low + following - low, slack_high + following - high
        down = jnp.where(ended, slack_low < 0, next_low < -threshold)
        up = ~down & jnp.where(ended, slack_high > 0, next_high > threshold)
        jump = down | up

        last = jnp.maximum(jnp.where(down, at_low, at_high), first)
        marked = jumps.at[last].set(jnp.where(jump, jnp.where(down, -1, 1), jumps[last]))
        start = jnp.minimum(last + 1, n - 1)
        # A jump: the next pool starts; at the end of the signal the other bound on its value stays.
        new_low = jnp.where(ended, jnp.where(down, x[start], low), x[start] - jnp.where(down, 0, 2 * threshold))
        new_high = jnp.where(ended, jnp.where(down, high, x[start]), x[start] + jnp.where(down, 2 * threshold, 0))
        new_slack_low = jnp.where(ended & up, x[start] - threshold - low, threshold)
        new_slack_high = jnp.where(ended & down, x[start] + threshold - high, -threshold)
        new_at_low = jnp.where(ended & up, at_low, start)
        new_at_high = jnp.where(ended & down, at_high, start)

        # No jump: entry k + 1 joins the pool, and bounds on its value tighten where the dual variable meets its own.
        count = (k + 2 - first).astype(x.dtype)
        hit_low, hit_high = next_low >= threshold, next_high <= -threshold
        own_low = jnp.where(hit_low, low + (next_low - threshold) / count, low)
        own_high = jnp.where(hit_high, high + (next_high + threshold) / count, high)

        def pick(when_jump: jax.Array, when_not: jax.Array, when_done: jax.Array) -> jax.Array:
            return jnp.where(jump, when_jump, jnp.where(ended, when_done, when_not))

        return (
            marked,
            ended & ~jump,
            pick(start, k + 1, k),
            pick(start, first, first),
            pick(new_at_low, jnp.where(hit_low, k + 1, at_low), at_low),
            pick(new_at_high, jnp.where(hit_high, k + 1, at_high), at_high),
            pick(new_low, own_low, low),
            pick(new_high, own_high, high),
            pick(new_slack_low, jnp.where(hit_low, threshold, next_low), slack_low),
            pick(new_slack_high, jnp.where(hit_high, -threshold, next_high), slack_high),
        )

    zero = jnp.array(0)
    start = (jnp.zeros(n, int), jnp.array(False), zero, zero, zero, zero)
    start = (*start, x[0] - threshold, x[0] + threshold, threshold, -threshold)
    return jax.lax.while_loop(lambda state: ~state[1], step, start)[0]
