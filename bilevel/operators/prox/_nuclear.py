"""The prox of the nuclear norm."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel.operators import _numeric
from bilevel.operators.projection._cones import positive_part


def prox_nuclear_norm(x: jax.Array, reg: Any = 1.0, scaling: Any = 1.0) -> jax.Array:
    """The prox of reg times the sum of the singular values: U max(s − scaling·reg, 0) Vᵀ for x = U diag(s) Vᵀ.

    Differentiable to any order where no singular value equals the threshold, repeated ones included; there, an element
    of the conservative Jacobian. The value takes a thin SVD, a derivative an eigendecomposition of size m + n.

    Args:
      x: matrix, shape (m, n), else ValueError.
      reg: penalty, a scalar; None is 1.
      scaling: step.

    Reference: Cai, Candès & Shen, A singular value thresholding algorithm for matrix completion, 2010; the derivative by
    the dilation of Jordan and Wielandt, see `_dilated`.
    """
    x = _numeric.array("prox_nuclear_norm", x, 2, "matrix")
    return _shrink(x, _numeric.threshold(reg, scaling, x))


@jax.custom_jvp
def _shrink(x: jax.Array, threshold: jax.Array) -> jax.Array:
    u, sizes, vt = jnp.linalg.svd(x, full_matrices=False)
    return (u * jnp.maximum(sizes - threshold, 0)) @ vt


@_shrink.defjvp
def _shrink_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    x, threshold = primals
    x_dot, threshold_dot = tangents
    along_x = jax.jvp(lambda x: _dilated(x, threshold), (x,), (x_dot,))[1]
    along_threshold = jax.jvp(lambda threshold: _dilated(x, threshold), (threshold,), (threshold_dot,))[1]
    # Without a penalty the operator is the identity, also for matrices without full rank.
    return _shrink(x, threshold), jnp.where(threshold == 0, x_dot, along_x) + along_threshold


def _dilated(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """The prox as a corner of the positive part of [[0, x], [xᵀ, 0]] − threshold, whose eigenvalues are ±s − threshold."""
    m, n = x.shape
    corner = jnp.block([[jnp.zeros((m, m), x.dtype), x], [x.T, jnp.zeros((n, n), x.dtype)]])
    return 2 * positive_part(corner - threshold * jnp.eye(m + n, dtype=x.dtype))[:m, m:]
