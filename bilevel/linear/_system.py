"""The linear systems of a linearized root: A x = b and Aᵀ u = w, in the form that is best to solve."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear._base import LinearSolution, LinearSolver, Operator


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
    """

    operator: Operator
    restrict: Callable[[PyTree], PyTree] = lambda b: b
    expand: Callable[[PyTree, PyTree], PyTree] = lambda z, b: z
    start: Callable[[PyTree], PyTree] | None = None
    valid: Any = True
    approximate: bool = False

    def solve(self, solver: LinearSolver, b: PyTree) -> LinearSolution:
        """A x = b."""
        found = solver.solve(self.operator, self.restrict(b), scale=_tree.norm(b))
        return self._judged(found, self.expand(found.value, b))

    def solve_transposed(self, solver: LinearSolver, w: PyTree, init: PyTree | None) -> LinearSolution:
        """Aᵀ u = w."""
        reduced = jax.eval_shape(self.restrict, w)
        z_part, w_part = jax.linear_transpose(self.expand, reduced, w)(w)
        start = None if init is None or self.start is None else self.start(init)
        found = solver.solve(self.operator.transpose(z_part), z_part, start, scale=_tree.norm(w))
        (u,) = jax.linear_transpose(self.restrict, w)(found.value)
        return self._judged(found, _tree.add_scaled(u, 1, w_part))

    def _judged(self, found: LinearSolution, value: PyTree) -> LinearSolution:
        if self.valid is True:
            return dataclasses.replace(found, value=value)
        value = jax.tree.map(lambda x: jnp.where(self.valid, x, jnp.nan), value)
        status = jnp.where(self.valid, found.status, jnp.int32(Status.BREAKDOWN))
        return dataclasses.replace(found, value=value, status=status)


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
    def approximate(self) -> bool:
        """Whether the reduction approximates by design."""
        return self.reduction is not None and self.reduction.approximate

    def solve(self, solver: LinearSolver, b: PyTree) -> LinearSolution:
        """A x = b. The tolerance refers to ‖b‖, also where its restriction is small or vanishes."""
        if self.reduction is not None:
            return self.reduction.solve(solver, b)
        return solver.solve(self.operator, b)

    def solve_transposed(self, solver: LinearSolver, w: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Aᵀ u = w, started at an earlier u; the tolerance refers to ‖w‖."""
        if self.reduction is not None:
            return self.reduction.solve_transposed(solver, w, init)
        return solver.solve(self.operator.transpose(w), w, init)


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
