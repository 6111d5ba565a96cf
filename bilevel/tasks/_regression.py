"""What the regression tasks share: one way to split, scale and judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from bilevel import datasets


@dataclasses.dataclass(frozen=True)
class Regression:
    """A table split in three, features and targets standardized by the training rows.

    Attributes:
      source: where the table came from.
      split: standardized features, raw targets.
      mean, deviation: of the training targets.
      joined: whether the validation rows are among the training rows, so that nothing is held out but the test.
    """

    source: str
    split: datasets.Split
    mean: float
    deviation: float
    joined: bool = False

    @classmethod
    def load(cls, source: str, validation: float, test: float, seed: int, joined: bool = False) -> Regression:
        """Load, split and standardize. Raises `datasets.DataError` for targets that are constant."""
        table = datasets.load_table(source, "regression")
        split = datasets.split_rows(table, validation, test, seed)
        if joined:
            split = datasets.Split(datasets.join(split.train, split.validation), split.validation, split.test)
        split = datasets.standardize(split)
        mean, deviation = float(split.train.targets.mean()), float(split.train.targets.std())
        if not deviation > 0:
            raise datasets.DataError(f"{source}: y is constant on the training rows: there is nothing to fit")
        return cls(source, split, mean, deviation, joined)

    @property
    def count(self) -> int:
        """Number of features."""
        return self.split.train.features.shape[1]

    def rows(self, part: Any, dtype: Any):
        """(X, y) of one part, y standardized."""
        return jnp.asarray(part.features, dtype), jnp.asarray((part.targets - self.mean) / self.deviation, dtype)

    def metrics(
        self, weights: Any, expand: Callable[[np.ndarray], np.ndarray] = lambda features: features
    ) -> dict[str, float]:
        """Errors in the units of the raw targets, of weights on the expanded features."""
        weights = np.asarray(weights, np.float64)

        def errors(part):
            return part.targets - (expand(part.features) @ weights * self.deviation + self.mean)

        test, name = self.split.test, "train" if self.joined else "validation"
        squares = np.mean(errors(test) ** 2)
        return {
            f"{name}_rmse": float(np.sqrt(np.mean(errors(getattr(self.split, name)) ** 2))),
            "test_rmse": float(np.sqrt(squares)),
            "test_r2": float(1 - squares / np.var(test.targets)),
        }

    @property
    def sizes(self) -> dict[str, int]:
        """What there is how many of."""
        held_out = {} if self.joined else {"validation rows": len(self.split.validation.features)}
        return {
            "training rows": len(self.split.train.features),
            **held_out,
            "test rows": len(self.split.test.features),
            "features": self.count,
        }
