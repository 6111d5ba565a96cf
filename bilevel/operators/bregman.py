"""Mirror maps: ∇φ, its inverse with the Bregman projection, and the divergence, for mirror descent.

A step from x against a gradient g is `m.projection(m.mirror(x) − step·g)`. On the boundary of the domain the dual
coordinates of `entropy` and `fermi_dirac` are infinite and the step stays there: zeros are kept exactly. Everything works
on pytrees and is differentiable in the interior; projections are differentiable everywhere.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logit, xlogy

from bilevel import _tree
from bilevel.operators import _numeric


def projection_kl_simplex(y: Any, value: Any = 1.0) -> Any:
    """Project from dual coordinates on simplices, in the Kullback-Leibler sense: value·softmax(y) along the last axis.

    An entry with y = −∞ is exactly 0, with derivative 0; a row whose entries are all −∞ gives NaN.

    Args:
      y: pytree of arrays, shape (…, n).
      value: the sum, a scalar; a negative number raises ValueError, a negative array gives NaN.

    Reference: Beck & Teboulle, Mirror descent and nonlinear projected subgradient methods for convex optimization, 2003.
    """

    def project(y: Any) -> jax.Array:
        y = _numeric.as_float(y)
        return _numeric.radius("projection_kl_simplex", "value", value, y) * jax.nn.softmax(y, axis=-1)

    return jax.tree.map(project, y)


@dataclasses.dataclass(frozen=True)
class MirrorMap:
    """The functions of a mirror map φ.

    Args:
      mirror: ∇φ, from a point x to dual coordinates y.
      projection: from dual coordinates to the point of the set that is closest in the divergence.
      divergence: D(x, z) = φ(x) − φ(z) − ⟨∇φ(z), x − z⟩, a scalar.

    Example:
      >>> x, gradient = jnp.array([0.5, 0.5]), jnp.array([0.0, jnp.log(3.0)])
      >>> print([f"{p:.2f}" for p in simplex_entropy.projection(simplex_entropy.mirror(x) - gradient)])
      ['0.75', '0.25']
    """

    mirror: Callable[[Any], Any]
    projection: Callable[[Any], Any]
    divergence: Callable[[Any, Any], jax.Array]


def _sum(terms: Any) -> jax.Array:
    return sum((jnp.sum(term) for term in jax.tree.leaves(terms)), start=jnp.zeros((), _tree.dtype(terms)))


def _half_square(x: Any, z: Any) -> jax.Array:
    """½‖x − z‖²."""
    return _sum(jax.tree.map(lambda x, z: (x - z) ** 2 / 2, x, z))


def _kullback_leibler(x: Any, z: Any) -> jax.Array:
    """Σ x log(x/z) − x + z."""
    return _sum(jax.tree.map(lambda x, z: xlogy(x, x) - xlogy(x, z) - x + z, x, z))


def _binary(x: Any, z: Any) -> jax.Array:
    """Σ x log(x/z) + (1 − x) log((1 − x)/(1 − z))."""
    one = jax.tree.map(lambda x: 1 - x, x), jax.tree.map(lambda z: 1 - z, z)
    return _kullback_leibler(x, z) + _kullback_leibler(*one)


euclidean = MirrorMap(lambda x: x, lambda y: y, _half_square)
"""φ = ½‖x‖² on the whole space: mirror descent is gradient descent."""

entropy = MirrorMap(lambda x: jax.tree.map(jnp.log, x), lambda y: jax.tree.map(jnp.exp, y), _kullback_leibler)
"""φ = Σ x log x − x on the positive orthant."""

simplex_entropy = dataclasses.replace(entropy, projection=projection_kl_simplex)
"""φ = Σ x log x − x on simplices along the last axis: exponentiated gradient."""

fermi_dirac = MirrorMap(lambda x: jax.tree.map(logit, x), lambda y: jax.tree.map(jax.nn.sigmoid, y), _binary)
"""φ = Σ x log x + (1 − x) log(1 − x) on the box 0 < x < 1."""

__all__ = ["MirrorMap", "entropy", "euclidean", "fermi_dirac", "projection_kl_simplex", "simplex_entropy"]
