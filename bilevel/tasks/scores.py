"""Scores of predictions, for metrics."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from bilevel.datasets import Split, Table


def accuracy(part: Table, weights: ArrayLike) -> float:
    """The share of rows that linear weights, shape (features, classes), classify correctly."""
    return _share_right(part.features @ np.asarray(weights, np.float64), part)


def accuracies(split: Split, classify: Callable[[np.ndarray], ArrayLike]) -> dict[str, float]:
    """The accuracy on every part of a split, with `classify` a function from features to scores of the classes."""
    return {f"{name}_accuracy": _share_right(classify(part.features), part) for name, part in split.parts.items()}


def _share_right(scores: ArrayLike, part: Table) -> float:
    return float(np.mean(np.argmax(np.asarray(scores), axis=-1) == part.targets))


def auc(targets: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of pairs of a positive and a negative row in the right order; ties count half."""
    positive, negative = scores[targets > 0], np.sort(scores[targets <= 0])
    right = sum(np.searchsorted(negative, positive, side).sum() for side in ("left", "right")) / 2
    return float(right / (len(positive) * len(negative))) if len(positive) and len(negative) else math.nan


def errors(
    split: Split, weights: ArrayLike, expand: Callable[[np.ndarray], np.ndarray] = lambda features: features
) -> dict[str, float]:
    """Root mean squared errors of linear weights in the units of the source, and R² on the test rows.

    Args:
      split: validation rows are used if there are any, else training rows; and test rows if there are any.
      weights: shape (columns,).
      expand: features -> the columns that the weights multiply.
    """
    weights = np.asarray(weights, np.float64)

    def squares(part: Table) -> float:
        return float(np.mean((part.targets - expand(part.features) @ weights) ** 2))

    parts = split.parts
    name = "validation" if "validation" in parts else "train"
    found = {f"{name}_rmse": parts[name].unit * math.sqrt(squares(parts[name]))}
    if "test" in parts:
        test = squares(parts["test"])
        found["test_rmse"] = parts["test"].unit * math.sqrt(test)
        found["test_r2"] = float(1 - test / np.var(parts["test"].targets))
    return found
