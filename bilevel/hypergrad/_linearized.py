"""The outer loss and the optimality condition, linearized at one inner point."""

import dataclasses
from collections.abc import Callable

import jax

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.linear import System
from bilevel.optimality import Condition
from bilevel.problem import At


@dataclasses.dataclass(frozen=True)
class Linearized:
    """What the hypergradient at (params, θ) is made of, with F the condition, A = ∂₁F and B = ∂₂F.

    Attributes:
      at, condition, params: the problem, its condition F, and the inner point.
      outer_loss: the outer loss.
      cotangent: ∂₁outer, like params.
      direct: ∂₂outer, like the differentiable leaves of hparams.
      residual: F, like params.
      pull: u ↦ (Aᵀu, Bᵀu).
      system: the systems with A and Aᵀ.
    """

    at: At
    condition: Condition
    params: PyTree
    outer_loss: jax.Array
    cotangent: PyTree
    direct: PyTree
    residual: PyTree
    pull: Callable[[PyTree], tuple[PyTree, PyTree]]
    system: System

    @classmethod
    def of(cls, at: At, condition: Condition, params: PyTree) -> "Linearized":
        """The linearization at params."""
        moving, fixed = _tree.split(at.hparams)

        def moved(moving: PyTree) -> At:
            return at.replace(hparams=_tree.merge(moving, fixed))

        def outer_loss(params: PyTree, moving: PyTree) -> jax.Array:
            return moved(moving).outer_loss(params)

        def residual(params: PyTree, moving: PyTree) -> PyTree:
            return _tree.cast_like(condition.residual(moved(moving), params), params)

        value, (cotangent, direct) = jax.value_and_grad(outer_loss, argnums=(0, 1))(params, moving)
        residual_value, pull = jax.vjp(residual, params, moving)
        system = condition.system(at, params)
        return cls(at, condition, params, value, cotangent, direct, residual_value, pull, system)

    def gradient(self, adjoint: PyTree) -> PyTree:
        """∂₂outer − Bᵀu."""
        return _tree.sub(self.direct, self.pull(adjoint)[1])
