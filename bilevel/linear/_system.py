"""The linear systems of a linearized root, A x = b and Aᵀ u = w, in the form that is best to solve.

A reduced system is equivalent to the full one only if what was declared of the problem is true. So its answer is judged by one
product with the full A: with r = b − A x, it converges when ‖r‖ ≤ max(rtol · ‖b‖, atol), as without a reduction. If the
reduction is exact, r is the reduced residual times a factor of moderate size. So an r slightly above the tolerance, by less
than the factor `_NEARLY`, is solved for once more; an r far above it shows that the systems are not equivalent.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear._base import LinearSolution, LinearSolver, Operator

_NEARLY = 100.0


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A smaller or more symmetric form of A x = b: x = `expand`(z, b), where `operator` z = `restrict`(b).

    The transposed system uses the transposes of both maps, so that one statement serves both modes.

    Args:
      operator: the operator of the reduced system.
      restrict: b ↦ right-hand side of the reduced system, linear; the identity by default.
      expand: (z, b) ↦ x, linear in both; z by default.
      start: u ↦ start of the transposed reduced system, from an earlier u; `None` (default) starts at zero.
      valid: whether the reduction holds at this point; if not, the answer is NaN and its status `BREAKDOWN`.
      approximate: whether the reduced system differs from A x = b by design, everywhere or (a boolean array) at this point.
        Its answer is then judged on the reduced system only.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> diagonal = jnp.array([2.0, 4.0])
      >>> symmetric = bl.linear.Operator(lambda z: z, "positive_definite")
      >>> reduction = bl.linear.Reduction(symmetric, restrict=lambda b: b / diagonal)
      >>> system = bl.linear.System(bl.linear.Operator(lambda v: diagonal * v), reduction)
      >>> print(system.solve(bl.linear.CG(), jnp.ones(2)).value)
      [0.5  0.25]
    """

    operator: Operator
    restrict: Callable[[PyTree], PyTree] = lambda b: b
    expand: Callable[[PyTree, PyTree], PyTree] = lambda z, b: z
    start: Callable[[PyTree], PyTree] | None = None
    valid: bool | jax.Array = True
    approximate: bool | jax.Array = False

    def transpose(self, like: PyTree) -> "Reduction":
        """The reduction of the transposed system, for right-hand sides like `like`."""
        reduced, operator = jax.eval_shape(self.restrict, like), self.operator
        if operator.structure == "general":
            operator = operator.transpose(_tree.zeros_like(reduced))
        restrict, expand = jax.linear_transpose(self.expand, reduced, like), jax.linear_transpose(self.restrict, like)
        return dataclasses.replace(
            self,
            operator=operator,
            restrict=lambda w: restrict(w)[0],
            expand=lambda z, w: _tree.add_scaled(expand(z)[0], 1, restrict(w)[1]),
        )


