"""What the classification tasks share: one way to split and scale, one loss, one way to judge."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import datasets
from bilevel.datasets import Split, Table


def load(source: str, validation: float, test: float, seed: int) -> Split:
    """Split a table in three; the gray levels of digits in [0, 1], other features standardized by the training rows."""
    split = datasets.split_rows(datasets.load_table(source, "classification"), validation, test, seed)
    if source == "digits":
        return Split(*(datasets.part_with(part, part.features / 16) for part in split))
    return datasets.standardize(split)


def rows(part: Table, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """(X, class numbers)."""
    return jnp.asarray(part.features, dtype), jnp.asarray(part.targets, jnp.int32)


def cross_entropy(scores: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean multinomial logistic loss of scores, shape (rows, classes)."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, targets))


def accuracy(part: Table, weights: Any) -> float:
    """Share of the rows that linear weights, shape (features, classes), classify right."""
    return share_right(part.features @ np.asarray(weights, np.float64), part.targets)


def share_right(scores: Any, targets: Any) -> float:
    """Share of the rows whose largest score is that of their class."""
    return float(np.mean(np.argmax(np.asarray(scores), axis=-1) == np.asarray(targets)))


def auc(targets: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of pairs of one row of each class that are ranked right, ties as half."""
    difference = scores[targets > 0][:, None] - scores[targets <= 0][None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0))) if difference.size else math.nan
