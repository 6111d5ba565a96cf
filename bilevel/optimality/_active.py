"""The linear systems of a gradient mapping, on the active set.

With z = x − η∇f(x, θ), G the prox or projection, P = ∂G/∂z (symmetric, positive semidefinite) and R = P^½,

    F = (x − G(z, θ)) / η          A = ∂₁F = (I − P + PηH) / η,

where η is a number, or one per block if P couples no two blocks, so that η and P commute. Aᵀu = w reads
u = s + η(w − Hs) with s = Pu, and s = Rt where t solves the symmetric system

    (I − P)/η t + RHR t = Rw.

So A⁻ᵀ = (I − ηH) R M⁻¹ R + η with M = (I − P)/η + RHR, and A⁻¹ is its transpose. M is positive definite at a strict
minimum, as small as the active face or the support, and exact: a polyhedron has P = R, an orthogonal projector; a
separable g a diagonal P; a g that is separable over rows a block of P, with its root by an eigendecomposition, per row.
At full size the rest of M is the identity over η, so that shapes are fixed and the iterates of a Krylov method stay
on the active set. A diagonal P can also be gathered to the support, padded to a fixed size.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.linear import Operator, Reduction

_SMALLEST_PAD = 8

Product = Callable[[jax.Array], jax.Array]
_TreeMap = Callable[[PyTree], PyTree]


class Linearization(NamedTuple):
    """A gradient mapping near a point.

    Attributes:
      hvp: v ↦ Hv.
      jacobian: v ↦ Pv.
      eta: η as a tree that broadcasts against params.
      params: the point.
      rows_among: index ↦ (z ↦ H_SS z, v ↦ H_S v) for the coordinates S at an index, v raveled, where that is cheaper than
        through `hvp`.
    """

    hvp: _TreeMap
    jacobian: _TreeMap
    eta: PyTree
    params: PyTree
    rows_among: Callable[[jax.Array], tuple[Product, Product]] | None = None


class _Symmetric(NamedTuple):
    """v ↦ Pv and v ↦ Rv."""

    full: _TreeMap
    root: _TreeMap


def reduction(at: Linearization, separable: bool | Literal["rows"], support: int | None) -> Reduction:
    """The symmetric system of a polyhedral (`separable` False) or separable gradient mapping."""
    if separable is True:
        diagonal = at.jacobian(jax.tree.map(jnp.ones_like, at.params))
        return _gathered(at, _masked(at, _of_diagonal(diagonal)), diagonal, support)
    if separable == "rows":
        return _masked(at, _of_rows(at.jacobian, at.params))
    return _masked(at, _Symmetric(at.jacobian, at.jacobian))


def _of_diagonal(diagonal: PyTree) -> _Symmetric:
    def times(factors: PyTree) -> _TreeMap:
        return lambda v: jax.tree.map(jnp.multiply, factors, v)

    # The root is clipped from below, for a prox that is not monotone only by rounding.
    return _Symmetric(times(diagonal), times(jax.tree.map(lambda d: jnp.sqrt(jnp.maximum(d, 0)), diagonal)))


def _of_rows(jacobian: _TreeMap, params: PyTree) -> _Symmetric:
    """P and R as a dense block for each row of each leaf."""
    leaves, structure = jax.tree.flatten(params)
    zeros = [jnp.zeros_like(x) for x in leaves]

    def blocks(i: int) -> jax.Array:
        rows = leaves[i].shape[0]
        width = leaves[i].size // rows

        def column(e: jax.Array) -> jax.Array:
            tangents = [*zeros[:i], jnp.broadcast_to(e, (rows, width)).reshape(leaves[i].shape), *zeros[i + 1 :]]
            return jax.tree.leaves(jacobian(jax.tree.unflatten(structure, tangents)))[i].reshape(rows, width)

        return jax.vmap(column, out_axes=2)(jnp.eye(width, dtype=leaves[i].dtype))

    def times(matrices: PyTree) -> _TreeMap:
        def product(m: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.einsum("rij,rj->ri", m, v.reshape(m.shape[:2])).reshape(v.shape)

        return lambda v: jax.tree.map(product, matrices, v)

    def root(block: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh((block + block.mT) / 2)
        return (vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]) @ vectors.mT

    full = jax.tree.unflatten(structure, [blocks(i) for i in range(len(leaves))])
    return _Symmetric(times(full), times(jax.tree.map(root, full)))


def _masked(at: Linearization, p: _Symmetric) -> Reduction:
    def product(t: PyTree) -> PyTree:
        curved = p.root(at.hvp(p.root(t)))
        return jax.tree.map(lambda t, pt, c, e: (t - pt) / e + c, t, p.full(t), curved, at.eta)

    def scaled(v: PyTree) -> PyTree:
        return jax.tree.map(jnp.multiply, at.eta, v)

    def restrict(b: PyTree) -> PyTree:
        return p.root(_tree.sub(b, at.hvp(scaled(b))))

    def expand(t: PyTree, b: PyTree) -> PyTree:
        return _tree.add_scaled(scaled(b), 1, p.root(t))

    return Reduction(Operator(product, "positive_definite"), restrict, expand, start=p.root)


def _gathered(at: Linearization, masked: Reduction, diagonal: PyTree, support: int | None) -> Reduction:
    """The masked system on the support alone, padded: to `support`, or where the support is known to a power of two."""
    p, unravel = ravel_pytree(diagonal)
    if support is None and isinstance(p, jax.core.Tracer):
        return masked
    if support is None:
        size = max(_SMALLEST_PAD, 1 << max(int(jnp.sum(p > 0)) - 1, 0).bit_length())
        valid = True
    else:
        size, valid = support, jnp.sum(p > 0) <= support
    if 2 * size > p.size:
        return masked
    (index,) = jnp.nonzero(p > 0, size=size, fill_value=p.size)

    def gather(v: PyTree) -> jax.Array:
        return ravel_pytree(v)[0].at[index].get(mode="fill", fill_value=0)

    def scatter(z: jax.Array) -> PyTree:
        return unravel(jnp.zeros_like(p).at[index].add(z, mode="drop"))

    def through_all(index: jax.Array) -> tuple[Product, Product]:
        del index
        return lambda z: gather(at.hvp(scatter(z))), lambda v: gather(at.hvp(unravel(v)))

    inside, rows = (at.rows_among or through_all)(index)
    spread = jax.tree.map(lambda e, x: jnp.broadcast_to(e, x.shape), at.eta, at.params)
    chosen, eta = gather(diagonal), gather(spread)
    root, eta_everywhere = jnp.sqrt(chosen), ravel_pytree(spread)[0]
    rest = jnp.where(index < p.size, (1 - chosen) / _tree.positive(eta), 1)

    def start(u: PyTree) -> jax.Array:
        return root * gather(u)

    def restrict(b: PyTree) -> jax.Array:
        return root * (gather(b) - rows(eta_everywhere * ravel_pytree(b)[0]))

    return Reduction(
        Operator(lambda z: rest * z + root * inside(root * z), "positive_definite"),
        restrict,
        lambda z, b: masked.expand(scatter(z), b),
        start,
        valid,
    )
