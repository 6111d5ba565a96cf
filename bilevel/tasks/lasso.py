"""The lasso with one penalty, or one per feature."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from bilevel.datasets import TablePath
from bilevel.problem import LinearModel, Problem
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._regression import Regression


def outer_loss(params, hparams, data):
    """Mean squared error on the validation rows, in units of the training targets' variance."""
    features, targets = data["validation"]
    return jnp.mean((features @ params - targets) ** 2)


problem = Problem(
    outer_loss=outer_loss,
    linear_model=LinearModel(loss="squared", rows=lambda data: data["train"][:2], l1=jnp.exp, mean=True),
    lipschitz=lambda hparams, data: data["train"][2],
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lasso(Task):
    """The lasso: its penalty, or one penalty per feature, chosen on validation error.

    min over w of ‖Xw − y‖²/(2m) + Σ exp(θᵢ)|wᵢ|, scikit-learn's objective. Features and targets are standardized by the
    training rows. hparams: θ, log penalties, a scalar or shape (features,).

    Args:
      data: `diabetes` (442 × 10, from scikit-learn), or a table by path (see `datasets.load_table`).
      validation: share of the rows (or their number) for validation.
      test: share of the rows (or their number) for the test.
      per_feature: one penalty per feature instead of one for all.
      penalty: start, as a share of the smallest penalty at which w is zero.
    """

    data: Literal["diabetes"] | TablePath = "diabetes"
    validation: float = 0.2
    test: float = 0.2
    per_feature: bool = False
    penalty: float = 0.1

    def __post_init__(self):
        if not 0 < self.penalty < 1:
            raise ValueError(
                f"task.penalty must be between 0 and 1, a share of the largest penalty, got {self.penalty}"
            )

    def setup(self, seed, dtype):
        """Split, standardize, and state the problem."""
        table = Regression.load(self.data, self.validation, self.test, seed)
        features, targets = table.rows(table.split.train, dtype)
        largest = float(jnp.max(jnp.abs(targets @ features))) / len(targets)
        shape = (table.count,) if self.per_feature else ()

        def metrics(hparams, params):
            return {**table.metrics(params), "support": int(np.count_nonzero(params))}

        return Setup(
            problem=problem,
            hparams=jnp.full(shape, np.log(self.penalty * largest), dtype),
            params=jnp.zeros(table.count, dtype),
            data={
                "train": (features, targets, jnp.linalg.norm(features, 2) ** 2 / len(targets)),
                "validation": table.rows(table.split.validation, dtype),
            },
            title=f"lasso on {self.data}, {'one penalty per feature' if self.per_feature else 'its penalty'}",
            sizes=table.sizes,
            metrics=metrics,
            physical=lambda hparams: {"alpha": np.exp(np.asarray(hparams, np.float64))},
        )
