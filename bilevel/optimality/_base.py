"""The contract of an optimality condition, and the linear systems that its linearization poses."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.linear import LinearSolution, LinearSolver, Operator
from bilevel.problem import Problem


@dataclasses.dataclass(frozen=True)
class AdjointSystem:
    """Aᵀ u = w at one point, in the form that is best to solve: `operator` z = `restrict`(w), then u = `expand`(z, w).

    Attributes:
      operator: the system's operator.
      restrict: maps w, and a start for u, into the system's space.
      expand: (z, w) -> u.
    """

    operator: Operator
    restrict: Callable[[PyTree], PyTree] = lambda w: w
    expand: Callable[[PyTree, PyTree], PyTree] = lambda z, w: z

    def solve(self, solver: LinearSolver, cotangent: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for u. The tolerance refers to ‖w‖, also where its restriction is small or vanishes."""
        start = None if init is None else self.restrict(init)
        scale = _tree.norm(cotangent)
        solution = solver.solve(self.operator, self.restrict(cotangent), start, scale)
        return dataclasses.replace(solution, value=self.expand(solution.value, cotangent))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition(abc.ABC):
    """An optimality condition F(params, hparams, data) = 0, stated apart from the solver that finds its root.

    A subclass writes `residual`; it overrides `adjoint_system` where it knows more about ∂₁F than its products.
    """

    @abc.abstractmethod
    def residual(self, problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> PyTree:
        """F, with the structure of params, in the units of the inner loss's gradient unless said otherwise."""

    def check(self, problem: Problem) -> None:
        """Raise ValueError, before anything is traced, if the problem lacks what the condition needs."""
        del problem  # by default a condition needs nothing

    def adjoint_system(self, problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> AdjointSystem:
        """The system (∂₁F)ᵀ u = w at params."""
        _, pull = jax.vjp(lambda x: _tree.cast_like(self.residual(problem, x, hparams, data), x), params)
        return AdjointSystem(Operator(lambda v: pull(v)[0]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Custom(Condition):
    """A user's F, of which nothing is known but its derivatives.

    Args:
      function: F(params, hparams, data), with the structure of params.
    """

    function: Callable[[Any, Any, Any], Any]

    def residual(self, problem, params, hparams, data):
        """F."""
        value = self.function(params, hparams, data)
        _tree.check_like("the value of Problem.optimality", value, "params", params)
        return value
