"""Multiclass logistic regression with one ℓ2 penalty per feature."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel.datasets import Split
from bilevel.problem import Problem
from bilevel.statements import LinearModel
from bilevel.tasks._base import Setup
from bilevel.tasks._tables import ClassTask, held_out, sizes, validation_cross_entropy
from bilevel.tasks.scores import accuracies

problem = Problem(
    outer_loss=validation_cross_entropy,
    linear_model=LinearModel(loss="logistic", rows=lambda data: data["train"], l2=jnp.exp, mean=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logistic(ClassTask):
    """Multinomial logistic regression: one ℓ2 penalty per feature, chosen on validation loss.

    min over W of the mean cross-entropy of the training rows + ½Σ exp(θᵢ)‖wᵢ‖². Inner variable: weights W, shape (features,
    classes), without an intercept. hparams: θ, log penalties, shape (features,).

    Args:
      data: a table of scikit-learn by its name, or another one by its path (see `datasets.load_table`).
      validation, test: shares of the rows, or their numbers.
      penalty: start of every penalty.
    """

    penalty: float = 0.01

    def __post_init__(self) -> None:
        self.check("penalty", self.penalty > 0, "be positive")

    def state(self, tables: Split, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem; validation rows are needed."""
        tables.require("classification", "validation")
        features, classes = tables.train.features.shape[1], tables.train.classes
        return Setup(
            problem=problem,
            hparams=jnp.full(features, np.log(self.penalty), dtype),
            params=jnp.zeros((features, classes), dtype),
            data=held_out(tables, dtype),
            title=f"logistic regression on {tables.train.name}, one penalty per feature",
            sizes=sizes(tables.parts, features=features, classes=classes),
            metrics=lambda hparams, params: accuracies(tables, lambda x: x @ np.asarray(params, np.float64)),
            physical=lambda hparams: {"penalty": np.exp(np.asarray(hparams, np.float64))},
        )
