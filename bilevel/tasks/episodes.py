"""Episodes for few-shot learning: each has support rows to learn from and query rows to be judged by."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel import datasets
from bilevel.datasets import DataError, Table

_SCALE = 2.5  # of both axes of the sinusoids
_GRAY_LEVELS = 16  # of the digits


class Rows(NamedTuple):
    """Rows of episodes.

    Attributes:
      features: shape (episodes, rows, features).
      targets: numbers (floats) or class numbers from 0 (integers), shape (episodes, rows).
    """

    features: Any
    targets: Any


class Episodes(NamedTuple):
    """Support rows and query rows of the same episodes."""

    support: Rows
    query: Rows

    def arrays(self, dtype: DTypeLike) -> Episodes:
        """As JAX arrays: numbers in `dtype`, class numbers as integers."""
        made = [
            Rows(jnp.asarray(x, dtype), jnp.asarray(y, jnp.int32 if np.asarray(y).dtype.kind in "iu" else dtype))
            for x, y in self
        ]
        return Episodes(*made)


class EpisodeSplit(NamedTuple):
    """Training and test episodes.

    Attributes:
      train: episodes of the problem.
      test: episodes that only the metrics use; None if there are none.
      name: for the title and messages.
    """

    train: Episodes
    test: Episodes | None = None
    name: str = "arrays"

    def require(self) -> None:
        """Raise `datasets.DataError` if an array has the wrong shape or type."""
        width, kind = np.shape(self.train.support.features)[-1:], _kind(self.train.support)
        for part_name, part in (("train", self.train), *([("test", self.test)] if self.test else [])):
            for rows_name, rows in part._asdict().items():
                where = f"{self.name}, {part_name}.{rows_name}"
                x, y = np.shape(rows.features), np.shape(rows.targets)
                if len(x) != 3 or y != x[:2] or 0 in y:
                    raise DataError(
                        f"{where}: features must have the shape (episodes, rows, features) and targets (episodes, rows); "
                        f"got {x}, {y}"
                    )
                if x[2:] != width:
                    raise DataError(f"{where}: features must have {width[0]} columns, as train.support has; got {x}")
                if len(rows.features) != len(part.support.features):
                    raise DataError(
                        f"{where}: there must be {len(part.support.features)} episodes, as in support; got {x}"
                    )
                if _kind(rows) != kind or (kind == "integers" and np.min(rows.targets) < 0):
                    raise DataError(
                        f"{where}: targets must all be floats, or all class numbers from 0 as integers; train.support has "
                        f"{kind}, and this array {np.asarray(rows.targets).dtype}, at least {np.min(rows.targets)}"
                    )

    @property
    def classes(self) -> int:
        """The number of classes; 0 if the targets are numbers."""
        if _kind(self.train.support) == "floats":
            return 0
        parts = [self.train, *([self.test] if self.test else [])]
        return 1 + max(int(np.max(rows.targets)) for part in parts for rows in part)


def _kind(rows: Rows) -> str:
    return "integers" if np.asarray(rows.targets).dtype.kind in "iu" else "floats"


def sinusoids(count: int, shots: int, queries: int, rng: np.random.Generator) -> Episodes:
    """Episodes of y = a sin(x − b) with a uniform in [0.1, 5], b in [0, π] and support x in [−5, 5].

    The query rows are evenly spaced, and both axes are divided by 2.5.
    """
    amplitude, phase = rng.uniform(0.1, 5, (count, 1)), rng.uniform(0, np.pi, (count, 1))

    def rows(x: np.ndarray) -> Rows:
        return Rows(x[..., None] / _SCALE, amplitude * np.sin(x - phase) / _SCALE)

    return Episodes(rows(rng.uniform(-5, 5, (count, shots))), rows(np.tile(np.linspace(-5, 5, queries), (count, 1))))


def split_digits(test: float, seed: int) -> tuple[Table, Table]:
    """scikit-learn's digits in two parts: rows for training episodes and for test episodes."""
    table = datasets.load_table("digits", "classification")
    table = datasets.part_with(table, table.features / _GRAY_LEVELS)
    order = np.random.default_rng(seed).permutation(len(table))
    cut = round(len(order) * (1 - test))
    return table.at(order[:cut]), table.at(order[cut:])


def digits(table: Table, count: int, ways: int, shots: int, queries: int, rng: np.random.Generator) -> Episodes:
    """Episodes with `ways` classes each, in random order.

    A class has `shots` support rows and queries/ways query rows, rounded up; no row is in both.
    """
    each = -(-queries // ways)
    of_class = [np.flatnonzero(table.targets == label) for label in range(table.classes)]
    drawn = np.stack(
        [
            [
                rng.choice(of_class[label], shots + each, replace=False)
                for label in rng.choice(table.classes, ways, False)
            ]
            for _ in range(count)
        ]
    )

    def rows(numbers: np.ndarray) -> Rows:
        labels = np.repeat(np.arange(ways), numbers.shape[2])
        return Rows(table.features[numbers].reshape(count, len(labels), -1), np.tile(labels, (count, 1)))

    return Episodes(rows(drawn[:, :, :shots]), rows(drawn[:, :, shots:]))
