"""The general statement: minimize a differentiable loss plus a term with a prox, over a set, or under constraints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from bilevel.statements._base import Parts, Statement

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Minimization(Statement):
    """minimize loss(x, hparams, data) + g(x) over C.

    g is given by its `prox`, or C by its `projection`, or by `equality` and `inequality`, or neither is there. Every function
    takes `(params, hparams, data)` unless said otherwise.

    Args:
      loss: (params, hparams, data) -> scalar, differentiable. None if `datafit` and `design` imply it.
      prox: (params, hparams, data, step) -> argmin over z of ½‖z − params‖² + step · g(z).
      separable: g is a sum over coordinates (lasso, elastic net, …), or with `"rows"` over the rows of params (group lasso), so
        that the prox's Jacobian is diagonal, or has a block per row; linear systems are then solved on the support.
      block_prox: (block, index, hparams, data, step) -> the prox, or projection, of the row `index` of params alone.
      projection: (params, hparams, data) -> the Euclidean projection of params on C.
      polyhedral: C is a polyhedron (box, simplices, half-spaces, …), so that the projection's Jacobian is an orthogonal
        projector; linear systems are then solved on the active face.
      equality: (primal, hparams, data) -> H, zero at a feasible point. params is then a `bilevel.optimality.KKTSolution`.
      inequality: (primal, hparams, data) -> G, not positive at a feasible point. Likewise.
      lipschitz: (hparams, data) -> a Lipschitz constant of the loss's gradient; solvers then need no line search.
      block_lipschitz: (hparams, data) -> one constant for each block (row of params), shape (rows,).
      datafit: (prediction, hparams, data) -> scalar, and
      design: (hparams, data) -> X, shape (m, n): the loss is datafit(X @ params). Solvers then take single columns of X.

    A structure that does not hold (`separable`, `polyhedral`) is seen by the linear solve, whose status is then
    `WRONG_STRUCTURE`.
    """

    loss: Function | None = None
    prox: Function | None = None
    separable: bool | Literal["rows"] = False
    block_prox: Function | None = None
    projection: Function | None = None
    polyhedral: bool = False
    equality: Function | None = None
    inequality: Function | None = None
    lipschitz: Function | None = None
    block_lipschitz: Function | None = None
    datafit: Function | None = None
    design: Function | None = None

    def __post_init__(self) -> None:
        if (self.datafit is None) != (self.design is None):
            raise ValueError("datafit and design state a loss together: give both or neither")
        if self.loss is None and self.datafit is None:
            raise TypeError("nothing states the loss to minimize: give a loss (inner_loss), or datafit and design")
        for name in ("loss", "prox", "projection", "equality", "inequality", "datafit", "design"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                shown = "inner_loss" if name == "loss" else name
                raise TypeError(f"Problem: {shown} must be a function, got {value!r}")
        if self.prox is not None and self.projection is not None:
            raise ValueError("Problem: give a prox or a projection, not both; a projection is the prox of an indicator")
        unconstrained = self.equality is None and self.inequality is None
        if not unconstrained and (self.prox is not None or self.projection is not None):
            raise ValueError(
                "Problem: equality and inequality do not go with a prox or a projection: state all of C one way"
            )
        if self.polyhedral and self.projection is None:
            raise ValueError("Problem: polyhedral=True describes a projection, and there is none")
        if self.separable and self.prox is None:
            raise ValueError(f"Problem: separable={self.separable!r} describes a prox, and there is none")

    def parts(self) -> Parts:
        """As they are given; the loss may follow from the data fit."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "loss"}
        constrained = self.equality is not None or self.inequality is not None
        absent = dict.fromkeys(("equality", "inequality"), _nothing) if constrained else {}
        given |= {name: part for name, part in absent.items() if given[name] is None}
        return Parts(inner_loss=self.loss or self.fitted, **given)

    def fitted(self, params: Any, hparams: Any, data: Any) -> Any:
        """datafit(X @ params)."""
        assert self.datafit is not None
        assert self.design is not None
        return self.datafit(self.design(hparams, data) @ params, hparams, data)


def _nothing(primal: Any, hparams: Any, data: Any) -> None:
    """No constraint of this kind."""
    del primal, hparams, data
