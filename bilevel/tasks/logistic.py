"""Multiclass logistic regression with one ℓ2 penalty per feature."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from bilevel.datasets import TablePath
from bilevel.problem import Problem
from bilevel.statements import LinearModel
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._classification import accuracy, cross_entropy, load, rows


def outer_loss(params, hparams, data):
    """Mean cross-entropy of the validation rows."""
    features, targets = data["validation"]
    return cross_entropy(features @ params, targets)


problem = Problem(
    outer_loss=outer_loss,
    linear_model=LinearModel(loss="logistic", rows=lambda data: data["train"], l2=jnp.exp, mean=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logistic(Task):
    """Multinomial logistic regression: one ℓ2 penalty per feature, chosen on validation loss.

    min over W of the mean cross-entropy of the training rows + ½Σ exp(θᵢ)‖wᵢ‖². Inner variable: weights W, shape (features,
    classes), without an intercept. hparams: θ, log penalties, shape (features,).

    Args:
      data: `digits`, `iris`, `wine`, `breast_cancer` (scikit-learn), or a table by path.
      validation: share of the rows (or their number) for validation.
      test: share of the rows (or their number) for the test.
      penalty: start of every penalty.
    """

    data: Literal["digits", "iris", "wine", "breast_cancer"] | TablePath = "digits"
    validation: float = 0.2
    test: float = 0.2
    penalty: float = 0.01

    def __post_init__(self):
        if not self.penalty > 0:
            raise ValueError(f"task.penalty must be positive, got {self.penalty}")

    def setup(self, seed, dtype):
        """Split, scale, and state the problem."""
        split = load(self.data, self.validation, self.test, seed)
        features, classes = split.train.features.shape[1], split.train.classes

        def metrics(hparams, params):
            names = ("train", "validation", "test")
            return {f"{name}_accuracy": accuracy(getattr(split, name), params) for name in names}

        return Setup(
            problem=problem,
            hparams=jnp.full(features, np.log(self.penalty), dtype),
            params=jnp.zeros((features, classes), dtype),
            data={"train": rows(split.train, dtype), "validation": rows(split.validation, dtype)},
            title=f"logistic regression on {self.data}, one penalty per feature",
            sizes={
                "training rows": len(split.train.features),
                "validation rows": len(split.validation.features),
                "test rows": len(split.test.features),
                "features": features,
                "classes": classes,
            },
            metrics=metrics,
            physical=lambda hparams: {"penalty": np.exp(np.asarray(hparams, np.float64))},
        )
