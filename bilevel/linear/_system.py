"""The linear systems of a linearized root, A x = b and Aᵀ u = w, in the form that is best to solve.

A reduced system stands for the full one only if what was declared of the problem is true. So the answer that it gives is
judged by one product with the full A: with r = b − A x, it counts as converged when ‖r‖ ≤ max(rtol · ‖b‖, atol), as if
nothing had been reduced. Where the reduction is exact r is the reduced residual times a factor of moderate size, so that
an r just above the tolerance (by less than `_NEARLY`) is solved for once more; an r far above it shows that the systems
are not equivalent.
"""

from __future__ import annotations

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

Reduced = Callable[[PyTree, PyTree, jax.Array], LinearSolution]


@dataclasses.dataclass(frozen=True)
class Reduction:
    """How a smaller or more symmetric system stands for A x = b: x = `expand`(z, b), where `operator` z = `restrict`(b).

    The transposed system uses the transposes of both maps, so that one statement serves both modes.

    Args:
      operator: the operator of the reduced system.
      restrict: b ↦ right-hand side of the reduced system, linear.
      expand: (z, b) ↦ x, linear in both.
      start: u ↦ a start for the transposed reduced system, from an earlier u; None starts at zero.
      valid: whether the reduction holds at this point; where it does not, the answer is NaN and its status `BREAKDOWN`.
      approximate: whether the reduced system differs from A x = b by design, always or (an array) at this point. Its
        answer is then judged on the reduced system only.
    """

    operator: Operator
    restrict: Callable[[PyTree], PyTree] = lambda b: b
    expand: Callable[[PyTree, PyTree], PyTree] = lambda z, b: z
    start: Callable[[PyTree], PyTree] | None = None
    valid: bool | jax.Array = True
    approximate: bool | jax.Array = False


@dataclasses.dataclass(frozen=True)
class System:
    """A = ∂₁F at one point.

    Args:
      operator: A.
      reduction: an equivalent smaller or symmetric system, where one is known.
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

        def reduced(b: PyTree, start: PyTree, tolerance: jax.Array) -> LinearSolution:
            found = solver.solve(reduction.operator, reduction.restrict(b), start, tolerance)
            return dataclasses.replace(found, value=reduction.expand(found.value, b))

        start = _zeros(jax.eval_shape(reduction.restrict, b))
        return _verified(reduction, self.operator, reduced, b, start, solver.tolerance(b))

    def solve_transposed(self, solver: LinearSolver, w: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Aᵀ u = w, started at an earlier u; the tolerance refers to ‖w‖, and the residual is ‖Aᵀ u − w‖."""
        reduction = self._serving(solver)
        if reduction is None:
            return solver.solve(self.operator.transpose(w), w, init)
        like = jax.eval_shape(reduction.restrict, w)
        restrict = jax.linear_transpose(reduction.expand, like, w)
        expand = jax.linear_transpose(reduction.restrict, w)
        operator = reduction.operator
        if operator.structure == "general":
            operator = operator.transpose(_zeros(like))

        def reduced(w: PyTree, start: PyTree, tolerance: jax.Array) -> LinearSolution:
            z_part, w_part = restrict(w)
            found = solver.solve(operator, z_part, start, tolerance)
            return dataclasses.replace(found, value=_tree.add_scaled(expand(found.value)[0], 1, w_part))

        start = _zeros(like)
        if init is not None and reduction.start is not None:
            start = _tree.cast_like(reduction.start(init), start)
        return _verified(reduction, self.operator.transpose(w), reduced, w, start, solver.tolerance(w))

    def _serving(self, solver: LinearSolver) -> Reduction | None:
        """The reduction, unless the solver poses another system (`Damped`), for which it would not be equivalent."""
        if self.reduction is None or self.reduction.approximate is True:
            return self.reduction
        return self.reduction if solver.posed(self.operator) is self.operator else None


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
    reduction: Reduction, operator: Operator, reduced: Reduced, b: PyTree, start: PyTree, tolerance: jax.Array
) -> LinearSolution:
    """The answer of the reduced system, with the status and the residual that it has in the full one."""
    if reduction.approximate is True:
        return _valid(reduction, reduced(b, start, tolerance))

    def solve_for_residual(s: _State) -> _State:
        found = reduced(s.residual, s.start, s.tolerance)
        x = _tree.add_scaled(s.x, 1, found.value)
        residual = _tree.sub(b, _tree.cast_like(operator.matvec(x), b))
        norm = _tree.norm(residual).astype(tolerance.dtype)
        if reduction.approximate is not False:
            norm = jnp.where(reduction.approximate, found.residual.astype(norm.dtype), norm)
        better = ~(norm >= s.norm)
        nearly = (norm > tolerance) & (norm <= _NEARLY * tolerance) & (norm < s.norm / 2)
        return _State(
            _tree.where(better, x, s.x),
            _tree.where(better, residual, s.residual),
            jnp.where(better, norm, s.norm),
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


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


class RootFunction(abc.ABC):
    """A function F(sol, *args), zero at the solution, that knows more about its linear systems than their products.

    The engine takes one wherever it takes a plain function.
    """

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> PyTree:
        """F(sol, *args)."""

    @abc.abstractmethod
    def system(self, *args: Any, **kwargs: Any) -> System:
        """The linear systems with ∂₁F at (sol, *args). Called outside of `jit` wherever the user's call is."""
