"""Projections on boxes (Parikh & Boyd, Proximal Algorithms, 2014, chapter 6) and on sections of boxes."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.operators import _numeric


def projection_non_negative(x: Any, hyperparams: Any = None) -> Any:
    """Project on the non-negative orthant: max(x, 0), leaf by leaf, with slope 0 at 0.

    Args:
      x: any pytree.
      hyperparams: not used; for a common signature.
    """
    del hyperparams
    return jax.tree.map(jax.nn.relu, x)


def projection_box(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project on the box lower ≤ x ≤ upper; NaN where lower > upper.

    Differentiable where x differs from the bounds.

    Args:
      x: any pytree.
      hyperparams: (lower, upper), each a scalar or with the structure of x.

    Example:
      >>> print(projection_box(jnp.array([-2.0, 0.5, 3.0]), (0.0, jnp.array([1.0, 1.0, 2.0]))))
      [0.  0.5 2. ]
    """
    lower, upper = (_numeric.spread(bound, x) for bound in hyperparams)

    def clip(x: Any, low: Any, high: Any) -> jax.Array:
        low, high = _numeric.cast(low, x), _numeric.cast(high, x)
        return _numeric.nan_unless(low <= high, jnp.clip(x, low, high))

    return jax.tree.map(clip, x, lower, upper)


def projection_hypercube(x: Any, unit: Any = 1.0) -> Any:
    """Project on the cube 0 ≤ x ≤ unit, leaf by leaf; NaN where unit < 0.

    Args:
      x: any pytree.
      unit: length of an edge, a scalar or with the structure of x.
    """
    return projection_box(x, (0.0, unit))


def projection_box_section(
    x: jax.Array, hyperparams: tuple[Any, Any, Any, Any], check_feasible: bool = False
) -> jax.Array:
    """Project on a box cut by a hyperplane, {p: α ≤ p ≤ β, ⟨w, p⟩ = c}: p = clip(x + τw, α, β).

    τ is exact: its interval between two breakpoints is found by bisection over the sorted breakpoints. The derivative is the
    derivative of the projection on the face of the answer. NaN if the set is empty.

    Args:
      x: vector, shape (n,), else ValueError.
      hyperparams: (α, β, w, c); α, β and w scalars or vectors of shape (n,), w of any sign, c a scalar; else ValueError.
      check_feasible: raise ValueError if the set is empty; only outside of JAX transformations.

    Reference: Brucker, An O(n) algorithm for quadratic knapsack problems, 1984.
    """
    who = "projection_box_section"
    x = _numeric.vector(who, x)
    for name, value in zip(("alpha", "beta", "w"), hyperparams[:3], strict=True):
        if jnp.ndim(value):
            _numeric.require_shape(who, name, value, x.shape, "one entry for each of x, or a scalar")
    _numeric.require_shape(who, "c", hyperparams[3], (), "a scalar")
    alpha, beta, w = (jnp.broadcast_to(_numeric.cast(value, x), x.shape) for value in hyperparams[:3])
    c = _numeric.cast(hyperparams[3], x)
    # The answer is the same for all x + tw; at the right t, large entries do not absorb c.
    x = x + w * jax.lax.stop_gradient(_on_section(x, alpha, beta, w, c)[2])
    p, free, _ = _on_section(x, alpha, beta, w, c)
    size = jnp.abs(c) + jnp.sum(jnp.abs(w) * (jnp.abs(p) + jnp.where(free, jnp.abs(x), 0)))
    slack = _numeric.tolerance(x) * size
    holds = jnp.all(alpha <= beta) & (jnp.abs(jnp.sum(w * p) - c) <= slack)
    return _numeric.feasible(who, "the section of the box", holds, p, check_feasible)


def _on_section(
    x: jax.Array, alpha: jax.Array, beta: jax.Array, w: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The projection, the entries between their bounds, and τ."""
    at_low, at_high, near = _section_faces(*jax.lax.stop_gradient((x, alpha, beta, w, c)))
    free = ~(at_low | at_high) & (w != 0)
    bound = jnp.where(at_low, alpha, jnp.where(at_high, beta, jnp.clip(x, alpha, beta)))
    rest = c - jnp.sum(w * jnp.where(free, x, bound))
    tau = _tree.divide(rest, jnp.sum(jnp.where(free, w, 0) ** 2))
    return jnp.where(free, x + w * tau, bound), free, jnp.where(jnp.any(free), tau, near)


@jax.jit
def _section_faces(
    x: jax.Array, alpha: jax.Array, beta: jax.Array, w: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which entries are at their lower and at their upper bound at the solution, and a breakpoint next to τ."""
    slope = jnp.where(w == 0, 1, w)
    ends = jnp.stack([(alpha - x) / slope, (beta - x) / slope])
    first = jnp.where(w == 0, -jnp.inf, ends.min(0))
    last = jnp.where(w == 0, jnp.inf, ends.max(0))
    points = jnp.sort(jnp.concatenate([first, last]))

    def total(tau: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(w == 0, 0, w * jnp.clip(x + tau * slope, alpha, beta)))

    def halve(_: Any, state: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        low, high = state
        middle = (low + high) // 2
        below = total(points[middle]) <= c
        open_ = high - low > 1
        return jnp.where(open_ & below, middle, low), jnp.where(open_ & ~below, middle, high)

    # Invariant: total(points[low]) ≤ c < total(points[high]), with −1 and 2n standing for −∞ and ∞.
    low, high = jax.lax.fori_loop(0, (2 * x.size + 1).bit_length(), halve, (-1, points.size))
    left = jnp.where(low < 0, -jnp.inf, points[low])
    right = jnp.where(high < points.size, points[high], jnp.inf)
    before, after = (right <= first) & (w != 0), (last <= left) & (w != 0)
    near = jnp.where(jnp.isfinite(left), left, jnp.where(jnp.isfinite(right), right, 0))
    return jnp.where(w > 0, before, after), jnp.where(w > 0, after, before), near
