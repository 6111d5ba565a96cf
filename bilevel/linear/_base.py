"""The contract of a linear solver: A x = b from products with A, with a status that is computed from the true residual."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree

Structure = Literal["general", "symmetric", "positive_definite"]
Product = Callable[[PyTree], PyTree]


@dataclasses.dataclass(frozen=True)
class Operator:
    """A square linear map, given by its products.

    Args:
      matvec: v ↦ A v, linear; v and A v have the structure, shapes and dtypes of the unknown.
      structure: what solvers may assume of A: `"general"`, `"symmetric"` or `"positive_definite"` (and symmetric). If it
        does not hold, a solve ends in a status other than `CONVERGED`, or in the right answer.
      singular: A may be singular, and a least-squares or minimum-norm answer is wanted; `Direct` and `Auto` use this.
      self_adjoint: A = Aᵀ by construction (a Hessian, JᵀJ), so that A serves as its own transpose. A symmetry that is only
        declared, by `structure`, is not relied on for this: the transpose is then computed.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> shear = bl.linear.Operator(lambda v: jnp.array([v[0] + 2 * v[1], v[1]]))
      >>> print(shear.transpose(jnp.zeros(2)).matvec(jnp.ones(2)))
      [1. 3.]
    """

    matvec: Product
    structure: Structure = "general"
    singular: bool = False
    self_adjoint: bool = False

    def __call__(self, v: PyTree) -> PyTree:
        """A v in the dtypes of v."""
        return _tree.cast_like(self.matvec(v), v)

    def transpose(self, like: PyTree) -> "Operator":
        """Aᵀ, for unknowns like `like`: A itself where it is `self_adjoint`."""
        if self.self_adjoint:
            return self
        transposed = jax.linear_transpose(self.__call__, like)
        return dataclasses.replace(self, matvec=lambda v: transposed(v)[0])


def damped(operator: Operator, ridge: float | jax.Array) -> Operator:
    """A + ridge · I, with the structure of A. The ridge is positive and absolute, in the units of A.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> print(bl.linear.damped(bl.linear.Operator(lambda v: 2 * v), 0.5).matvec(jnp.ones(2)))
      [2.5 2.5]
    """
    matvec = operator.matvec
    return dataclasses.replace(operator, matvec=lambda v: _tree.add_scaled(matvec(v), ridge, v), singular=False)


def raveled(
    operator: Operator, like: PyTree
) -> tuple[Callable[[jax.Array], jax.Array], jax.Array, Callable[[jax.Array], PyTree]]:
    """v ↦ A v for raveled unknowns, `like` raveled, and the map from a vector back to the structure of `like`."""
    flat, unravel = ravel_pytree(like)
    return lambda v: ravel_pytree(operator(unravel(v)))[0], flat, unravel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearSolution:
    """The result of a linear solve.

    Attributes:
      value: x, with the structure of b.
      status: int32 code of `bilevel.Status`.
      residual: ‖A x − b‖₂, computed by one more product with A, not by a recurrence.
      steps: number of iterations, int32.
      matvecs: number of products with A or Aᵀ, int32, including the one for the residual.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.CG(max_steps=1).solve(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2))
      >>> print(bl.Status(int(found.status)).word, f"{found.residual:.4f}", found.steps, found.matvecs)
      max_steps 0.7071 1 3
    """

    value: PyTree
    status: jax.Array
    residual: jax.Array
    steps: jax.Array
    matvecs: jax.Array

    @property
    def converged(self) -> jax.Array:
        """Whether the residual is within the tolerance."""
        return self.status == Status.CONVERGED


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What a method returns to `LinearSolver.solve`, which judges it.

    Args:
      value: x, with the structure of b.
      reason: status to report if the residual exceeds the tolerance.
      steps: number of iterations.
      matvecs: number of products.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> class Halve(bl.linear.LinearSolver):
      ...     def attempt(self, operator, b, init, tolerance):
      ...         return bl.linear.Attempt(b / 2, bl.Status.BREAKDOWN, steps=1, matvecs=0)
      >>> print(Halve().solve(lambda v: 2 * v, jnp.ones(2)).value)
      [0.5 0.5]
    """

    value: PyTree
    reason: jax.Array | int
    steps: jax.Array | int
    matvecs: jax.Array | int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A method after the work that needs no right-hand side; call it with (b, init, tolerance).

    Args:
      attempt: (b, init, tolerance) ↦ `Attempt`, which counts only its own products.
      matvecs: number of products of the preparation.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> prepared = bl.linear.Direct().prepare(bl.linear.Operator(lambda v: 2 * v), jnp.ones(2))
      >>> print(prepared(jnp.ones(2), jnp.zeros(2), 1e-6).value, prepared.matvecs)
      [0.5 0.5] 2
    """

    attempt: Callable[[PyTree, PyTree, jax.Array], Attempt]
    matvecs: int = 0

    def __call__(self, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Solve for one right-hand side, and count the products of the preparation too."""
        found = self.attempt(b, init, tolerance)
        return dataclasses.replace(found, matvecs=found.matvecs + self.matvecs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSolver(abc.ABC):
    """Base class of all linear solvers: a subclass defines `attempt`; the tolerance, the start and the status are set here.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b
        (4e-11 in float64, 2e-5 in float32).
      atol: absolute floor of the same test; 0 by default.

    Raises:
      ValueError: a negative tolerance.

    Example:
      >>> import dataclasses, jax.numpy as jnp, bilevel as bl
      >>> @dataclasses.dataclass(frozen=True, kw_only=True)
      ... class Halve(bl.linear.LinearSolver):
      ...     def attempt(self, operator, b, init, tolerance):
      ...         return bl.linear.Attempt(b / 2, bl.Status.STAGNATED, steps=1, matvecs=0)
      >>> print(Halve().solve(lambda v: 2 * v, jnp.ones(2)).converged, Halve().solve(lambda v: v, jnp.ones(2)).converged)
      True False
    """

    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        if (self.rtol is not None and self.rtol < 0) or self.atol < 0:
            raise ValueError(f"{type(self).__name__}: rtol and atol must not be negative, got {self.rtol}, {self.atol}")

    @abc.abstractmethod
    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Solve from `init`, aiming at a residual norm of `tolerance`."""

    def prepare(self, operator: Operator, like: PyTree) -> Prepared:
        """Do the work that needs no right-hand side, once for many that are like `like`; `Direct` factors here."""
        return Prepared(functools.partial(self.attempt, operator))

    def preconditioned(self, preconditioner: Product | None) -> "LinearSolver":
        """This solver with a preconditioner v ↦ M⁻¹v, symmetric and positive definite. Raises ValueError if it takes none."""
        del preconditioner
        raise ValueError(
            f"linear.{type(self).__name__} takes no preconditioner of a symmetric system: use linear.CG or linear.MINRES"
        )

    def effective_operator(self, operator: Operator) -> Operator:
        """The operator of the system that is solved, and that judges the answer: A itself, except for `Damped`."""
        return operator

    def solve(
        self, operator: Operator | Product, b: PyTree, init: PyTree | None = None, tolerance: jax.Array | None = None
    ) -> LinearSolution:
        """Solve A x = b.

        Args:
          operator: A; a plain function v ↦ A v is taken as an operator of general structure.
          b: right-hand side, any pytree of floating-point arrays.
          init: start, for example the last solution; zeros if None.
          tolerance: residual norm to reach, instead of max(rtol · ‖b‖, atol); for a b that is part of a larger vector.

        Returns:
          LinearSolution. A numerical failure raises nothing: check `status`.

        Raises:
          ValueError: `init` has another structure or other shapes than b.

        Example:
          >>> import jax.numpy as jnp, bilevel as bl
          >>> found = bl.linear.CG().solve(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
          >>> print(found.value.round(3), bl.Status(int(found.status)).word)
          [1.  0.5] converged
        """
        operator = self._posed(operator, b, init)
        tolerance = self.tolerance(b) if tolerance is None else tolerance
        return _judged(operator, functools.partial(self.attempt, operator), b, init, tolerance)

    def solve_block(self, operator: Operator | Product, b: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve A X = B for k right-hand sides at once.

        Products are batched, so that a dense A is read once for all columns, and a factorization is shared. Each right-hand
        side has its own tolerance and status.

        Args:
          operator: as in `solve`.
          b: right-hand sides; every leaf has a leading axis of length k.
          init: starts, like b; zeros if None.

        Returns:
          LinearSolution whose leaves all have a leading axis of length k; `matvecs` counts as if each were solved alone.

        Raises:
          ValueError: the leaves of b do not share a leading axis.

        Example:
          >>> import jax.numpy as jnp, bilevel as bl
          >>> found = bl.linear.CG().solve_block(lambda v: jnp.array([2.0, 4.0]) * v, jnp.eye(2))
          >>> print(found.value.round(3).tolist(), found.status)
          [[0.5, 0.0], [0.0, 0.25]] [0 0]
        """
        lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(b)}
        if len(lengths) != 1 or () in lengths:
            raise ValueError(
                f"solve_block: every leaf of b needs the same leading axis, one entry per right-hand side, got "
                f"{_tree.shapes(b)}: stack the right-hand sides, or call solve"
            )
        operator = self._posed(operator, b, init)
        prepared = self.prepare(operator, jax.tree.map(lambda x: x[0], b))
        return jax.vmap(lambda b, init: _judged(operator, prepared, b, init, self.tolerance(b)))(b, init)

    def tolerance(self, b: PyTree) -> jax.Array:
        """The residual norm at which A x = b is solved: max(rtol · ‖b‖, atol)."""
        rtol, atol = self.tolerances
        return jnp.maximum((_tree.eps(b) ** (2 / 3) if rtol is None else rtol) * _tree.norm(b), atol)

    @property
    def tolerances(self) -> tuple[float | None, float]:
        """rtol and atol in effect."""
        return self.rtol, self.atol

    def _posed(self, operator: Operator | Product, b: PyTree, init: PyTree | None) -> Operator:
        """The operator of the system that is solved, after a check of the start."""
        if init is not None:
            _tree.check_like("init", init, "b", b)
        return self.effective_operator(operator if isinstance(operator, Operator) else Operator(operator))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedSolver(LinearSolver, abc.ABC):
    """Base class of the solvers with work that needs no right-hand side: a subclass defines `prepare`."""

    @abc.abstractmethod
    def prepare(self, operator: Operator, like: PyTree) -> Prepared:
        """Do that work once, for right-hand sides like `like`."""

    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Prepare, and solve for one right-hand side."""
        return self.prepare(operator, b)(b, init, tolerance)


def _judged(
    operator: Operator, attempt: Callable[..., Attempt], b: PyTree, init: PyTree | None, tolerance: jax.Array
) -> LinearSolution:
    """The outcome of an attempt, judged by its residual."""
    zero = _tree.zeros_like(b)
    start = zero if init is None else _tree.where(_tree.norm(b) == 0, zero, _tree.cast_like(init, b))
    found = attempt(b, start, tolerance)
    residual = _tree.norm(_tree.sub(operator.matvec(found.value), b))
    # A method that believes it succeeded, contrary to the true residual, has stagnated.
    missed = jnp.where(jnp.asarray(found.reason) == Status.CONVERGED, Status.STAGNATED, found.reason)
    status = jnp.where(residual <= tolerance, Status.CONVERGED, missed)
    status = jnp.where(_tree.all_finite(found.value) & jnp.isfinite(residual), status, Status.NON_FINITE)
    status, steps, matvecs = (jnp.asarray(n, jnp.int32) for n in (status, found.steps, found.matvecs + 1))
    return LinearSolution(found.value, status, residual, steps, matvecs)
