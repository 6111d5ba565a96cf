"""Projections on balls and spheres of the l1, l2 and l∞ norms: Parikh & Boyd, Proximal Algorithms, 2014, chapter 6."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.operators import _numeric
from bilevel.operators.projection._boxes import projection_box
from bilevel.operators.projection._simplex import projection_simplex


def projection_l1_sphere(x: jax.Array, value: Any = 1.0) -> jax.Array:
    """Project on the l1 sphere ‖p‖₁ = value: the projection of |x| on the simplex, with the signs of x.

    The set is not convex: where an entry of x is 0, its sign is taken as +. The derivative is as for the simplex.

    Args:
      x: vector, shape (n,), else ValueError.
      value: radius, a scalar; a negative number raises ValueError, a negative array gives NaN.
    """
    x = _numeric.vector("projection_l1_sphere", x)
    sign = jnp.where(x < 0, -1, 1).astype(x.dtype)
    return sign * projection_simplex(sign * x, value)


def projection_l1_ball(x: jax.Array, max_value: Any = 1.0) -> jax.Array:
    """Project on the l1 ball ‖p‖₁ ≤ max_value: x inside, else the projection on the sphere.

    Differentiable where ‖x‖₁ ≠ max_value and no entry is just zero; on the sphere the derivative is the identity.

    Args:
      x: vector, shape (n,), else ValueError.
      max_value: radius, a scalar; a negative number raises ValueError, a negative array gives NaN.

    Reference: Duchi et al., Efficient projections onto the l1-ball, 2008.

    Example:
      >>> print(projection_l1_ball(jnp.array([3.0, -2.0]), 3.0))
      [ 2. -1.]
    """
    x = _numeric.vector("projection_l1_ball", x)
    size = _numeric.radius("projection_l1_ball", "max_value", max_value, x)
    return jnp.where(jnp.sum(jnp.abs(x)) <= size, x, projection_l1_sphere(x, size))


def projection_l2_sphere(x: Any, value: Any = 1.0) -> Any:
    """Project on the l2 sphere ‖p‖₂ = value: value·x/‖x‖, with the norm over all leaves.

    At x = 0 every point of the sphere is closest; the one with equal entries is returned, with derivative 0 in x.

    Args:
      x: any pytree.
      value: radius, a scalar; a negative number raises ValueError, a negative array gives NaN.
    """
    x = _numeric.as_floats(x)
    size = _numeric.radius("projection_l2_sphere", "value", value, x)
    length = _tree.norm(x)
    even = jax.tree.map(lambda a: jnp.full_like(a, size / _tree.size(x) ** 0.5), x)
    return _tree.where(length == 0, even, _tree.scale(_tree.divide(size, length), x))


def projection_l2_ball(x: Any, max_value: Any = 1.0) -> Any:
    """Project on the l2 ball ‖p‖₂ ≤ max_value: x·min(1, max_value/‖x‖), with the norm over all leaves.

    Differentiable where ‖x‖ ≠ max_value; on the sphere the derivative is the identity.

    Args:
      x: any pytree.
      max_value: radius, a scalar; a negative number raises ValueError, a negative array gives NaN.
    """
    x = _numeric.as_floats(x)
    size, length = _numeric.radius("projection_l2_ball", "max_value", max_value, x), _tree.norm(x)
    return _tree.scale(jnp.where(length <= size, 1, _tree.divide(size, length)), x)


def projection_linf_ball(x: Any, max_value: Any = 1.0) -> Any:
    """Project on the l∞ ball max|p| ≤ max_value: each entry clipped.

    Differentiable where |x| ≠ max_value.

    Args:
      x: any pytree.
      max_value: radius, a scalar; a negative number raises ValueError, a negative array gives NaN.
    """
    x = _numeric.as_floats(x)
    size = _numeric.radius("projection_linf_ball", "max_value", max_value, x)
    return projection_box(x, (-size, size))
