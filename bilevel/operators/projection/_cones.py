"""Projections on convex cones: second-order, positive semidefinite, exponential."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.operators import _numeric
from bilevel.operators.projection import _exponential


def projection_second_order_cone(x: jax.Array) -> jax.Array:
    """Project x = (t, z) on the second-order cone {(t, z): ‖z‖ ≤ t}.

    x itself inside the cone, 0 where ‖z‖ ≤ −t, else ½(t + ‖z‖)·(1, z/‖z‖). Differentiable where ‖z‖ ≠ |t|; on the
    cone the derivative is the identity, on its negative 0 (elements of the conservative Jacobian).

    Args:
      x: vector, shape (1 + n,), t first, else ValueError.

    Reference: Parikh & Boyd, Proximal Algorithms, 2014, section 6.3.2.
    """
    x = _numeric.array("projection_second_order_cone", x, 1, "vector (t, z)")
    t, z = x[0], x[1:]
    length = _tree.norm(z)
    mean = (t + length) / 2
    outside = jnp.concatenate([mean[None], _tree.divide(mean, length) * z])
    return jnp.where(t >= length, x, jnp.where(t <= -length, jnp.zeros_like(x), outside))


def projection_psd_cone(x: jax.Array) -> jax.Array:
    """Project a symmetric matrix on the positive semidefinite cone: V max(w, 0) Vᵀ for x = V diag(w) Vᵀ.

    A matrix that is not symmetric is replaced by its symmetric part, which has the same projection. Derivatives of any order
    are divided differences, finite and right at repeated eigenvalues; where an eigenvalue is 0, an element of the
    conservative Jacobian (with 0 between two zero eigenvalues).

    Args:
      x: matrix, shape (n, n), else ValueError.

    Reference: Malick & Sendov, Clarke generalized Jacobian of the projection onto the cone of positive semidefinite
    matrices, 2006; Bhatia, Matrix Analysis, theorem V.3.3 (Daleckii & Krein).
    """
    x = _numeric.array("projection_psd_cone", x, 2, "matrix")
    _numeric.require_shape("projection_psd_cone", "x", x, (len(x),) * 2, "square")
    return positive_part((x + x.T) / 2)


@jax.custom_jvp
def positive_part(x: jax.Array) -> jax.Array:
    """V max(w, 0) Vᵀ for a symmetric x = V diag(w) Vᵀ, differentiable to any order."""
    w, v = jnp.linalg.eigh(x, symmetrize_input=False)
    return (v * jnp.maximum(w, 0)) @ v.T


@positive_part.defjvp
def _positive_part_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    positive = positive_part(x)
    return positive, _derivative(x, positive, x_dot)


def _derivative(x: jax.Array, positive: jax.Array, direction: jax.Array) -> jax.Array:
    """V [(w⁺ᵢ + w⁺ⱼ)/(|wᵢ| + |wⱼ|) ∘ Vᵀ direction V] Vᵀ.

    Stated as the solution T of |x|T + T|x| − PU − UP = 0, U = direction, with P = x⁺ and |x| = 2P − x, so that JAX
    differentiates this system, where repeated eigenvalues do no harm, and not the eigenvectors.
    """
    w, v = jnp.linalg.eigh(jax.lax.stop_gradient(x), symmetrize_input=False)
    size, above = jnp.abs(w), jnp.maximum(w, 0)
    total = size[:, None] + size
    slopes, inverse = _tree.divide(above[:, None] + above, total), _tree.divide(jnp.ones_like(total), total)
    absolute = 2 * positive - x

    def twice(a: jax.Array, b: jax.Array) -> jax.Array:
        return a @ b + b @ a

    def turned(coefficients: jax.Array, a: jax.Array) -> jax.Array:
        return v @ (coefficients * (v.T @ a @ v)) @ v.T

    def matvec(pair: jax.Array) -> jax.Array:
        t, u = pair
        return jnp.stack([twice(absolute, t) - twice(positive, u), u])

    def solve(_: Any, pair: jax.Array) -> jax.Array:
        r, u = pair
        return jnp.stack([turned(inverse, r) + turned(slopes, u), u])

    def transpose_solve(_: Any, pair: jax.Array) -> jax.Array:
        r, u = pair
        return jnp.stack([turned(inverse, r), u + turned(slopes, r)])

    right = jnp.stack([jnp.zeros_like(direction), direction])
    return jax.lax.custom_linear_solve(matvec, right, solve, transpose_solve)[0]


def projection_exponential_cone(x: jax.Array) -> jax.Array:
    """Project (a, b, c) on the exponential cone, the closure of {(a, b, c): b > 0, b·exp(a/b) ≤ c}.

    The entries are ordered as in SCS, CVXPY and diffcp. Differentiable except on the boundaries of the cone and of its polar,
    where the derivative is the identity and 0, and where a < 0, b = 0 or a, b < 0, c = 0.

    Args:
      x: vector, shape (3,), else ValueError.

    Reference: Parikh & Boyd, Proximal Algorithms, 2014, section 6.3.4; the root in one unknown as in Friberg,
    Projection onto the exponential cone: a univariate root-finding problem, 2023.
    """
    _numeric.require_shape("projection_exponential_cone", "x", x, (3,), "entries a, b, c")
    return _exponential.project(_numeric.as_float(x))


def projection_dual_exponential_cone(x: jax.Array) -> jax.Array:
    """Project (a, b, c) on the dual exponential cone, the closure of {(a, b, c): a < 0, −a·exp(b/a) ≤ e·c}.

    By Moreau's decomposition, x + projection_exponential_cone(−x); differentiable where that is.

    Args:
      x: vector, shape (3,), else ValueError.
    """
    _numeric.require_shape("projection_dual_exponential_cone", "x", x, (3,), "entries a, b, c")
    x = _numeric.as_float(x)
    return x + _exponential.project(-x)
