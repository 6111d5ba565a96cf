"""A line search for the weak Wolfe conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_ARMIJO, _CURVATURE, _MAX_TRIALS = 1e-4, 0.9, 30


class Trial(NamedTuple):
    """The state of a search."""

    step: jax.Array  # the last one tried, to which value and gradient belong
    following: jax.Array
    low: jax.Array
    high: jax.Array
    value: jax.Array
    gradient: jax.Array
    accepted: jax.Array
    trials: jax.Array


def wolfe_search(
    evaluate: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    x: jax.Array,
    value: jax.Array,
    direction: jax.Array,
    slope: jax.Array,
) -> Trial:
    """Bracket and bisect for the weak Wolfe conditions from a unit step."""
    rounding = 10 * jnp.finfo(x.dtype).eps * jnp.abs(value)
    invisible = -slope <= rounding / 10  # the loss cannot show what is left to gain: trust the quasi-Newton step

    def look(step, low, high, count):
        new_value, gradient = evaluate(x + step * direction)
        new_slope = direction @ gradient
        decreased = new_value <= value + _ARMIJO * step * slope
        flat = (new_value <= value + rounding) & (new_slope <= (2 * _ARMIJO - 1) * slope)
        low_enough = decreased | flat | (invisible & (new_value <= value + rounding))
        steep = (new_slope < _CURVATURE * slope) & ~invisible
        accepted = low_enough & ~steep
        high = jnp.where(low_enough, high, step)
        low = jnp.where(low_enough & steep, step, low)
        following = jnp.where(jnp.isinf(high), 2 * low, (low + high) / 2)
        return Trial(step, following, low, high, new_value, gradient, accepted, count + 1)

    zero, infinity = jnp.zeros((), x.dtype), jnp.array(jnp.inf, x.dtype)
    return jax.lax.while_loop(
        lambda t: ~t.accepted & (t.trials < _MAX_TRIALS),
        lambda t: look(t.following, t.low, t.high, t.trials),
        look(jnp.ones((), x.dtype), zero, infinity, jnp.int32(0)),
    )
