"""The contract of an optimality condition, and the function that it makes of a problem."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from bilevel import _needs, _tree
from bilevel._needs import Need
from bilevel._tree import PyTree
from bilevel.linear import Operator, RootFunction, System
from bilevel.problem import At, Problem
from bilevel.statements._base import Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition(abc.ABC):
    """An optimality condition F(params) = 0 of a problem at its hyperparameters, stated apart from the solver of its root.

    A subclass writes `residual` and declares what it `needs` of a problem and the kind of point that it `takes`; it overrides
    `system` where it knows more about ∂₁F than its products.

    Attributes:
      needs: requirements that a problem must meet.
      takes: the kinds of point that params may be: `"free"` in the whole space, of a `"set"` or under a prox, `"kkt"` (with
        multipliers), `"conic"` (of a cone program's embedding), `"weights"` (of the vertices of a convex hull).
      system_is_hessian: whether ∂₁F is the Hessian of the inner loss.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    takes: ClassVar[tuple[Kind, ...]] = ("free", "set")
    system_is_hessian: ClassVar[bool] = False

    @abc.abstractmethod
    def residual(self, at: At, params: PyTree) -> PyTree:
        """F, with the structure of params, in the units of the inner loss's gradient unless said otherwise."""

    def check(self, problem: Problem) -> None:
        """Raise ValueError, before anything is traced, if the problem does not meet the needs."""
        _needs.require(
            f"optimality.{type(self).__name__}",
            self.needs,
            problem.parts,
            lambda: "use the condition that the problem implies (optimality=auto), or state the problem otherwise",
        )

    def system(self, at: At, params: PyTree) -> System:
        """The linear systems with ∂₁F at params."""
        return System(self._linearized(at, params))

    def margin(self, at: At, params: PyTree) -> jax.Array | None:
        """The smallest gap between complementary quantities, relative to their size; None where F has no such pairs."""
        del at, params
        return None

    def _linearized(self, at: At, params: PyTree) -> Operator:
        _, push = jax.linearize(lambda x: _tree.cast_like(self.residual(at, x), x), params)
        return Operator(push)


@dataclasses.dataclass(frozen=True)
class Bound(RootFunction):
    """F(params, hparams, data) of a condition and a problem, for `custom_root`, `root_vjp` and `root_jvp`."""

    condition: Condition
    problem: Problem

    def __call__(self, params: PyTree, hparams: PyTree, data: PyTree = None) -> PyTree:
        """F."""
        return self.condition.residual(At(self.problem, hparams, data), params)

    def system(self, params: PyTree, hparams: PyTree, data: PyTree = None) -> System:
        """The linear systems with ∂₁F at params, in the form that the condition knows to be best."""
        return self.condition.system(At(self.problem, hparams, data), params)

    def margin(self, params: PyTree, hparams: PyTree, data: PyTree = None) -> jax.Array | None:
        """The margin of the condition at params."""
        return self.condition.margin(At(self.problem, hparams, data), params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Custom(Condition):
    """A user's F, of which nothing is known but its derivatives.

    Args:
      function: F(params, hparams, data), with the structure of params.
    """

    takes: ClassVar[tuple[Kind, ...]] = ("free", "set", "kkt", "conic")

    function: Callable[[Any, Any, Any], Any]

    def residual(self, at: At, params: PyTree) -> PyTree:
        """F."""
        value = self.function(params, at.hparams, at.data)
        _tree.check_like("the value of Problem.optimality", value, "params", params)
        return value
