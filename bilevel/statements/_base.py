"""What a statement of an inner problem amounts to: the parts that conditions and solvers ask for."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

Kind = Literal["free", "set", "kkt", "conic", "weights"]

_SPLIT = ("prox", "projection", "equality", "inequality", "cone_program")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of an inner problem, None where it has no such part. All functions; `Problem.parts` computes them.

    Attributes:
      inner_loss: (params, hparams, data) -> scalar, the differentiable part of the objective.
      prox: (params, hparams, data, step) -> the prox of step · g, where the objective is inner_loss + g.
      projection: (params, hparams, data) -> the nearest point of the set C.
      equality, inequality: (primal, hparams, data) -> H = 0 and G ≤ 0; params is then a point with multipliers.
      separable, polyhedral, lipschitz, block_lipschitz, block_prox, datafit, design: as in `Minimization`.
      residuals: (params, hparams, data) -> r with inner_loss = ½‖r‖².
      fixed_point: (params, hparams, data) -> T.
      quadratic_program: (hparams, data) -> `QP`.
      cone_program: (hparams, data) -> `ConeProgram`.
      linear_model: the `LinearModel` that the whole problem is.
      optimality: the condition that the problem names.
      samples: (data) -> the number of rows of the inner loss, and
      batch_loss: (params, hparams, data, index) -> the inner loss on the rows at index; its mean over all index sets of one size
        is inner_loss.
    """

    inner_loss: Any = None
    prox: Any = None
    projection: Any = None
    equality: Any = None
    inequality: Any = None
    separable: bool | Literal["rows"] = False
    polyhedral: bool = False
    lipschitz: Any = None
    block_lipschitz: Any = None
    block_prox: Any = None
    datafit: Any = None
    design: Any = None
    residuals: Any = None
    fixed_point: Any = None
    quadratic_program: Any = None
    cone_program: Any = None
    linear_model: Any = None
    optimality: Any = None
    samples: Any = None
    batch_loss: Any = None

    @property
    def smooth(self) -> bool:
        """Whether the problem is smooth and unconstrained."""
        return all(getattr(self, name) is None for name in _SPLIT)

    @property
    def constrained(self) -> bool:
        """Whether constraints are stated as functions."""
        return self.equality is not None or self.inequality is not None

    @property
    def kind(self) -> Kind:
        """What params is: free in space, of a set (or under a prox), with multipliers, or of a cone program's embedding."""
        if self.cone_program is not None:
            return "conic"
        if self.constrained:
            return "kkt"
        return "free" if self.smooth else "set"

    def missing_from(self, other: Parts, *names: str) -> Parts:
        """These parts, with those of these names that they lack taken from another statement of the same problem."""
        found = {name: getattr(other, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **found)


class Statement(abc.ABC):
    """A statement of an inner problem, from which its parts follow. A subclass is a frozen dataclass of functions and numbers."""

    @abc.abstractmethod
    def parts(self) -> Parts:
        """The parts that follow from the statement."""
