"""Data cleaning: a weight for each training row, learned so that rows with wrong labels count for little."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import datasets
from bilevel.datasets import Table, TablePath
from bilevel.inner import LBFGS
from bilevel.problem import Problem
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._classification import accuracy, auc, cross_entropy, load, rows
from bilevel.tasks._pictures import panels


def inner_loss(params, hparams, data):
    """Mean over training rows of σ(θᵢ) times the cross-entropy, and ½ℓ2‖W‖²."""
    features, labels = data["train"]
    losses = optax.softmax_cross_entropy_with_integer_labels(features @ params, labels)
    return jnp.mean(jax.nn.sigmoid(hparams) * losses) + data["l2"] * jnp.vdot(params, params) / 2


def outer_loss(params, hparams, data):
    """Mean cross-entropy of the validation rows."""
    del hparams
    features, targets = data["validation"]
    return cross_entropy(features @ params, targets)


problem = Problem(inner_loss, outer_loss)


def corrupt(part: Table, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, wrong): this share of the rows, rounded, get another class, all others as likely."""
    rng = np.random.default_rng([seed, 1])
    count = len(part.targets)
    wrong = np.zeros(count, bool)
    wrong[rng.choice(count, round(share * count), replace=False)] = True
    shift = rng.integers(1, part.classes, size=count)
    return np.where(wrong, (part.targets + shift) % part.classes, part.targets), wrong


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataCleaning(Task):
    """A weight for each training row, some of which are labeled wrong, chosen on clean validation rows.

    min over W of the mean over training rows of σ(θᵢ) · cross-entropy + ½ℓ2‖W‖². Inner variable: weights W, shape (features,
    classes), without an intercept. hparams: θ, shape (training rows,), started at 0, where all rows count the same.

    Args:
      data: `digits`, `iris`, `wine`, `breast_cancer` (scikit-learn), or a table by path.
      validation: share of the rows (or their number) for validation; their labels are right.
      test: share of the rows (or their number) for the test.
      corruption: share of the training rows whose label is replaced by another one.
      l2: ℓ2 penalty of W.

    Reference: Franceschi et al. 2017, section 5.1; Pedregosa 2016.
    """

    data: Literal["digits", "iris", "wine", "breast_cancer"] | TablePath = "digits"
    validation: float = 0.3
    test: float = 0.2
    corruption: float = 0.5
    l2: float = 0.001

    def __post_init__(self):
        if not 0 < self.corruption < 1:
            raise ValueError(f"task.corruption must be a share above 0 and below 1, got {self.corruption}")
        if not self.l2 > 0:
            raise ValueError(f"task.l2 must be positive, got {self.l2}")

    def setup(self, seed, dtype):
        """Split, scale, corrupt the training labels, and state the problem."""
        split = load(self.data, self.validation, self.test, seed)
        labels, wrong = corrupt(split.train, self.corruption, seed)
        if not 0 < wrong.sum() < len(wrong):
            raise datasets.DataError(
                f"{self.data}: task.corruption={self.corruption} of {len(wrong)} training rows leaves none to tell apart"
            )
        numbers, _ = rows(split.train, dtype)
        data = {
            "train": (numbers, jnp.asarray(labels, jnp.int32)),
            "validation": rows(split.validation, dtype),
            "l2": jnp.asarray(self.l2, dtype),
        }
        start = jnp.zeros((split.train.features.shape[1], split.train.classes), dtype)

        @jax.jit
        def fitted(logits):
            return LBFGS().solve(problem, start, logits, data).params

        def metrics(hparams, params):
            logits = np.asarray(hparams, np.float64)
            all_rows, clean_rows = (
                fitted(jnp.asarray(x, dtype)) for x in (np.zeros(len(wrong)), np.where(wrong, -50, 0))
            )
            return {
                "auc": auc(~wrong, logits),
                "weight_clean": float(np.mean(_sigmoid(logits[~wrong]))),
                "weight_corrupt": float(np.mean(_sigmoid(logits[wrong]))),
                "validation_accuracy": accuracy(split.validation, params),
                "test_accuracy": accuracy(split.test, params),
                "test_accuracy_all_rows": accuracy(split.test, all_rows),
                "test_accuracy_clean_rows": accuracy(split.test, clean_rows),
            }

        return Setup(
            problem=problem,
            hparams=jnp.zeros(len(wrong), dtype),
            params=start,
            data=data,
            title=f"cleaning of {self.data}, {self.corruption:.0%} of the labels wrong",
            sizes={
                "training rows": len(wrong),
                "wrong labels": int(wrong.sum()),
                "validation rows": len(split.validation.features),
                "test rows": len(split.test.features),
                "classes": split.train.classes,
            },
            metrics=metrics,
            physical=lambda hparams: {"row_weight": _sigmoid(np.asarray(hparams, np.float64))},
            pictures=lambda hparams, params: {"weights": picture(_sigmoid(np.asarray(hparams, np.float64)), wrong)},
        )


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def picture(weights: np.ndarray, wrong: np.ndarray) -> Any:
    """Histograms of the weights of clean and of corrupt rows."""
    figure, axes = panels(1, 1, 4.6, 3.2)
    axis, bins = axes[0, 0], np.linspace(0, 1, 41)
    axis.hist(weights[~wrong], bins, alpha=0.6, color="tab:blue", label="label right")
    axis.hist(weights[wrong], bins, alpha=0.6, color="tab:red", label="label wrong")
    axis.set_xlabel("weight σ(θ) of a training row")
    axis.set_ylabel("rows")
    axis.legend(frameon=False)
    return figure
