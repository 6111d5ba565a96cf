"""Multiclass logistic regression with one ℓ2 penalty per feature."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import datasets
from bilevel.datasets import TablePath
from bilevel.problem import LinearModel, Problem
from bilevel.tasks._base import Setup, Task


def outer_loss(params, hparams, data):
    """Mean cross-entropy of the validation rows."""
    features, targets = data["validation"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(features @ params, targets))


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
        table = datasets.load_table(self.data, "classification")
        split = datasets.split_rows(table, self.validation, self.test, seed)
        if self.data == "digits":
            split = datasets.Split(*(datasets.part_with(part, part.features / 16) for part in split))
        else:
            split = datasets.standardize(split)
        features, classes = split.train.features.shape[1], split.train.classes

        def rows(part):
            return jnp.asarray(part.features, dtype), jnp.asarray(part.targets, jnp.int32)

        def accuracy(part, params):
            return float(np.mean(np.argmax(part.features @ np.asarray(params, np.float64), axis=1) == part.targets))

        def metrics(hparams, params):
            names = ("train", "validation", "test")
            return {f"{name}_accuracy": accuracy(getattr(split, name), params) for name in names}

        return Setup(
            problem=problem,
            hparams=jnp.full(features, np.log(self.penalty), dtype),
            params=jnp.zeros((features, classes), dtype),
            data=jax.tree.map(jnp.asarray, {"train": rows(split.train), "validation": rows(split.validation)}),
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
