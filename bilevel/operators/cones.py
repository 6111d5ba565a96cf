"""Products of convex cones, in the order and the scaling of SCS and diffcp."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.operators import projection

_Map = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cones:
    """K = {0}^zero × R₊^nonnegative × second-order cones × positive semidefinite cones × exponential cones, in this order.

    A symmetric matrix of a semidefinite cone is stored as the columns of its lower triangle, with off-diagonal entries times
    √2, so that inner products agree.

    Args:
      zero: number of equalities.
      nonnegative: number of inequalities.
      second_order: dimension of each second-order cone {(t, z): ‖z‖ ≤ t}.
      semidefinite: order n of each cone of n × n matrices.
      exponential: number of cones cl{(a, b, c): b > 0, b·exp(a/b) ≤ c}.

    Raises:
      ValueError: a negative size, or an array to project that has another number of rows.

    Example:
      >>> cones = Cones(zero=1, nonnegative=2)
      >>> print(cones.project(jnp.array([1.0, -2.0, 3.0])), cones.project_dual(jnp.array([1.0, -2.0, 3.0])))
      [0. 0. 3.] [1. 0. 3.]
    """

    zero: int = 0
    nonnegative: int = 0
    second_order: tuple[int, ...] = ()
    semidefinite: tuple[int, ...] = ()
    exponential: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "second_order", tuple(self.second_order))
        object.__setattr__(self, "semidefinite", tuple(self.semidefinite))
        sizes = (self.zero, self.nonnegative, *self.second_order, *self.semidefinite, self.exponential)
        if any(size < 0 for size in sizes):
            raise ValueError(f"operators.cones.Cones: sizes must not be negative, got {self}")

    @property
    def size(self) -> int:
        """The number of rows."""
        return sum(self._sizes())

    def _sizes(self) -> list[int]:
        triangles = [n * (n + 1) // 2 for n in self.semidefinite]
        return [self.zero, self.nonnegative, *self.second_order, *triangles, 3 * self.exponential]

    def project(self, x: jax.Array) -> jax.Array:
        """The Euclidean projection of x on K, shape (size,)."""
        return self._project(x, jnp.zeros_like, projection.projection_exponential_cone)

    def project_dual(self, x: jax.Array) -> jax.Array:
        """The Euclidean projection of x on the dual cone K*, shape (size,)."""
        return self._project(x, lambda part: part, projection.projection_dual_exponential_cone)

    def _project(self, x: jax.Array, on_zero: _Map, on_exponential: _Map) -> jax.Array:
        if x.shape != (self.size,):
            raise ValueError(f"operators.cones.Cones: {self} has {self.size} rows, got an array of shape {x.shape}")
        zero, nonnegative, *others, exponential = jnp.split(x, list(np.cumsum(self._sizes())[:-1]))
        second_order, semidefinite = others[: len(self.second_order)], others[len(self.second_order) :]
        parts = [on_zero(zero), projection.projection_non_negative(nonnegative)]
        parts += [projection.projection_second_order_cone(part) for part in second_order if part.size]
        parts += [_on_semidefinite(part, n) for part, n in zip(semidefinite, self.semidefinite, strict=True) if n]
        if self.exponential:
            parts.append(jax.vmap(on_exponential)(exponential.reshape(-1, 3)).reshape(-1))
        return jnp.concatenate(parts)


def vectorize(matrix: jax.Array) -> jax.Array:
    """A symmetric n × n matrix as a vector of a semidefinite cone, shape (n(n + 1)/2,)."""
    columns, rows = np.triu_indices(matrix.shape[0])
    return matrix[rows, columns] * jnp.where(rows == columns, 1, math.sqrt(2)).astype(matrix.dtype)


def matricize(vector: jax.Array, n: int) -> jax.Array:
    """The symmetric n × n matrix of a vector of a semidefinite cone: the inverse of `vectorize`."""
    columns, rows = np.triu_indices(n)
    entries = vector / jnp.where(rows == columns, 1, math.sqrt(2)).astype(vector.dtype)
    lower = jnp.zeros((n, n), vector.dtype).at[rows, columns].set(entries)
    return lower + jnp.tril(lower, -1).T


def _on_semidefinite(part: jax.Array, n: int) -> jax.Array:
    return vectorize(projection.projection_psd_cone(matricize(part, n)))
