"""A first inverse Hessian for a smooth linear model, from its Gram matrix, its penalty and one measured number.

The Hessian is XᵀDX + diag l2 with D the second derivatives of the losses of the rows. With cXᵀX + diag l2 in its place, c
measured along the first gradient, a quasi-Newton method is free of the spectrum of X and of penalties that differ between
features.
"""

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.problem import At

_MOST = 512  # features
_SHARE = 32  # n² against m, up to which a factorization costs a few gradients


def prepare(at: At) -> jax.Array | None:
    """XᵀX with the rows weighted as in the loss; None without a smooth linear model, or if X is sparse or too wide."""
    model = at.parts.linear_model
    if model is None or not model.smooth:
        return None
    features = model.rows(at.data)[0]
    if not isinstance(features, jax.Array):
        return None
    rows, columns = features.shape
    if columns > _MOST or columns**2 > _SHARE * rows:
        return None
    return model.weight(at.data) * (features.T @ features)


def inverse(at: At, gradient: jax.Array, product: jax.Array) -> jax.Array:
    """(cXᵀX + diag l2)⁻¹, shape (n, n), with the curvature along the gradient: product = Hg. A constant."""
    at, gradient, product = jax.lax.stop_gradient((at, gradient, product))
    dtype = gradient.dtype
    gram = at.prepared.astype(dtype)
    penalty = jnp.broadcast_to(at.parts.linear_model.penalty("l2", at.hparams), gram.shape[:1]).astype(dtype)
    gradient, product = (x.reshape(gram.shape[0], -1) for x in (gradient, product))
    along = jnp.vdot(gradient, gram @ gradient)
    curvature = jnp.vdot(gradient, product - penalty[:, None] * gradient) / _tree.positive(along)
    curvature = jnp.where(along > 0, jnp.maximum(curvature, 0), 1)
    matrix = curvature * gram + jnp.diag(penalty)
    jitter = jnp.sqrt(jnp.finfo(dtype).eps).astype(dtype) * jnp.trace(matrix) / len(matrix)
    eye = jnp.eye(len(matrix), dtype=dtype)
    factor = jnp.linalg.cholesky(matrix + jitter * eye)
    found = jax.scipy.linalg.cho_solve((factor, True), eye)
    size, bent = jnp.linalg.norm(gradient), jnp.linalg.norm(product)
    plain = jnp.where(bent > 0, size / _tree.positive(bent), 1)
    return jnp.where(jnp.isfinite(found).all(), found, plain * eye)