@dataclasses.dataclass(frozen=True)
class System:
    """The systems A x = b and Aᵀ u = w with A = ∂₁F at one point, in the form that is best to solve.

    The answer of a reduced system is judged by the full A and the tolerances of the solver. A solver that solves a modified
    system (`Damped`) is given the full operator.

    Args:
      operator: A.
      reduction: an equivalent smaller or symmetric system, if one is known.

    Statuses: those of the solver, and `WRONG_STRUCTURE` if the reduced system is solved and ‖A x − b‖ is more than 100 times
    the tolerance: what was declared of the problem does not hold. Below that, `STAGNATED`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> wrong = bl.linear.Reduction(bl.linear.Operator(lambda z: 3 * z, "positive_definite"))
      >>> system = bl.linear.System(bl.linear.Operator(lambda v: 2 * v), wrong)
      >>> print(bl.Status(int(system.solve_transposed(bl.linear.Auto(), jnp.ones(2)).status)).word)
      wrong_structure
    """

    operator: Operator
    reduction: Reduction | None = None

    @property
    def approximate(self) -> bool | jax.Array:
        """Whether the system that is solved differs from A x = b by design."""
        return self.reduction is not None and self.reduction.approximate

    def solve(self, solver: LinearSolver, b: PyTree) -> LinearSolution:
        """A x = b. The tolerance refers to ‖b‖, and the residual is ‖A x − b‖, also where a reduced system is solved."""
        reduction = self._serving(solver)
        if reduction is None:
            return solver.solve(self.operator, b)
        start = _tree.zeros_like(jax.eval_shape(reduction.restrict, b))
        return _verified(solver, self.operator, reduction, b, start)

    def solve_transposed(self, solver: LinearSolver, w: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Aᵀ u = w, started at an earlier u; the tolerance refers to ‖w‖, and the residual is ‖Aᵀ u − w‖."""
        reduction, operator = self._serving(solver), self.operator.transpose(w)
        if reduction is None:
            return solver.solve(operator, w, init)
        start = _tree.zeros_like(jax.eval_shape(reduction.restrict, w))
        if init is not None and reduction.start is not None:
            start = _tree.cast_like(reduction.start(init), start)
        return _verified(solver, operator, reduction.transpose(w), w, start)

    def _serving(self, solver: LinearSolver) -> Reduction | None:
        """The reduction, unless the solver poses another system (`Damped`), for which it would not be equivalent."""
        if self.reduction is None or self.reduction.approximate is True:
            return self.reduction
        return self.reduction if solver.effective_operator(self.operator) is self.operator else None


class _State(NamedTuple):
    x: PyTree
    residual: PyTree
    norm: jax.Array
    tolerance: jax.Array  # of the next reduced solve
    start: PyTree
    status: jax.Array  # of the last reduced solve
    unfinished: jax.Array
    steps: jax.Array
    matvecs: jax.Array


def _verified(
    solver: LinearSolver, operator: Operator, reduction: Reduction, b: PyTree, start: PyTree
) -> LinearSolution:
    """The answer of the reduced system, with the status and the residual that it has in the full one."""
    tolerance = solver.tolerance(b)

    def reduced(b: PyTree, start: PyTree, tolerance: jax.Array) -> LinearSolution:
        found = solver.solve(reduction.operator, reduction.restrict(b), start, tolerance)
        return dataclasses.replace(found, value=reduction.expand(found.value, b))

    if reduction.approximate is True:
        return _valid(reduction, reduced(b, start, tolerance))

    def solve_for_residual(s: _State) -> _State:
        found = reduced(s.residual, s.start, s.tolerance)
        x = _tree.add_scaled(s.x, 1, found.value)
        residual = _tree.sub(b, operator(x))
        norm = _tree.norm(residual).astype(tolerance.dtype)
        if reduction.approximate is not False:
            norm = jnp.where(reduction.approximate, found.residual.astype(norm.dtype), norm)
        nearly = (norm > tolerance) & (norm <= _NEARLY * tolerance) & (norm < s.norm / 2)
        x, residual, kept = _tree.where(norm >= s.norm, (s.x, s.residual, s.norm), (x, residual, norm))
        return _State(
            x,
            residual,
            kept,
            # The factor between both residuals is known now.
            s.tolerance * tolerance / jnp.where(nearly, norm, 1) / 2,
            _tree.zeros_like(s.start),
            found.status,
            nearly & found.converged,
            s.steps + found.steps,
            s.matvecs + found.matvecs + 1,
        )

    zero, none = _tree.zeros_like(b), jnp.int32(0)
    infinite = jnp.full_like(tolerance, jnp.inf)
    first = _State(zero, b, infinite, tolerance, start, jnp.int32(Status.CONVERGED), jnp.asarray(True), none, none)
    end = jax.lax.while_loop(lambda s: s.unfinished, solve_for_residual, first)
    wrong = jnp.where(end.norm <= _NEARLY * tolerance, Status.STAGNATED, Status.WRONG_STRUCTURE)
    status = jnp.where(end.status == Status.CONVERGED, wrong, end.status)
    status = jnp.where(end.norm <= tolerance, Status.CONVERGED, status)
    status = jnp.where(_tree.all_finite(end.x) & jnp.isfinite(end.norm), status, Status.NON_FINITE)
    return _valid(reduction, LinearSolution(end.x, status.astype(jnp.int32), end.norm, end.steps, end.matvecs))


def _valid(reduction: Reduction, found: LinearSolution) -> LinearSolution:
    """The answer, or NaN where the reduction does not hold."""
    if reduction.valid is True:
        return found
    value = jax.tree.map(lambda x: jnp.where(reduction.valid, x, jnp.nan), found.value)
    status = jnp.where(reduction.valid, found.status, jnp.int32(Status.BREAKDOWN))
    return dataclasses.replace(found, value=value, status=status)


class RootFunction(abc.ABC):
    """A function F(sol, *args), zero at the solution, that knows the best form of its linear systems.

    `custom_root`, `root_vjp` and `root_jvp` accept one wherever they accept a plain function.

    Example:
      >>> import jax, jax.numpy as jnp, bilevel as bl
      >>> class Cube(bl.linear.RootFunction):
      ...     def __call__(self, x, theta):
      ...         return x**3 - theta
      ...     def system(self, x, theta):
      ...         return bl.linear.System(bl.linear.Operator(lambda v: 3 * x**2 * v, "positive_definite"))
      >>> root = bl.custom_root(Cube())(lambda init, theta: jnp.cbrt(theta))
      >>> print(f"{jax.grad(root, argnums=1)(None, 8.0):.4f}")
      0.0833
    """

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> PyTree:
        """F(sol, *args)."""

    @abc.abstractmethod
    def system(self, *args: Any, **kwargs: Any) -> System:
        """The linear systems with ∂₁F at (sol, *args). Called outside of `jit` wherever the user's call is."""
