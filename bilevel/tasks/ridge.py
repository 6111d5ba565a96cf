"""Ridge regression with one penalty per coordinate."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from bilevel.datasets import TablePath
from bilevel.problem import Problem
from bilevel.statements import LinearModel
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._regression import Regression


def outer_loss(params, hparams, data):
    """Mean squared error on the validation rows, in units of the training targets' variance."""
    features, targets = data["validation"]
    return jnp.mean((features @ params - targets) ** 2)


problem = Problem(
    outer_loss=outer_loss,
    linear_model=LinearModel(loss="squared", rows=lambda data: data["train"], l2=jnp.exp),
)


def normal_equations(params, hparams, data):
    """The inner solution in closed form, by NumPy: (XᵀX + diag exp θ)⁻¹Xᵀy."""
    features, targets = data["train"]
    return np.linalg.solve(features.T @ features + np.diag(np.exp(hparams)), features.T @ targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ridge(Task):
    """Ridge regression: one penalty per feature, chosen on validation error.

    min over w of ½‖Xw − y‖² + ½Σ exp(θᵢ)wᵢ². Features and targets are standardized by the training rows. hparams: θ, log
    penalties, shape (features,).

    Args:
      data: `diabetes` (442 × 10, from scikit-learn), or a table by path (see `datasets.load_table`).
      validation: share of the rows (or their number) for validation.
      test: share of the rows (or their number) for the test.
      penalty: start of every penalty.
    """

    data: Literal["diabetes"] | TablePath = "diabetes"
    validation: float = 0.2
    test: float = 0.2
    penalty: float = 1.0

    def __post_init__(self):
        if not self.penalty > 0:
            raise ValueError(f"task.penalty must be positive, got {self.penalty}")

    def setup(self, seed, dtype):
        """Split, standardize, and state the problem."""
        table = Regression.load(self.data, self.validation, self.test, seed)
        return Setup(
            problem=problem,
            hparams=jnp.full(table.count, np.log(self.penalty), dtype),
            params=jnp.zeros(table.count, dtype),
            data={
                "train": table.rows(table.split.train, dtype),
                "validation": table.rows(table.split.validation, dtype),
            },
            title=f"ridge regression on {self.data}, one penalty per feature",
            sizes=table.sizes,
            metrics=lambda hparams, params: table.metrics(params),
            physical=lambda hparams: {"penalty": np.exp(np.asarray(hparams, np.float64))},
        )
