"""Random sketches of an operator: test vectors, a low-rank approximation, an estimate of the norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.linear._base import Operator, Product


def probes(seed: int, number: int, flat: jax.Array) -> jax.Array:
    """(number, n) random signs."""
    return jax.random.rademacher(jax.random.key(seed), (number, flat.size), dtype=flat.dtype)


def nystrom(operator: Operator, like: PyTree, rank: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """U, shape (n, r), and Λ, shape (r,), descending, with A ≈ U Λ Uᵀ, from r products; NaN if A is not semidefinite.

    Frangella, Tropp & Udell (2021), Algorithm 2.1, in its stable form.
    """
    flat, unravel = ravel_pytree(like)
    rank, eps = min(rank, flat.size), jnp.finfo(flat.dtype).eps
    tests = jax.random.normal(jax.random.key(seed), (flat.size, rank), flat.dtype)
    tests = jnp.linalg.qr(tests)[0]

    def product(v: jax.Array) -> jax.Array:
        return ravel_pytree(operator.matvec(unravel(v)))[0].astype(flat.dtype)

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
    forward, symmetric = operator.matvec, operator.structure != "general"
    backward = operator.transpose(like).matvec

    def step(carry: tuple[PyTree, jax.Array], _: None) -> tuple[tuple[PyTree, jax.Array], None]:
        v = carry[0]
        w = _tree.cast_like(forward(v), like)
        size = _tree.norm(w)
        w = w if symmetric else _tree.cast_like(backward(_tree.scale(1 / _tree.positive(size), w)), like)
        length = _tree.norm(w)
        return (_tree.scale(1 / _tree.positive(length), w), size), None

    start = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
    start = unravel(start / jnp.where(flat.size > 0, _tree.norm(start), 1))
    (_, size), _ = jax.lax.scan(step, (start, jnp.zeros((), _tree.dtype(like))), None, length=steps)
    return size
