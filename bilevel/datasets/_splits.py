"""Train, validation, test: disjoint rows, drawn once from the seed. Nothing is fitted on more than the training rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bilevel.datasets._sources import DataError, Table


class Split(NamedTuple):
    """Three tables with disjoint rows."""

    train: Table
    validation: Table
    test: Table


def split_rows(table: Table, validation: float | int, test: float | int, seed: int) -> Split:
    """Shuffle the rows and cut them in three.

    Args:
      table: what to split.
      validation, test: shares of the rows if below 1, else numbers of rows.
      seed: of the shuffle.

    Raises:
      DataError: a part would be empty, or the training rows lack a class.
    """
    total = len(table.features)
    for part in (validation, test):
        if part >= 1 and part != int(part):
            raise DataError(
                f"{table.name}: a part of the split is a share below 1 or a whole number of rows, got {part}"
            )
    sizes = [round(part * total) if part < 1 else int(part) for part in (validation, test)]
    if min(sizes) < 1 or sum(sizes) >= total:
        raise DataError(
            f"{table.name}: {total} rows cannot be split into training, {sizes[0]} validation and {sizes[1]} test rows: "
            "every part needs at least one"
        )
    order = np.random.default_rng(seed).permutation(total)
    cuts = np.split(order, [total - sum(sizes), total - sizes[1]])
    parts = [Table(table.name, table.features[rows], table.targets[rows], table.classes) for rows in cuts]
    if table.classes and len(np.unique(parts[0].targets)) < table.classes:
        raise DataError(
            f"{table.name}: the training rows lack one of the {table.classes} classes: use another seed or split"
        )
    return Split(*parts)


def standardize(split: Split) -> Split:
    """Features with the training rows' mean 0 and standard deviation 1; a constant column becomes 0.

    Raises:
      DataError: every column is constant.
    """
    train = split.train.features
    constant = np.ptp(train, axis=0) == 0  # its computed deviation need not be exactly zero
    if constant.all():
        raise DataError(
            f"{split.train.name}: every column of X is constant in the training rows: nothing can be learned"
        )
    mean = np.where(constant, train[0], train.mean(0))
    deviation = np.where(constant, 1.0, train.std(0))
    return Split(*(part_with(part, (part.features - mean) / deviation) for part in split))


def scale_pixels(split: Split) -> Split:
    """Features over the largest magnitude of the training rows, one number for all columns."""
    largest = float(np.abs(split.train.features).max()) or 1.0
    return Split(*(part_with(part, part.features / largest) for part in split))


def part_with(part: Table, features: np.ndarray) -> Table:
    """The same rows with other features."""
    return Table(part.name, features, part.targets, part.classes)


def join(first: Table, second: Table) -> Table:
    """The rows of two parts of one table."""
    features, targets = (
        np.concatenate([getattr(part, name) for part in (first, second)]) for name in ("features", "targets")
    )
    return Table(first.name, features, targets, first.classes)
