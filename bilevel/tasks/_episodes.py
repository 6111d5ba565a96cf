"""Episodes for few-shot learning: a few rows to learn from, others to be judged by."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bilevel import datasets

_SCALE = 2.5  # of both axes of the sinusoids
_GRAY = 16  # levels of the digits


class Rows(NamedTuple):
    """Rows of episodes.

    Attributes:
      features: shape (episodes, rows, features).
      targets: numbers or class numbers, shape (episodes, rows).
    """

    features: Any
    targets: Any


class Episodes(NamedTuple):
    """Rows to learn from and rows to be judged by, of the same episodes."""

    support: Rows
    query: Rows

    def arrays(self, dtype: Any) -> Episodes:
        """In JAX, class numbers as integers."""
        kinds = {"f": dtype, "i": jnp.int32}
        made = [Rows(jnp.asarray(x, dtype), jnp.asarray(y, kinds[y.dtype.kind])) for x, y in self]
        return Episodes(*made)


def sinusoids(count: int, shots: int, queries: int, rng: np.random.Generator) -> Episodes:
    """y = a sin(x − b), a uniform in [0.1, 5], b in [0, π], x in [−5, 5]; queries evenly spaced; both axes over 2.5."""
    amplitude, phase = rng.uniform(0.1, 5, (count, 1)), rng.uniform(0, np.pi, (count, 1))

    def rows(x):
        return Rows(x[..., None] / _SCALE, amplitude * np.sin(x - phase) / _SCALE)

    return Episodes(rows(rng.uniform(-5, 5, (count, shots))), rows(np.tile(np.linspace(-5, 5, queries), (count, 1))))


def split_digits(test: float, seed: int) -> tuple[datasets.Table, datasets.Table]:
    """scikit-learn's digits in two: rows for training episodes, and for test episodes."""
    table = datasets.load_table("digits", "classification")
    order = np.random.default_rng(seed).permutation(len(table.targets))
    cut = round(len(order) * (1 - test))

    def part(rows):
        return datasets.Table("digits", table.features[rows] / _GRAY, table.targets[rows], table.classes)

    return part(order[:cut]), part(order[cut:])


def digits(
    table: datasets.Table, count: int, ways: int, shots: int, queries: int, rng: np.random.Generator
) -> Episodes:
    """So many classes an episode, in random order; of each, `shots` rows to learn from and queries/ways, rounded up, others."""
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

    def rows(numbers):
        labels = np.repeat(np.arange(ways), numbers.shape[2])
        return Rows(table.features[numbers].reshape(count, len(labels), -1), np.tile(labels, (count, 1)))

    return Episodes(rows(drawn[:, :, :shots]), rows(drawn[:, :, shots:]))
