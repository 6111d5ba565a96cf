"""Statements of an inner problem, and the parts that conditions and solvers ask for."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

Function = Callable[[Any, Any, Any], Any]
"""A function of (params, hparams, data)."""
Kind = Literal["free", "set", "kkt", "conic", "weights"]

_SPLIT = ("prox", "projection", "equality", "inequality", "cone_program")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The functions that state an inner problem, each None where the problem has no such part. `Problem.parts` computes them.

    Attributes:
      inner_loss: (params, hparams, data) -> scalar, the differentiable part of the objective.
      prox, separable, projection, polyhedral, equality, inequality: as in `Minimization`.
      lipschitz, block_lipschitz, block_prox, datafit, design: as in `Minimization`.
      residuals: (params, hparams, data) -> r with inner_loss = ½‖r‖².
      fixed_point: (params, hparams, data) -> T.
      quadratic_program: (hparams, data) -> `QP`.
      cone_program: (hparams, data) -> `ConeProgram`.
      linear_model: the `LinearModel` that the whole problem is.
      optimality: the condition that the problem names.
      samples: (data) -> the number of rows of the inner loss.
      batch_loss: (params, hparams, data, index) -> the inner loss on the rows at index, shape (size,); its mean over all index
        sets of one size is inner_loss.

    Example:
      >>> import bilevel as bl
      >>> parts = bl.Problem(lambda x, h, data: (x - h) ** 2, projection=lambda x, h, data: abs(x)).parts
      >>> parts.kind, parts.smooth, parts.constrained, parts.prox
      ('set', False, False, None)
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
        """The kind of point that params is, as described in `bilevel.optimality.Condition`."""
        if self.cone_program is not None:
            return "conic"
        if self.constrained:
            return "kkt"
        return "free" if self.smooth else "set"

    def missing_from(self, other: "Parts", *names: str) -> "Parts":
        """These parts, with those of these names that they lack taken from another statement of the same problem."""
        found = {name: getattr(other, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **found)


class Statement(abc.ABC):
    """A statement of an inner problem. A subclass is a frozen dataclass of functions and numbers, and defines `parts`.

    Example:
      >>> import dataclasses, jax.numpy as jnp, bilevel as bl
      >>> @dataclasses.dataclass(frozen=True)
      ... class Nearest(bl.statements.Statement):
      ...     scale: float
      ...     def parts(self):
      ...         return bl.statements.Parts(inner_loss=lambda x, hparams, data: self.scale * (x - hparams) ** 2)
      >>> print(bl.inner.Newton().solve(bl.Problem(inner=Nearest(2.0)), jnp.array(0.0), jnp.array(3.0)).params.round())
      3.0
    """

    @abc.abstractmethod
    def parts(self) -> Parts:
        """The parts that follow from the statement."""
