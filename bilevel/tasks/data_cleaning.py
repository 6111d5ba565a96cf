"""Data cleaning: a weight for each training row, learned so that rows with wrong labels get small weights."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from scipy.special import expit

from bilevel import datasets
from bilevel.datasets import Split, Table, TablePath
from bilevel.inner import LBFGS
from bilevel.problem import Problem
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._tables import held_out, load_classes, sizes, validation_cross_entropy
from bilevel.tasks.pictures import histograms
from bilevel.tasks.scores import accuracy, auc


def inner_loss(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """Mean over training rows of σ(θᵢ) times the cross-entropy, and ½ℓ2‖W‖²."""
    features, labels = data["train"]
    losses = optax.softmax_cross_entropy_with_integer_labels(features @ params, labels)
    return jnp.mean(jax.nn.sigmoid(hparams) * losses) + data["l2"] * jnp.vdot(params, params) / 2


problem = Problem(inner_loss, validation_cross_entropy)


class Labeled(NamedTuple):
    """A split whose training labels may be wrong.

    Attributes:
      split: the rows; the validation labels are right.
      wrong: which training labels are wrong, shape (training rows,), for the metrics; None if that is not known.
    """

    split: Split
    wrong: np.ndarray | None = None


def corrupt(part: Table, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, wrong): this share of the rows, rounded, gets another class, each with the same probability."""
    rng = np.random.default_rng([seed, 1])
    count = len(part.targets)
    wrong = np.zeros(count, bool)
    wrong[rng.choice(count, round(share * count), replace=False)] = True
    shift = rng.integers(1, part.classes, size=count)
    return np.where(wrong, (part.targets + shift) % part.classes, part.targets), wrong


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataCleaning(Task[Labeled]):
    """A weight for each training row, some of which have wrong labels, chosen on clean validation rows.

    min over W of the mean over training rows of σ(θᵢ) · cross-entropy + ½ℓ2‖W‖². Inner variable: weights W, shape (features,
    classes), without an intercept. hparams: θ, shape (training rows,), started at 0, where all rows have the same weight.

    Args:
      data: a table of scikit-learn by its name, or another one by its path (see `datasets.load_table`).
      validation, test: shares of the rows, or their numbers; their labels are right.
      corruption: share of the training rows whose label is replaced by another class.
      l2: ℓ2 penalty of W.

    Reference: Franceschi et al. 2017, section 5.1; Pedregosa 2016.
    """

    data: Literal["digits", "iris", "wine", "breast_cancer"] | TablePath = "digits"
    validation: float = 0.3
    test: float = 0.2
    corruption: float = 0.5
    l2: float = 0.001

    def __post_init__(self) -> None:
        self.check("corruption", 0 < self.corruption < 1, "be a share above 0 and below 1")
        self.check("l2", self.l2 > 0, "be positive")

    def tables(self, seed: int) -> Labeled:
        """Load, split and scale the table, and corrupt the training labels."""
        split = load_classes(self.data, self.validation, self.test, seed)
        labels, wrong = corrupt(split.train, self.corruption, seed)
        if not 0 < wrong.sum() < len(wrong):
            raise datasets.DataError(
                f"{self.data}: with task.corruption={self.corruption}, {wrong.sum()} of {len(wrong)} training labels are "
                "wrong: some must be wrong and some right"
            )
        return Labeled(split._replace(train=dataclasses.replace(split.train, targets=labels)), wrong)

    def state(self, tables: Labeled, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem; validation rows are needed."""
        split, wrong = tables
        split.require("classification", "validation")
        samples, test = len(split.train), split.parts.get("test")
        if wrong is not None:
            datasets.require_shape("wrong", wrong, (samples,), "bool")
        data = held_out(split, dtype, l2=self.l2)
        start = jnp.zeros((split.train.features.shape[1], split.train.classes), dtype)

        @jax.jit
        def fitted(logits: jax.Array) -> jax.Array:
            return LBFGS().solve(problem, start, logits, data).params

        def row_weights(hparams: Any) -> np.ndarray:
            return expit(np.asarray(hparams, np.float64))

        def metrics(hparams: Any, params: Any) -> dict[str, float]:
            found, baselines = {}, {"all_rows": np.zeros(samples)}
            if wrong is not None:
                weights = row_weights(hparams)
                found["auc"] = auc(~wrong, np.asarray(hparams, np.float64))
                found["weight_clean"] = float(np.mean(weights[~wrong]))
                found["weight_corrupt"] = float(np.mean(weights[wrong]))
                baselines["clean_rows"] = np.where(wrong, -50, 0)
            found["validation_accuracy"] = accuracy(split.validation, params)
            if test is not None:
                found["test_accuracy"] = accuracy(test, params)
                for name, logits in baselines.items():
                    found[f"test_accuracy_{name}"] = accuracy(test, fitted(jnp.asarray(logits, dtype)))
            return found

        def pictures(hparams: Any, params: Any) -> dict[str, Any]:
            if wrong is None:
                return {}
            weights = row_weights(hparams)
            groups = {"label right": weights[~wrong], "label wrong": weights[wrong]}
            label = "weight σ(θ) of a training row"
            return {"weights": histograms(groups, label, "rows", ("tab:blue", "tab:red"), bins=40)}

        counts = {"classes": split.train.classes} | ({} if wrong is None else {"wrong labels": int(wrong.sum())})
        share = "" if wrong is None else f", {wrong.mean():.0%} of the labels wrong"
        return Setup(
            problem=problem,
            hparams=jnp.zeros(samples, dtype),
            params=start,
            data=data,
            title=f"cleaning of {split.train.name}{share}",
            sizes=sizes(split.parts, **counts),
            metrics=metrics,
            physical=lambda hparams: {"row_weight": row_weights(hparams)},
            pictures=pictures,
        )
