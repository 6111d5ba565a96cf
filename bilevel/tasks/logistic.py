"""Multiclass logistic regression with one ℓ2 penalty per feature."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel.datasets import Split, TablePath
from bilevel.problem import Problem
from bilevel.statements import LinearModel
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._tables import load_classes, rows, sizes, validation_cross_entropy
from bilevel.tasks.scores import accuracies

problem = Problem(
    outer_loss=validation_cross_entropy,
    linear_model=LinearModel(loss="logistic", rows=lambda data: data["train"], l2=jnp.exp, mean=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logistic(Task[Split]):
    """Multinomial logistic regression: one ℓ2 penalty per feature, chosen on validation loss.

    min over W of the mean cross-entropy of the training rows + ½Σ exp(θᵢ)‖wᵢ‖². Inner variable: weights W, shape (features,
    classes), without an intercept. hparams: θ, log penalties, shape (features,).

    Args:
      data: `digits`, `iris`, `wine`, `breast_cancer` (scikit-learn), or the path of a table.
      validation: share of the rows (or their number) for validation.
      test: share of the rows (or their number) for the test.
      penalty: start of every penalty.
    """

    data: Literal["digits", "iris", "wine", "breast_cancer"] | TablePath = "digits"
    validation: float = 0.2
    test: float = 0.2
    penalty: float = 0.01

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise ValueError(f"task.penalty must be positive, got {self.penalty}")

    def tables(self, seed: int) -> Split:
        """Load, split and scale the table."""
        return load_classes(self.data, self.validation, self.test, seed)

    def state(self, tables: Split, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem; validation rows are needed."""
        tables.require("classification", "validation")
        features, classes = tables.train.features.shape[1], tables.train.classes
        return Setup(
            problem=problem,
            hparams=jnp.full(features, np.log(self.penalty), dtype),
            params=jnp.zeros((features, classes), dtype),
            data={"train": rows(tables.train, dtype), "validation": rows(tables.validation, dtype)},
            title=f"logistic regression on {tables.train.name}, one penalty per feature",
            sizes=sizes(tables, features=features, classes=classes),
            metrics=lambda hparams, params: accuracies(tables, params),
            physical=lambda hparams: {"penalty": np.exp(np.asarray(hparams, np.float64))},
        )
