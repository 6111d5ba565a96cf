"""A bilevel problem: what the solvers and estimators are told, apart from how they solve it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilevel.optimality import Condition

Loss = Callable[[Any, Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """min over hparams of outer_loss(x*(hparams), hparams, data), where x* minimizes the inner problem.

    The inner problem is inner_loss(x, hparams, data) + g(x), x in C, with g given by its `prox` or C by its
    `projection` (neither: smooth and unconstrained). Every function takes `(params, hparams, data)`; data is an argument,
    never closed over, so that nothing is compiled into the program.

    Attributes:
      inner_loss: (params, hparams, data) -> scalar, differentiable.
      outer_loss: (params, hparams, data) -> scalar, differentiable.
      optimality: the condition that x* satisfies: a `bilevel.optimality.Condition`, or a function
        F(params, hparams, data) with the structure of params, zero at x*. None: the projected-gradient map if there is a
        projection, the proximal-gradient map if there is a prox, else stationarity of the inner loss.
      prox: (params, hparams, data, step) -> argmin over z of ½‖z − params‖² + step · g(z).
      projection: (params, hparams, data) -> the Euclidean projection of params on C.
      polyhedral: C is a polyhedron (box, simplices, half-spaces, …), so that the projection's Jacobian is an orthogonal
        projector; the linear systems are then solved on the active face.
      separable: g is a sum over coordinates (lasso, elastic net, …), so that the prox's Jacobian is diagonal; the linear
        systems are then solved on the support.
      lipschitz: (hparams, data) -> a Lipschitz constant L of ∂₁inner_loss; solvers then need no line search.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> def train_loss(params, hparams, data):
      ...     features, y = data["train"]
      ...     return jnp.sum((features @ params - y) ** 2) + jnp.exp(hparams) * jnp.sum(params**2)
      >>> def validation_loss(params, hparams, data):
      ...     features, y = data["validation"]
      ...     return jnp.mean((features @ params - y) ** 2)
      >>> problem = bl.Problem(inner_loss=train_loss, outer_loss=validation_loss)
    """

    inner_loss: Loss
    outer_loss: Loss
    optimality: Condition | Loss | None = None
    prox: Callable[[Any, Any, Any, Any], Any] | None = None
    projection: Loss | None = None
    polyhedral: bool = False
    separable: bool = False
    lipschitz: Callable[[Any, Any], Any] | None = None

    def __post_init__(self):
        for name in ("inner_loss", "outer_loss"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Problem: {name} must be a function (params, hparams, data) -> scalar")
        if self.prox is not None and self.projection is not None:
            raise ValueError("Problem: give a prox or a projection, not both; a projection is the prox of an indicator")
        if self.polyhedral and self.projection is None:
            raise ValueError("Problem: polyhedral=True describes a projection, and there is none")
        if self.separable and self.prox is None:
            raise ValueError("Problem: separable=True describes a prox, and there is none")

    @property
    def smooth(self) -> bool:
        """Whether the inner problem is smooth and unconstrained."""
        return self.prox is None and self.projection is None

    def proximal_step(self, params: Any, hparams: Any, data: Any, step: Any) -> Any:
        """The prox, the projection, or nothing: what follows a gradient step of length `step`."""
        if self.prox is not None:
            return self.prox(params, hparams, data, step)
        if self.projection is not None:
            return self.projection(params, hparams, data)
        return params
