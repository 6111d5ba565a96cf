"""What scikit-learn's linear models share: the rows of `Problem.linear_model`, and per-feature penalties scaled away.

With ω what each row counts (1, or 1/m for a mean), v = s∘w and X̃ = X diag(1/s), Xw = X̃v; and s = √l2 makes
½Σ l2ⱼwⱼ² = ½‖v‖², s = l1 makes Σ l1ⱼ|wⱼ| = ‖v‖₁.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from bilevel import _checks
from bilevel._tree import PyTree
from bilevel.inner.external import _callback
from bilevel.inner.external._base import Answer, Foreign, _External
from bilevel.problem import At


class Rows(NamedTuple):
    """The training rows on the host, and the penalties: numbers, or one for each feature; None for none.

    Attributes:
      weight: ω.
    """

    features: Any
    targets: Any
    l1: Any
    l2: Any
    weight: float

    def scaled(self, scale: np.ndarray) -> Any:
        """X diag(1/scale), for a number or a vector."""
        if np.ndim(scale) == 0:
            return self.features
        if not np.all(scale > 0):
            raise ValueError(
                "a per-feature penalty is not positive, and scikit-learn knows one penalty for all features: keep them all "
                "positive, or give a number"
            )
        if isinstance(self.features, np.ndarray):
            return self.features / scale
        return self.features.multiply(1 / scale[None, :]).tocsr()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ScikitLearn(_External):
    """A model of scikit-learn, fitted to the rows of `Problem.linear_model`."""

    tol: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive(f"inner.{type(self).__name__}", tol=self.tol)

    @abc.abstractmethod
    def _fit(self, rows: Rows, start: np.ndarray) -> Answer:
        """Fit, from a start where the model takes one."""

    def _foreign(self, at: At, start: PyTree) -> tuple[Foreign, PyTree]:
        model: Any = at.parts.linear_model  # which the needs ask for
        penalties = [
            None if function is None else model.penalty(name, at.hparams)
            for name, function in (("l1", model.l1), ("l2", model.l2))
        ]

        def foreign(start, inputs):
            features, targets, l1, l2 = _callback.in_scipy(inputs)
            weight = 1 / len(targets) if model.mean else 1.0
            return self._fit(Rows(features, targets, l1, l2, weight), start)

        return foreign, (*model.rows(at.data), *penalties)


def require_classes(labels: np.ndarray, classes: int) -> None:
    """Raise ValueError unless every class is there, since scikit-learn numbers those that it sees."""
    seen = np.unique(labels)
    if len(seen) != classes:
        raise ValueError(
            f"the training rows hold {len(seen)} of the {classes} classes that params has: every class needs a row"
        )


def split(penalty: np.ndarray) -> tuple[np.ndarray, float]:
    """(s, c) with penalty = c·s: a number stays one, a vector becomes the scale of the columns."""
    return (np.ones(()), float(penalty)) if np.ndim(penalty) == 0 else (penalty, 1.0)


def scaled_start(start: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """v = s∘w as scikit-learn keeps it, one row for each target or class."""
    return np.asfortranarray(np.atleast_2d(start.T * scale))


def unscaled(coefficients: np.ndarray, scale: np.ndarray, start: np.ndarray) -> np.ndarray:
    """w of scikit-learn's coefficients, in the orientation of params."""
    found = coefficients / scale
    return found.reshape(start.shape) if start.ndim == 1 else np.atleast_2d(found).T


def count(steps: Any) -> int:
    """The iterations that a model reports, the most over its targets; 1 where it reports none."""
    return 1 if steps is None else int(np.max(steps))
