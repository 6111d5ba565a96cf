"""Preconditioners: approximate inverses M⁻¹ ≈ A⁻¹ that cost a solver fewer steps and do not change its answer."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _checks, _tree
from bilevel._tree import PyTree
from bilevel.linear._base import Operator
from bilevel.linear._sketch import low_rank, nystrom, probes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Preconditioner(abc.ABC):
    """Base of the preconditioners: a subclass writes `build`, and `matvecs` if that takes products."""

    @abc.abstractmethod
    def build(self, operator: Operator, like: PyTree) -> Callable[[PyTree], PyTree]:
        """v ↦ M⁻¹ v, for vectors of the structure of `like`; symmetric, and positive definite for `CG` and `MINRES`."""

    def matvecs(self, like: PyTree) -> int:
        """Products with A that `build` takes."""
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalPreconditioner(Preconditioner):
    """Jacobi's: M = diag(|A_ii|), for systems whose unknowns differ in scale.

    Without a given diagonal it is formed exactly by n products up to `exact_below` unknowns, else estimated as the mean of
    z ⊙ A z over random signs z (Bekas, Kokiopoulou & Saad 2007).

    Args:
      diagonal: the diagonal of A, with the structure of the unknown; None computes it.
      probes: random vectors of the estimate.
      exact_below: systems with fewer unknowns have their diagonal formed exactly.
      seed: of the probes.
    """

    diagonal: PyTree = None
    probes: int = 32
    exact_below: int = 512
    seed: int = 0

    def __post_init__(self):
        _checks.require_positive("linear.DiagonalPreconditioner", probes=self.probes)

    def matvecs(self, like):
        """None for a given diagonal, else n or the number of probes."""
        if self.diagonal is not None:
            return 0
        size = _tree.size(like)
        return size if size < self.exact_below else self.probes

    def build(self, operator, like):
        """Divide by the diagonal; an entry that is not positive and finite counts as the largest."""
        flat, unravel = ravel_pytree(like)
        if self.diagonal is not None:
            _tree.check_like("DiagonalPreconditioner.diagonal", self.diagonal, "b", like)
            diagonal = ravel_pytree(self.diagonal)[0].astype(flat.dtype)
        else:
            exact = flat.size < self.exact_below
            tests = jnp.eye(flat.size, dtype=flat.dtype) if exact else probes(self.seed, self.probes, flat)
            products = jax.vmap(lambda z: ravel_pytree(operator.matvec(unravel(z)))[0].astype(flat.dtype))(tests)
            diagonal = jnp.sum(tests * products, axis=0) / (1 if exact else self.probes)
        size = jnp.where(jnp.isfinite(diagonal), jnp.abs(diagonal), 0)
        largest = jnp.max(size, initial=0)
        size = jnp.where(size > jnp.finfo(flat.dtype).eps * largest, size, jnp.where(largest > 0, largest, 1))
        inverse = _tree.cast_like(unravel(1 / size), like)
        return lambda v: jax.tree.map(lambda a, b: a * b, inverse, v)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NystromPreconditioner(Preconditioner):
    """M⁻¹ = (λ_r + ridge) U (Λ + ridge I)⁻¹ Uᵀ + I − U Uᵀ, from a random sketch A ≈ U Λ Uᵀ of a semidefinite A.

    For spectra with a few large eigenvalues above a flat rest (Frangella, Tropp & Udell 2021).

    Args:
      rank: of the sketch; that many products, and vectors of memory.
      ridge: what is known to be added to the low-rank part of A; None takes the smallest eigenvalue of the sketch.
      seed: of the sketch.
    """

    rank: int = 20
    ridge: float | None = None
    seed: int = 0

    def __post_init__(self):
        _checks.require_positive("linear.NystromPreconditioner", rank=self.rank, ridge=self.ridge)

    def matvecs(self, like):
        """As many as the rank."""
        return min(self.rank, _tree.size(like))

    def build(self, operator, like):
        """Sketch once. An A that the sketch finds indefinite is left without a preconditioner."""
        basis, values = nystrom(operator, like, self.rank, self.seed)
        definite = jnp.isfinite(values).all() & jnp.isfinite(basis).all()
        last = values[-1] if values.size else jnp.ones((), values.dtype)
        ridge = last if self.ridge is None else self.ridge
        inverse = (last + ridge) / jnp.where(values + ridge > 0, values + ridge, 1)
        inverse = jnp.where(definite & (last + ridge > 0), inverse, 1)
        return low_rank(jnp.where(definite, basis, 0), inverse, jnp.ones((), values.dtype), like)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LowRankPreconditioner(Preconditioner):
    """M = ridge I + U diag(s) Uᵀ with factors of your own, inverted by Woodbury's identity.

    Args:
      basis: U, (n, r), over the raveled unknowns (`jax.flatten_util.ravel_pytree`); its columns need not be orthonormal.
      values: s, (r,), nonnegative.
      ridge: positive.
    """

    basis: jax.Array
    values: jax.Array
    ridge: float

    def __post_init__(self):
        _checks.require_positive("linear.LowRankPreconditioner", ridge=self.ridge)
        if jnp.ndim(self.basis) != 2 or jnp.shape(self.values) != jnp.shape(self.basis)[1:]:
            raise ValueError(
                "linear.LowRankPreconditioner: basis must be (n, r) and values (r,), got "
                f"{jnp.shape(self.basis)} and {jnp.shape(self.values)}"
            )

    def build(self, operator, like):
        """Orthogonalize the factor: M is diagonal in an eigenbasis of U diag(s) Uᵀ."""
        size = _tree.size(like)
        if jnp.shape(self.basis)[0] != size:
            raise ValueError(
                f"linear.LowRankPreconditioner: basis must have a row for each of the {size} unknowns, "
                f"got {jnp.shape(self.basis)[0]} rows"
            )
        dtype = ravel_pytree(like)[0].dtype
        factor = jnp.asarray(self.basis, dtype) * jnp.sqrt(jnp.asarray(self.values, dtype))
        basis, singular, _ = jnp.linalg.svd(factor, full_matrices=False)
        ridge = jnp.asarray(self.ridge, dtype)
        return low_rank(basis, 1 / (singular**2 + ridge), 1 / ridge, like)


Precondition = Preconditioner | Callable[[PyTree], PyTree] | None


def check(who: str, preconditioner: Precondition) -> None:
    """Raise TypeError unless this can serve as a preconditioner."""
    if not (preconditioner is None or isinstance(preconditioner, Preconditioner) or callable(preconditioner)):
        raise TypeError(
            f"{who}: preconditioner must be one of bilevel.linear, such as linear.DiagonalPreconditioner(), a function "
            f"v ↦ M⁻¹ v, or None; got {preconditioner!r}"
        )


def build(preconditioner: Precondition, operator: Operator, like: PyTree) -> tuple[Callable[[PyTree], PyTree], int]:
    """v ↦ M⁻¹ v, and the products that it took to make it."""
    if preconditioner is None:
        return lambda v: v, 0
    if isinstance(preconditioner, Preconditioner):
        return preconditioner.build(operator, like), preconditioner.matvecs(like)
    return lambda v: _tree.cast_like(preconditioner(v), v), 0
