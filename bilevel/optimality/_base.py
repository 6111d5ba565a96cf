"""The contract of an optimality condition, and the function that it makes of a problem."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bilevel import _needs, _tree
from bilevel._needs import Need
from bilevel._tree import PyTree
from bilevel.linear import Operator, RootFunction, System
from bilevel.problem import At, Problem
from bilevel.statements._base import Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition(abc.ABC):
    """An optimality condition F(params) = 0 of a problem at its hyperparameters, independent of the solver of its root.

    A subclass defines `residual`, what it `needs` of a problem and the kind of point that it `takes`; it overrides `system` where
    it knows more about ∂₁F than its products.

    Attributes:
      needs: requirements that a problem must meet.
      takes: the kinds of point that params may be: `"free"`, a point of the whole space; `"set"`, a point of a set or a minimum
        with a prox; `"kkt"`, a point with multipliers; `"conic"`, a point of a cone program's embedding; `"weights"`, the weights
        of the vertices of a convex hull.
      system_is_hessian: whether ∂₁F is the Hessian of the inner loss.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> class Scaled(bl.optimality.Condition):
      ...     def residual(self, at, params):
      ...         return 100 * at.gradient(params)
      >>> problem = bl.Problem(lambda x, theta, data: (x - theta) ** 2, optimality=Scaled())
      >>> print(bl.root_jvp(bl.optimality.bind(problem), jnp.array(3.0), (3.0,), (1.0,)).round())
      1.0
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    takes: ClassVar[tuple[Kind, ...]] = ("free", "set")
    system_is_hessian: ClassVar[bool] = False

    @abc.abstractmethod
    def residual(self, at: At, params: PyTree) -> PyTree:
        """F, with the structure and shapes of params, in the units of the inner gradient unless the class states others."""

    def check(self, problem: Problem) -> None:
        """Raise ValueError, before anything is traced, if the problem does not meet the needs."""
        _needs.require(
            f"optimality.{type(self).__name__}",
            self.needs,
            problem.parts,
            lambda: "use the condition that the problem implies (optimality=auto), or change the problem",
        )

    def system(self, at: At, params: PyTree) -> System:
        """The linear systems with ∂₁F at params."""
        return System(self._linearized(at, params))

    def margin(self, at: At, params: PyTree) -> jax.Array | None:
        """The smallest gap between complementary quantities, relative to their size; None where F has no such pairs."""
        del at, params
        return None

    def jump(self, at: At, params: PyTree, adjoint: PyTree, reach: jax.Array) -> jax.Array:
        """How much Aᵀu changes where every entry of params moves by `reach` times the largest of its leaf, in norm.

        Large near a kink of F. Zero for a problem without a set, a prox or constraints.
        """
        if at.parts.smooth:
            return jnp.zeros((), _tree.dtype(params))

        def product(x: PyTree) -> PyTree:
            return jax.vjp(lambda x: _tree.cast_like(self.residual(at, x), x), x)[1](adjoint)[0]

        return largest_change(product, params, params, reach)

    def _linearized(self, at: At, params: PyTree) -> Operator:
        _, push = jax.linearize(lambda x: _tree.cast_like(self.residual(at, x), x), params)
        return Operator(push)


def largest_change(product: Callable[[PyTree], PyTree], point: PyTree, params: PyTree, reach: jax.Array) -> jax.Array:
    """The largest change of the product between a point and two points beside it, along signs and against them."""
    here, found = product(point), jnp.zeros((), _tree.dtype(params))
    for sign in (-1, 1):

        def beside(p: jax.Array, x: jax.Array, d: jax.Array, sign: int = sign) -> jax.Array:
            step = jnp.asarray(reach, p.dtype) * jnp.max(jnp.abs(x), initial=0).astype(p.dtype)
            return p + sign * step * d

        there = product(jax.tree.map(beside, point, params, _tree.signs(point)))
        found = jnp.maximum(found, _tree.norm(_tree.sub(there, here)))
    return found


@dataclasses.dataclass(frozen=True)
class Bound(RootFunction):
    """F(params, hparams, data) of a condition and a problem, for `custom_root`, `root_vjp` and `root_jvp`. Made by `bind`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> bound = bl.optimality.bind(bl.Problem(lambda x, theta, data: jnp.sum((x - theta) ** 2)))
      >>> print(bound(jnp.array([1.0, 2.0]), 1.0), type(bound.condition).__name__)
      [0. 2.] Stationary
    """

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
    """A function of the user as F. Its linear systems are solved as general ones.

    Args:
      function: F(params, hparams, data), with the structure and shapes of params; a call raises ValueError if it has others.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> cube = bl.Problem(optimality=bl.optimality.Custom(function=lambda x, theta, data: x**3 - theta))
      >>> print(bl.root_jvp(bl.optimality.bind(cube), jnp.array(2.0), (8.0,), (12.0,)).round())
      1.0
    """

    takes = ("free", "set", "kkt", "conic")

    function: Callable[[Any, Any, Any], Any]

    def residual(self, at: At, params: PyTree) -> PyTree:
        """F."""
        value = self.function(params, at.hparams, at.data)
        _tree.check_like("the value of Problem.optimality", value, "params", params)
        return value
