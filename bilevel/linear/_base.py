"""The contract of a linear solver: A x = b from products with A, and a record that tells the truth about the answer."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree

Structure = Literal["general", "symmetric", "positive_definite"]


@dataclasses.dataclass(frozen=True)
class Operator:
    """A square linear map known by its products.

    Args:
      matvec: v ↦ A v, linear; v and A v have the structure of the unknown.
      structure: what solvers may assume of A: `"general"`, `"symmetric"` or `"positive_definite"` (symmetric too).
      singular: A may be singular, and a least-squares or minimum-norm answer is wanted; `Direct` and `Auto` heed it.
      self_adjoint: A = Aᵀ by construction (a Hessian, JᵀJ), so that A serves as its own transpose. A symmetry that is
        only declared, by `structure`, is not trusted with that: the transpose is then computed.
    """

    matvec: Callable[[PyTree], PyTree]
    structure: Structure = "general"
    singular: bool = False
    self_adjoint: bool = False

    def transpose(self, like: PyTree) -> Operator:
        """Aᵀ, for unknowns like `like`: A itself where it is `self_adjoint`."""
        if self.self_adjoint:
            return self
        transposed = jax.linear_transpose(lambda v: _tree.cast_like(self.matvec(v), v), like)
        return dataclasses.replace(self, matvec=lambda v: transposed(v)[0])


def damped(operator: Operator, ridge: float | jax.Array) -> Operator:
    """A + ridge · I, with the structure of A. The ridge is absolute, in the units of A, and is taken to be positive."""
    matvec = operator.matvec
    return dataclasses.replace(operator, matvec=lambda v: _tree.add_scaled(matvec(v), ridge, v), singular=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearSolution:
    """What a linear solve returns.

    Attributes:
      value: x, with the structure of b.
      status: int32 code of `bilevel.Status`.
      residual: ‖A x − b‖₂, computed by one more product with A, not by a recurrence.
      steps: iterations.
      matvecs: products with A or Aᵀ, that of the residual included.
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
    """What a method hands back to `LinearSolver.solve`, which judges it: its answer, and why it stopped if that falls short."""

    value: PyTree
    reason: jax.Array | int
    steps: jax.Array | int
    matvecs: jax.Array | int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A method with all done that needs no right-hand side: call it with (b, init, tolerance).

    Args:
      attempt: (b, init, tolerance) ↦ `Attempt`, which counts the products of the call only.
      matvecs: products that the preparation took.
    """

    attempt: Callable[[PyTree, PyTree, jax.Array], Attempt]
    matvecs: int = 0

    def __call__(self, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Solve for one right-hand side."""
        return self.attempt(b, init, tolerance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSolver(abc.ABC):
    """Base of all linear solvers. A subclass writes `attempt`; the tolerance, the start and the verdict live here.

    Args:
      rtol: the answer counts as converged when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol). `None`: ε^⅔ of the precision in
        use (4e-11 in float64, 2e-5 in float32).
      atol: absolute floor of the same test.
    """

    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self):
        if (self.rtol is not None and self.rtol < 0) or self.atol < 0:
            raise ValueError(f"{type(self).__name__}: rtol and atol must not be negative, got {self.rtol}, {self.atol}")

    @abc.abstractmethod
    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Solve from `init`, aiming at a residual norm of `tolerance`."""

    def prepare(self, operator: Operator, like: PyTree) -> Prepared:
        """Do what needs no right-hand side once, for many of the structure of `like`: `Direct` factors here."""
        return Prepared(lambda b, init, tolerance: self.attempt(operator, b, init, tolerance))

    def preconditioned(self, preconditioner: Callable[[PyTree], PyTree] | None) -> LinearSolver:
        """This solver with a preconditioner v ↦ M⁻¹v, symmetric and positive definite. Raises ValueError if it takes none."""
        del preconditioner
        raise ValueError(
            f"linear.{type(self).__name__} takes no preconditioner of a symmetric system: use linear.CG or linear.MINRES"
        )

    def posed(self, operator: Operator) -> Operator:
        """The system that is solved, and on which the answer is judged: A itself, but for `Damped`."""
        return operator

    def solve(
        self,
        operator: Operator | Callable[[PyTree], PyTree],
        b: PyTree,
        init: PyTree | None = None,
        tolerance: jax.Array | None = None,
    ) -> LinearSolution:
        """Solve A x = b.

        Args:
          operator: A; a bare function v ↦ A v stands for an operator of general structure.
          b: right-hand side, any pytree of floating-point arrays.
          init: start, for example the last solution; zeros if None.
          tolerance: the residual norm to reach, in place of max(rtol · ‖b‖, atol); for a b that is part of a larger vector.

        Returns:
          LinearSolution. Never raises on a numerical failure: look at `status`.

        Example:
          >>> import jax.numpy as jnp, bilevel as bl
          >>> found = bl.linear.CG().solve(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
          >>> print(found.value.round(3), bl.Status(int(found.status)).word)
          [1.  0.5] converged
        """
        operator = self.posed(operator if isinstance(operator, Operator) else Operator(operator))
        if init is not None:
            _tree.check_like("init", init, "b", b)
        return self._judged(operator, lambda *args: self.attempt(operator, *args), b, init, tolerance)

    def solve_block(
        self, operator: Operator | Callable[[PyTree], PyTree], b: PyTree, init: PyTree | None = None
    ) -> LinearSolution:
        """Solve A X = B for k right-hand sides at once.

        The products run on blocks, so that a dense A is read once for all columns, and a factorization is shared. Each
        right-hand side stops by its own tolerance and has its own status.

        Args:
          operator: as in `solve`.
          b: right-hand sides; every leaf has a leading axis of length k.
          init: starts, like b; zeros if None.

        Returns:
          LinearSolution with a leading axis of k on everything; `matvecs` counts what each would have taken alone.

        Raises:
          ValueError: if the leaves of b do not share a leading axis.

        Example:
          >>> import jax.numpy as jnp, bilevel as bl
          >>> found = bl.linear.CG().solve_block(lambda v: jnp.array([2.0, 4.0]) * v, jnp.eye(2))
          >>> print(found.value.round(3).tolist(), found.status)
          [[0.5, 0.0], [0.0, 0.25]] [0 0]
        """
        operator = self.posed(operator if isinstance(operator, Operator) else Operator(operator))
        if len({jnp.shape(x)[:1] for x in jax.tree.leaves(b)} - {()}) != 1 or any(
            jnp.ndim(x) == 0 for x in jax.tree.leaves(b)
        ):
            raise ValueError(
                f"solve_block: every leaf of b needs the same leading axis, one entry per right-hand side, got "
                f"{_tree.shapes(b)}: stack the right-hand sides, or call solve"
            )
        if init is not None:
            _tree.check_like("init", init, "b", b)
        prepared = self.prepare(operator, jax.tree.map(lambda x: x[0], b))

        def attempt(*args):
            found = prepared(*args)
            return dataclasses.replace(found, matvecs=found.matvecs + prepared.matvecs)

        return jax.vmap(lambda b, init: self._judged(operator, attempt, b, init, None))(b, init)

    def tolerance(self, b: PyTree) -> jax.Array:
        """The residual norm at which A x = b counts as solved: max(rtol · ‖b‖, atol)."""
        rtol = _tree.eps(b) ** (2 / 3) if self.rtol is None else self.rtol
        return jnp.maximum(rtol * _tree.norm(b), self.atol)

    def _judged(
        self,
        operator: Operator,
        attempt: Callable[..., Attempt],
        b: PyTree,
        init: PyTree | None,
        tolerance: jax.Array | None,
    ) -> LinearSolution:
        """The outcome of an attempt, by the residual that it leaves."""
        tolerance = self.tolerance(b) if tolerance is None else tolerance
        zero = _tree.zeros_like(b)
        start = zero if init is None else _tree.where(_tree.norm(b) == 0, zero, _tree.cast_like(init, b))
        found = attempt(b, start, tolerance)
        residual = _tree.norm(_tree.sub(operator.matvec(found.value), b))
        finite = _tree.all_finite(found.value) & jnp.isfinite(residual)
        status = jnp.where(residual <= tolerance, Status.CONVERGED, found.reason)
        # A method that thinks it succeeded, while the true residual says otherwise, has stagnated.
        status = jnp.where((residual > tolerance) & (status == Status.CONVERGED), Status.STAGNATED, status)
        status = jnp.where(finite, status, Status.NON_FINITE)
        return LinearSolution(
            value=found.value,
            status=jnp.asarray(status, jnp.int32),
            residual=residual,
            steps=jnp.asarray(found.steps, jnp.int32),
            matvecs=jnp.asarray(found.matvecs, jnp.int32) + 1,
        )


def differentiable_solve(
    solver: LinearSolver, operator: Operator, b: PyTree, init: PyTree | None = None, *, nan_on_failure: bool = False
) -> LinearSolution:
    """`solver.solve`, with the derivatives of A⁻¹b in every mode; the solver itself is never differentiated.

    With `nan_on_failure` an answer that missed its tolerance, here or in a derivative, is NaN.
    """
    init = jax.lax.stop_gradient(init)

    def solve(matvec, b):
        solution = solver.solve(dataclasses.replace(operator, matvec=matvec), b, init)
        value = solution.value
        if nan_on_failure:
            value = jax.tree.map(lambda x: jnp.where(solution.converged, x, jnp.nan), value)
        return value, dataclasses.replace(solution, value=None)

    value, record = jax.lax.custom_linear_solve(
        lambda v: _tree.tie(operator.matvec(v)),
        _tree.tie(b),
        solve=solve,
        transpose_solve=solve,
        symmetric=operator.self_adjoint,
        has_aux=True,
    )
    return dataclasses.replace(record, value=_tree.tie(value))
