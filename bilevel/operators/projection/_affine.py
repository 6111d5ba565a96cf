"""Projections on hyperplanes, halfspaces and affine sets: Parikh & Boyd, Proximal Algorithms, 2014, chapter 6."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.operators import _numeric


def projection_hyperplane(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project on the hyperplane ⟨a, p⟩ = b: x − a·(⟨a, x⟩ − b)/‖a‖². NaN where it is empty (a = 0, b ≠ 0).

    Args:
      x: any pytree.
      hyperparams: (a, b); a with the structure and shapes of x, else ValueError; b a scalar.
    """
    return _along_normal("projection_hyperplane", x, hyperparams, lambda excess: excess)


def projection_halfspace(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project on the halfspace ⟨a, p⟩ ≤ b: x − a·max(⟨a, x⟩ − b, 0)/‖a‖². NaN where it is empty (a = 0, b < 0).

    Differentiable where ⟨a, x⟩ ≠ b; on the hyperplane the derivative is the identity.

    Args:
      x: any pytree.
      hyperparams: (a, b); a with the structure and shapes of x, else ValueError; b a scalar.

    Example:
      >>> print(projection_halfspace(jnp.array([3.0, 1.0]), (jnp.array([1.0, 0.0]), 2.0)))
      [2. 1.]
    """
    return _along_normal("projection_halfspace", x, hyperparams, jax.nn.relu)


def _along_normal(who: str, x: Any, hyperparams: tuple[Any, Any], distance: Callable[[jax.Array], jax.Array]) -> Any:
    """x moved against a by the distance for (⟨a, x⟩ − b)/‖a‖, which is not divided where a = 0."""
    a, b = hyperparams
    x = _numeric.as_floats(x)
    _tree.check_like(f"{who}: a", a, "x", x)
    length, unit = _tree.normalized(_tree.cast_like(a, x))
    moved = distance(_tree.vdot(unit, x) - _numeric.cast(b, length) / _tree.positive(length))
    exists = (length > 0) | (moved == 0)
    return jax.tree.map(lambda p: _numeric.nan_unless(exists, p), _tree.add_scaled(x, -moved, unit))


def projection_affine_set(x: jax.Array, hyperparams: tuple[Any, Any]) -> jax.Array:
    """Project on the affine set A p = b: x − A⁺(A x − b), with the pseudo-inverse A⁺.

    Rows may be redundant; NaN where the system has no solution. Differentiable in A where its rank is constant.

    Args:
      x: vector, shape (n,), else ValueError.
      hyperparams: (A, b), shapes (m, n) and (m,), else ValueError.

    Reference: Golub & Pereyra, The differentiation of pseudo-inverses and nonlinear least squares problems, 1973.
    """
    who = "projection_affine_set"
    x = _numeric.vector(who, x)
    matrix, right = rows(who, ("A", "b"), hyperparams, x)
    p = closest(x, matrix, right)
    return _numeric.nan_unless(violation(p, matrix, right, x, equal=True) <= _numeric.tolerance(x), p)


def rows(who: str, names: tuple[str, str], pair: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A matrix and a right-hand side in the dtype of x, each row of norm 1 (rows of zeros as they are)."""
    matrix, right = pair
    if matrix is None or right is None:
        if matrix is not right:
            raise ValueError(
                f"{who}: {names[0]} and {names[1]} go together, got only one of them: pass both, or None twice"
            )
        return jnp.zeros((0, x.size), x.dtype), jnp.zeros(0, x.dtype)
    _numeric.require_shape(who, names[0], matrix, (*jnp.shape(matrix)[:1], x.size), "one column for each entry of x")
    _numeric.require_shape(who, names[1], right, jnp.shape(matrix)[:1], f"one entry for each row of {names[0]}")
    matrix, right = _numeric.cast(matrix, x), _numeric.cast(right, x)
    length = _tree.positive(jax.vmap(_tree.norm)(matrix))
    return matrix / length[:, None], right / length


def closest(x: jax.Array, matrix: jax.Array, right: jax.Array) -> jax.Array:
    """The point closest to x among those that solve matrix @ p = right in the sense of least squares."""
    return x - jnp.linalg.pinv(matrix) @ (matrix @ x - right) if matrix.shape[0] else x


def violation(p: jax.Array, matrix: jax.Array, right: jax.Array, x: jax.Array, equal: bool) -> jax.Array:
    """By how much p violates normalized constraints, relative to the numbers at hand."""
    gap = matrix @ p - right
    gap = jnp.abs(gap) if equal else jnp.maximum(gap, 0)
    finite = jnp.where(jnp.isfinite(right), jnp.abs(right), 0)
    size = jnp.max(jnp.concatenate([jnp.abs(p), jnp.abs(x), finite, jnp.full(1, jnp.finfo(x.dtype).tiny)]))
    return jnp.max(gap / size, initial=0)
