"""Preconditioners: approximate inverses M⁻¹ ≈ A⁻¹ that save a solver steps and do not change its answer."""

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _checks, _tree
from bilevel._tree import PyTree
from bilevel.linear._base import Operator, Product, raveled
from bilevel.linear._sketch import low_rank, nystrom


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Preconditioner(abc.ABC):
    """Base class of preconditioners: a subclass defines `build`, and `matvecs` if that takes products.

    A preconditioner changes the number of steps of a solver and not its answer. Pass one, or any linear function v ↦ M⁻¹ v, as
    `preconditioner` to `CG`, `MINRES`, `GMRES` or `BiCGStab`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> class Half(bl.linear.Preconditioner):
      ...     def build(self, operator, like):
      ...         return lambda v: v / 2
      >>> print(bl.linear.CG(preconditioner=Half()).solve(lambda v: 2 * v, jnp.ones(2)).steps)
      1
    """

    @abc.abstractmethod
    def build(self, operator: Operator, like: PyTree) -> Product:
        """v ↦ M⁻¹ v, for vectors of the structure of `like`; symmetric, and positive definite for `CG` and `MINRES`."""

    def matvecs(self, like: PyTree) -> int:
        """Products with A that `build` takes."""
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalPreconditioner(Preconditioner):
    """Jacobi preconditioning, M = diag(|A_ii|), for systems whose unknowns differ in scale.

    Without a given diagonal it is formed exactly by n products if there are fewer than `exact_below` unknowns; otherwise it is
    estimated as the mean of z ⊙ A z over random signs z.

    Args:
      diagonal: the diagonal of A, with the structure of the unknown; `None` (default) computes it.
      probes: number of random vectors of the estimate; 32 by default.
      exact_below: number of unknowns from which on the diagonal is estimated; 512 by default.
      seed: seed of the random vectors.

    Reference: Bekas, Kokiopoulou & Saad, An estimator for the diagonal of a matrix, 2007.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> solver = bl.linear.CG(preconditioner=bl.linear.DiagonalPreconditioner())
      >>> print(solver.solve(lambda v: jnp.array([1.0, 1e4]) * v, jnp.ones(2)).steps)
      1
    """

    diagonal: PyTree = None
    probes: int = 32
    exact_below: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        _checks.require_positive("linear.DiagonalPreconditioner", probes=self.probes)

    def matvecs(self, like: PyTree) -> int:
        """0 for a given diagonal, else n or the number of probes."""
        if self.diagonal is not None:
            return 0
        size = _tree.size(like)
        return size if size < self.exact_below else self.probes

    def build(self, operator: Operator, like: PyTree) -> Product:
        """Divide by the diagonal; an entry that is not positive and finite is replaced by the largest."""
        product, flat, unravel = raveled(operator, like)
        if self.diagonal is not None:
            _tree.check_like("DiagonalPreconditioner.diagonal", self.diagonal, "b", like)
            diagonal = ravel_pytree(self.diagonal)[0].astype(flat.dtype)
        else:
            exact, key = flat.size < self.exact_below, jax.random.key(self.seed)
            signs = (self.probes, flat.size), flat.dtype
            tests = jnp.eye(flat.size, dtype=flat.dtype) if exact else jax.random.rademacher(key, *signs)
            diagonal = jnp.sum(tests * jax.vmap(product)(tests), axis=0) / (1 if exact else self.probes)
        size = jnp.where(jnp.isfinite(diagonal), jnp.abs(diagonal), 0)
        largest = jnp.max(size, initial=0)
        size = jnp.where(size > jnp.finfo(flat.dtype).eps * largest, size, _tree.positive(largest))
        inverse = _tree.cast_like(unravel(1 / size), like)
        return lambda v: jax.tree.map(lambda a, b: a * b, inverse, v)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NystromPreconditioner(Preconditioner):
    """Nyström preconditioning: M⁻¹ = (λ_r + ridge) U (Λ + ridge I)⁻¹ Uᵀ + I − U Uᵀ, with A ≈ U Λ Uᵀ a random sketch.

    For positive semidefinite A whose spectrum has a few large eigenvalues above a flat rest. If the sketch shows that A is
    indefinite, there is no preconditioning.

    Args:
      rank: rank of the sketch, 20 by default; that many products, and vectors in memory.
      ridge: what is known to be added to the low-rank part of A; `None` (default) takes the smallest eigenvalue of the sketch.
      seed: seed of the sketch.

    Reference: Frangella, Tropp & Udell, Randomized Nyström preconditioning, 2021.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> solver = bl.linear.CG(preconditioner=bl.linear.NystromPreconditioner(rank=1))
      >>> print(solver.solve(lambda v: v + 9 * v.sum(), jnp.arange(4.0)).converged)
      True
    """

    rank: int = 20
    ridge: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _checks.require_positive("linear.NystromPreconditioner", rank=self.rank, ridge=self.ridge)

    def matvecs(self, like: PyTree) -> int:
        """The rank, or n if that is less."""
        return min(self.rank, _tree.size(like))

    def build(self, operator: Operator, like: PyTree) -> Product:
        """Sketch once; the identity if the sketch shows that A is indefinite."""
        basis, values = nystrom(operator, like, self.rank, self.seed)
        definite = jnp.isfinite(values).all() & jnp.isfinite(basis).all()
        last = values[-1] if values.size else jnp.ones((), values.dtype)
        ridge = last if self.ridge is None else self.ridge
        inverse = (last + ridge) / _tree.positive(values + ridge)
        inverse = jnp.where(definite & (last + ridge > 0), inverse, 1)
        return low_rank(jnp.where(definite, basis, 0), inverse, jnp.ones((), values.dtype), like)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LowRankPreconditioner(Preconditioner):
    """M = ridge I + U diag(s) Uᵀ with given factors, inverted by Woodbury's identity.

    Args:
      basis: U, shape (n, r), over the raveled unknowns (`jax.flatten_util.ravel_pytree`); columns need not be orthonormal.
      values: s, shape (r,), nonnegative.
      ridge: positive.

    Raises:
      ValueError: the shapes do not match, or the basis has not one row per unknown.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> ones = jnp.ones((4, 1))
      >>> exact = bl.linear.LowRankPreconditioner(basis=ones, values=jnp.array([9.0]), ridge=1.0)
      >>> print(bl.linear.CG(preconditioner=exact).solve(lambda v: v + 9 * v.sum(), jnp.arange(4.0)).converged)
      True
    """

    basis: jax.Array
    values: jax.Array
    ridge: float

    def __post_init__(self) -> None:
        _checks.require_positive("linear.LowRankPreconditioner", ridge=self.ridge)
        if jnp.ndim(self.basis) != 2 or jnp.shape(self.values) != jnp.shape(self.basis)[1:]:
            raise ValueError(
                "linear.LowRankPreconditioner: basis must be (n, r) and values (r,), got "
                f"{jnp.shape(self.basis)} and {jnp.shape(self.values)}"
            )

    def build(self, operator: Operator, like: PyTree) -> Product:
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
    """Raise TypeError unless this is a preconditioner."""
    if not (preconditioner is None or isinstance(preconditioner, Preconditioner) or callable(preconditioner)):
        raise TypeError(
            f"{who}: preconditioner must be one of bilevel.linear, such as linear.DiagonalPreconditioner(), a function "
            f"v ↦ M⁻¹ v, or None; got {preconditioner!r}"
        )


def build(preconditioner: Precondition, operator: Operator, like: PyTree) -> tuple[Product, int]:
    """v ↦ M⁻¹ v, and the number of products to build it."""
    if preconditioner is None:
        return lambda v: v, 0
    if isinstance(preconditioner, Preconditioner):
        return preconditioner.build(operator, like), preconditioner.matvecs(like)
    return lambda v: _tree.cast_like(preconditioner(v), v), 0
