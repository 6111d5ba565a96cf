"""The contract of an optimality condition, and the function that it makes of a problem."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.linear import Operator, RootFunction, System
from bilevel.problem import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition(abc.ABC):
    """An optimality condition F(params, hparams, data) = 0, stated apart from the solver that finds its root.

    A subclass writes `residual`; it overrides `system` where it knows more about ∂₁F than its products.
    """

    @abc.abstractmethod
    def residual(self, problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> PyTree:
        """F, with the structure of params, in the units of the inner loss's gradient unless said otherwise."""

    def check(self, problem: Problem) -> None:
        """Raise ValueError, before anything is traced, if the problem lacks what the condition needs."""
        del problem  # by default a condition needs nothing

    def system(self, problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> System:
        """The linear systems with ∂₁F at params."""
        return System(self._linearized(problem, params, hparams, data))

    def margin(self, problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> jax.Array | None:
        """How far, relative to their size, the pairs are apart of which one must vanish; None where F has no such pairs."""
        del problem, params, hparams, data
        return None

    def _linearized(self, problem, params, hparams, data) -> Operator:
        _, push = jax.linearize(lambda x: _tree.cast_like(self.residual(problem, x, hparams, data), x), params)
        return Operator(push)


@dataclasses.dataclass(frozen=True)
class Bound(RootFunction):
    """F(params, hparams, data) of a condition and a problem, for `custom_root`, `root_vjp` and `root_jvp`."""

    condition: Condition
    problem: Problem

    def __call__(self, params: PyTree, hparams: PyTree, data: PyTree = None) -> PyTree:
        """F."""
        return self.condition.residual(self.problem, params, hparams, data)

    def system(self, params: PyTree, hparams: PyTree, data: PyTree = None) -> System:
        """The linear systems with ∂₁F at params, in the form that the condition knows to be best."""
        return self.condition.system(self.problem, params, hparams, data)


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
