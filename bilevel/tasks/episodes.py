"""Episodes for few-shot learning: each has support rows to learn from and query rows to be judged by."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel.datasets import DataError, Table, require_shape
from bilevel.tasks._tables import load_classes

_SCALE = 2.5  # of both axes of the sinusoids


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

    def arrays(self, dtype: DTypeLike) -> "Episodes":
        """As JAX arrays: numbers in `dtype`, class numbers as integers."""

        def convert(rows: Rows) -> Rows:
            kind = jnp.int32 if _are_classes(rows) else dtype
            return Rows(jnp.asarray(rows.features, dtype), jnp.asarray(rows.targets, kind))

        return Episodes(*map(convert, self))


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

    @property
    def parts(self) -> dict[str, Episodes]:
        """The training episodes, and the test episodes if there are any."""
        return {"train": self.train} | ({} if self.test is None else {"test": self.test})

    @property
    def classes(self) -> int:
        """The number of classes; 0 if the targets are numbers."""
        if not _are_classes(self.train.support):
            return 0
        return 1 + max(int(np.max(rows.targets)) for part in self.parts.values() for rows in part)

    def require(self) -> None:
        """Raise `datasets.DataError` if an array has the wrong shape or type."""
        require_shape("train.support.features", self.train.support.features, ("episodes", "rows", "features"))
        for part_name, part in self.parts.items():
            episodes, width = len(part.support.features), np.shape(self.train.support.features)[2]
            for rows_name, rows in part._asdict().items():
                where = f"{part_name}.{rows_name}"
                require_shape(f"{where}.features", rows.features, (episodes, "rows", width))
                require_shape(f"{where}.targets", rows.targets, (episodes, np.shape(rows.features)[1]))
                if _are_classes(rows) != _are_classes(self.train.support):
                    raise DataError(f"{where}.targets must be class numbers (integers) or floats in all parts alike")
                if _are_classes(rows) and (np.min(rows.targets) < 0 or self.classes < 2):
                    raise DataError(f"{where}.targets must be class numbers from 0, of at least two classes")


def _are_classes(rows: Rows) -> bool:
    return np.asarray(rows.targets).dtype.kind in "iu"


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
    split = load_classes("digits", 0, test, seed)
    return split.train, split.test


def digits(table: Table, count: int, ways: int, shots: int, queries: int, rng: np.random.Generator) -> Episodes:
    """Episodes with `ways` classes each, in random order.

    A class has `shots` support rows and queries/ways query rows, rounded up; no row is in both.
    """
    each = -(-queries // ways)
    of_class = [np.flatnonzero(table.targets == label) for label in range(table.classes)]

    def episode() -> list[np.ndarray]:
        chosen = rng.choice(table.classes, ways, replace=False)
        return [rng.choice(of_class[label], shots + each, replace=False) for label in chosen]

    drawn = np.stack([episode() for _ in range(count)])

    def rows(numbers: np.ndarray) -> Rows:
        labels = np.repeat(np.arange(ways), numbers.shape[2])
        return Rows(table.features[numbers].reshape(count, len(labels), -1), np.tile(labels, (count, 1)))

    return Episodes(rows(drawn[:, :, :shots]), rows(drawn[:, :, shots:]))
