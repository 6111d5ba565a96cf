"""The general statement: minimize a differentiable loss plus a term with a prox, over a set, or under constraints."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from bilevel import _checks
from bilevel.statements._base import Function, Parts, Statement

_FUNCTIONS = (
    "prox",
    "block_prox",
    "projection",
    "equality",
    "inequality",
    "lipschitz",
    "block_lipschitz",
    "datafit",
    "design",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Minimization(Statement):
    """minimize loss(x, hparams, data) + g(x) over C.

    At most one of g and C is there: g is given by its `prox`, and C by its `projection` or by `equality` and `inequality`.

    Args:
      loss: (params, hparams, data) -> scalar, differentiable; None if `datafit` and `design` imply it.
      prox: (params, hparams, data, step) -> argmin over z of ½‖z − params‖² + step · g(z).
      separable: g is a sum over coordinates (lasso, elastic net, …), or with `"rows"` over the rows of params (group lasso), so
        that the prox's Jacobian is diagonal, or has a block per row; linear systems are then solved on the support.
      block_prox: (block, index, hparams, data, step) -> the prox, or projection, of the row `index` of params alone.
      projection: (params, hparams, data) -> the Euclidean projection of params on C.
      polyhedral: C is a polyhedron (box, simplices, half-spaces, …), so that the projection's Jacobian is an orthogonal
        projector; linear systems are then solved on the active face.
      equality: (primal, hparams, data) -> H, zero at a feasible point. params is then a `bilevel.optimality.KKTSolution`.
      inequality: (primal, hparams, data) -> G, not positive at a feasible point; params as with `equality`.
      lipschitz: (hparams, data) -> a Lipschitz constant of the loss's gradient; solvers then need no line search.
      block_lipschitz: (hparams, data) -> one constant for each block (row of params), shape (rows,).
      datafit: (prediction, hparams, data) -> scalar, of a prediction of shape (m,); the loss is datafit(X @ params).
      design: (hparams, data) -> X, shape (m, n), given with `datafit`. Solvers then take single columns of X.

    Raises:
      TypeError, ValueError: nothing states the loss, a part is not a function, or parts do not go together. A structure that does
        not hold (`separable`, `polyhedral`) is found by the linear solve, whose status is then `WRONG_STRUCTURE`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> nearest = bl.Minimization(
      ...     loss=lambda x, h, data: jnp.sum((x - h) ** 2), projection=lambda x, h, data: jnp.maximum(x, 0), polyhedral=True
      ... )
      >>> print(bl.inner.FISTA().solve(bl.Problem(inner=nearest), jnp.ones(2), jnp.array([3.0, -1.0])).params.round())
      [3. 0.]
    """

    loss: Function | None = None
    prox: Callable[[Any, Any, Any, Any], Any] | None = None
    separable: bool | Literal["rows"] = False
    block_prox: Callable[[Any, Any, Any, Any, Any], Any] | None = None
    projection: Function | None = None
    polyhedral: bool = False
    equality: Function | None = None
    inequality: Function | None = None
    lipschitz: Callable[[Any, Any], Any] | None = None
    block_lipschitz: Callable[[Any, Any], Any] | None = None
    datafit: Function | None = None
    design: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        if (self.datafit is None) != (self.design is None):
            raise ValueError("datafit and design state a loss together: give both or neither")
        if self.loss is None and self.datafit is None:
            raise TypeError("nothing states the loss to minimize: give a loss (inner_loss), or datafit and design")
        _checks.require_callable("Problem", inner_loss=self.loss, **{name: getattr(self, name) for name in _FUNCTIONS})
        if self.prox is not None and self.projection is not None:
            raise ValueError("Problem: give a prox or a projection, not both; a projection is the prox of an indicator")
        constrained = self.equality is not None or self.inequality is not None
        if constrained and (self.prox is not None or self.projection is not None):
            raise ValueError(
                "Problem: equality and inequality do not go with a prox or a projection: state all of C one way"
            )
        if self.polyhedral and self.projection is None:
            raise ValueError("Problem: polyhedral=True describes a projection, and there is none")
        if self.separable and self.prox is None:
            raise ValueError(f"Problem: separable={self.separable!r} describes a prox, and there is none")

    def parts(self) -> Parts:
        """The fields, with the loss that follows from the data fit where none is given."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "loss"}
        parts = Parts(inner_loss=self.loss or self.fitted, **given)
        nothing = Parts(equality=_nothing, inequality=_nothing)
        return parts.missing_from(nothing, "equality", "inequality") if parts.constrained else parts

    def fitted(self, params: Any, hparams: Any, data: Any) -> Any:
        """datafit(X @ params)."""
        assert self.datafit is not None
        assert self.design is not None
        return self.datafit(self.design(hparams, data) @ params, hparams, data)


def _nothing(primal: Any, hparams: Any, data: Any) -> None:
    """No constraint of this kind."""
    del primal, hparams, data
