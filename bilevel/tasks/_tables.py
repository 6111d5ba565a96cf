"""What the tasks on tables share: loading, arrays, losses and counts."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from bilevel import datasets
from bilevel.datasets import Split, Table, TablePath
from bilevel.tasks._base import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassTask(Task[Split]):
    """A task on a table of classes, split in three. Digits become gray levels in [0, 1]; other features are standardized."""

    data: Literal["digits", "iris", "wine", "breast_cancer"] | TablePath = "digits"
    validation: float = 0.2
    test: float = 0.2

    def tables(self, seed: int) -> Split:
        """Load, split and scale the table."""
        return load_classes(self.data, self.validation, self.test, seed)


def load_classes(source: str, validation: float, test: float, seed: int) -> Split:
    """Load and split a table; digits are scaled to gray levels in [0, 1], other features are standardized."""
    split = datasets.split_rows(datasets.load_table(source, "classification"), validation, test, seed)
    return datasets.scale_pixels(split) if source == "digits" else datasets.standardize(split)


def load_numbers(source: str, validation: float, test: float, seed: int, joined: bool = False) -> Split:
    """Load, split and standardize a table; `joined` adds the validation rows to the training rows."""
    split = datasets.split_rows(datasets.load_table(source, "regression"), validation, test, seed)
    if joined:
        split = Split.of(datasets.join(split.train, split.validation), test=split.test)
    return datasets.standardize_targets(datasets.standardize(split))


def rows(part: Table, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """(X, y), with y as class numbers for classification."""
    return jnp.asarray(part.features, dtype), jnp.asarray(part.targets, jnp.int32 if part.classes else dtype)


def held_out(split: Split, dtype: DTypeLike, **numbers: float) -> dict[str, Any]:
    """The data of a problem with training rows inside and validation rows outside, and other numbers."""
    parts = {"train": rows(split.train, dtype), "validation": rows(split.validation, dtype)}
    return parts | {name: jnp.asarray(number, dtype) for name, number in numbers.items()}


def cross_entropy(scores: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean multinomial logistic loss of scores, shape (rows, classes)."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, targets))


def validation_cross_entropy(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """Mean cross-entropy of a linear classifier on the validation rows."""
    features, targets = data["validation"]
    return cross_entropy(features @ params, targets)


def validation_error(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """Mean squared error of a linear model on the validation rows."""
    features, targets = data["validation"]
    return jnp.mean((features @ params - targets) ** 2)


def sizes(parts: Mapping[str, Any], **others: int) -> dict[str, int]:
    """Numbers of rows of the parts, each with `features`, and other counts."""
    names = {"train": "training rows", "validation": "validation rows", "test": "test rows"}
    return {names[name]: len(part.features) for name, part in parts.items()} | others
