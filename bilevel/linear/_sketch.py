"""Random sketches of an operator: a low-rank approximation, an estimate of the norm."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.linear._base import Operator, Product, raveled


def nystrom(operator: Operator, like: PyTree, rank: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """U, shape (n, r), and Λ, shape (r,), descending, with A ≈ U Λ Uᵀ, from r products; NaN if A is not semidefinite.

    Frangella, Tropp & Udell (2021), Algorithm 2.1, in its stable form.
    """
    product, flat, _ = raveled(operator, like)
    rank, eps = min(rank, flat.size), jnp.finfo(flat.dtype).eps
    tests = jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (flat.size, rank), flat.dtype))[0]
    products = jax.vmap(product, in_axes=1, out_axes=1)(tests)
    shift = eps * _tree.norm(products)
    products = products + shift * tests
    core = tests.T @ products
    factor = jnp.linalg.cholesky((core + core.T) / 2)
    basis, singular, _ = jnp.linalg.svd(
        jax.scipy.linalg.solve_triangular(factor, products.T, lower=True).T, full_matrices=False
    )
    return basis, jnp.maximum(singular**2 - shift, 0)


def low_rank(basis: jax.Array, inverse: jax.Array, rest: jax.Array, like: PyTree) -> Product:
    """v ↦ U diag(inverse) Uᵀ v + rest · (I − U Uᵀ) v, for orthonormal U."""
    unravel = ravel_pytree(like)[1]

    def apply(v: PyTree) -> PyTree:
        flat = ravel_pytree(v)[0].astype(basis.dtype)
        inside = flat @ basis
        outside = flat - basis @ inside
        outside = outside - basis @ (outside @ basis)  # again, since `rest` may be large
        return _tree.cast_like(unravel(basis @ (inverse * inside) + rest * outside), v)

    return apply


def norm_estimate(operator: Operator, like: PyTree, steps: int) -> jax.Array:
    """‖A‖₂ from below, by power iteration on AᵀA, or on A if it is symmetric."""
    flat, unravel = ravel_pytree(like)
    symmetric, transposed = operator.structure != "general", operator.transpose(like)

    def step(v: PyTree, _: None) -> tuple[PyTree, jax.Array]:
        size, w = _tree.normalized(operator(v))
        return w if symmetric else _tree.normalized(transposed(w))[1], size

    start = unravel(jax.random.normal(jax.random.key(0), flat.shape, flat.dtype))
    return jax.lax.scan(step, _tree.normalized(start)[1], length=steps)[1][-1]
