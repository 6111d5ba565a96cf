"""What the regression tasks share: one way to split, scale and judge."""

from __future__ import annotations

import dataclasses
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
    """

    source: str
    split: datasets.Split
    mean: float
    deviation: float

    @classmethod
    def load(cls, source: str, validation: float, test: float, seed: int) -> Regression:
        """Load, split and standardize. Raises `datasets.DataError` for targets that are constant."""
        table = datasets.load_table(source, "regression")
        split = datasets.standardize(datasets.split_rows(table, validation, test, seed))
        mean, deviation = float(split.train.targets.mean()), float(split.train.targets.std())
        if not deviation > 0:
            raise datasets.DataError(f"{source}: y is constant on the training rows: there is nothing to fit")
        return cls(source, split, mean, deviation)

    @property
    def count(self) -> int:
        """Number of features."""
        return self.split.train.features.shape[1]

    def rows(self, part: Any, dtype: Any):
        """(X, y) of one part, y standardized."""
        return jnp.asarray(part.features, dtype), jnp.asarray((part.targets - self.mean) / self.deviation, dtype)

    def metrics(self, weights: Any) -> dict[str, float]:
        """Errors in the units of the raw targets."""
        weights = np.asarray(weights, np.float64)

        def errors(part):
            return part.targets - (part.features @ weights * self.deviation + self.mean)

        test = self.split.test
        squares = np.mean(errors(test) ** 2)
        return {
            "validation_rmse": float(np.sqrt(np.mean(errors(self.split.validation) ** 2))),
            "test_rmse": float(np.sqrt(squares)),
            "test_r2": float(1 - squares / np.var(test.targets)),
        }

    @property
    def sizes(self) -> dict[str, int]:
        """What there is how many of."""
        return {
            "training rows": len(self.split.train.features),
            "validation rows": len(self.split.validation.features),
            "test rows": len(self.split.test.features),
            "features": self.count,
        }
