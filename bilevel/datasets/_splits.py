"""Train, validation, test: disjoint rows, drawn from the seed. Scaling is always fitted on the training rows alone."""

import dataclasses
from typing import NamedTuple

import numpy as np

from bilevel.datasets._table import DataError, Kind, Table, require_shape


class Split(NamedTuple):
    """Three tables with the same columns and classes and disjoint rows. A part without rows counts as absent.

    To split your own arrays, make one table with `Table.of`, and take its parts with `Table.at` or `split_rows`.

    Attributes:
      train: rows of the inner problem.
      validation: rows of the outer loss, for tasks that hold rows out.
      test: rows that only the metrics see.
    """

    train: Table
    validation: Table
    test: Table

    @classmethod
    def of(cls, train: Table, validation: Table | None = None, test: Table | None = None) -> "Split":
        """A split whose validation or test rows may be left out."""
        none = train.at(slice(0, 0))
        return cls(train, none if validation is None else validation, none if test is None else test)

    @property
    def parts(self) -> dict[str, Table]:
        """The parts that have rows, by name."""
        return {name: part for name, part in self._asdict().items() if len(part)}

    def require(self, kind: Kind, *needed: str) -> None:
        """Check that a task can be stated from this split.

        Args:
          kind: of the targets.
          needed: parts that must have rows, besides the training rows.

        Raises:
          DataError: a needed part has no rows, or an array has the wrong shape or wrong class numbers.
        """
        for name in ("train", *needed):
            if not len(getattr(self, name)):
                raise DataError(f"{self.train.name}: there are no {name} rows, and this task needs at least one")
        require_shape(f"{self.train.name}, train rows: X", self.train.features, ("samples", "features"))
        for name, part in self.parts.items():
            where = f"{part.name}, {name} rows"
            require_shape(f"{where}: X", part.features, ("samples", self.train.features.shape[1]))
            require_shape(f"{where}: y", part.targets, (len(part),))
            if kind == "classification":
                _require_class_numbers(where, part, self.train.classes)


def _require_class_numbers(where: str, part: Table, classes: int) -> None:
    if classes < 2:
        raise DataError(f"{where}: y holds no class numbers: make the table with Table.of(X, y, 'classification')")
    numbers = np.asarray(part.targets)
    right = np.issubdtype(numbers.dtype, np.integer) and np.all((numbers >= 0) & (numbers < classes))
    if part.classes != classes or not right:
        raise DataError(
            f"{where}: y must hold class numbers from 0 to {classes - 1}, as in the training rows; got {numbers.dtype} and "
            f"{part.classes} classes: make one table with Table.of and take its parts with Table.at"
        )


def split_rows(table: Table, validation: float | int, test: float | int, seed: int) -> Split:
    """Shuffle the rows and cut them in three.

    Args:
      table: the rows to split.
      validation, test: shares of the rows if below 1, else numbers of rows; 0 for none.
      seed: of the shuffle.

    Raises:
      DataError: a part would be empty, or the training rows lack a class.
    """
    total = len(table)
    for part in (validation, test):
        if part >= 1 and part != int(part):
            raise DataError(
                f"{table.name}: a part of the split is a share below 1 or a whole number of rows, got {part}"
            )
    sizes = [round(part * total) if part < 1 else int(part) for part in (validation, test)]
    fewest = min(size for part, size in zip((validation, test, 1), (*sizes, total - sum(sizes)), strict=True) if part)
    if fewest < 1:
        raise DataError(
            f"{table.name}: {total} rows cannot be split into training, {sizes[0]} validation and {sizes[1]} test rows: "
            "every part needs at least one"
        )
    order = np.random.default_rng(seed).permutation(total)
    split = Split(*(table.at(rows) for rows in np.split(order, [total - sum(sizes), total - sizes[1]])))
    if table.classes and len(np.unique(split.train.targets)) < table.classes:
        raise DataError(
            f"{table.name}: the training rows lack one of the {table.classes} classes: use another seed or split"
        )
    return split


def standardize(split: Split) -> Split:
    """Scale the features to mean 0 and standard deviation 1 over the training rows; a constant column becomes 0.

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


def standardize_targets(split: Split) -> Split:
    """Scale the targets to mean 0 and standard deviation 1 over the training rows; `Table.unit` keeps the deviation.

    Raises:
      DataError: the targets are constant.
    """
    mean, deviation = float(split.train.targets.mean()), float(split.train.targets.std())
    if not deviation > 0:
        raise DataError(f"{split.train.name}: y is constant in the training rows: there is nothing to fit")
    return Split(
        *(dataclasses.replace(part, targets=(part.targets - mean) / deviation, unit=deviation) for part in split)
    )


def scale_pixels(split: Split) -> Split:
    """Divide the features by the largest magnitude in the training rows, the same number for all columns."""
    largest = float(np.abs(split.train.features).max()) or 1.0
    return Split(*(part_with(part, part.features / largest) for part in split))


def part_with(part: Table, features: np.ndarray) -> Table:
    """The same rows with other features."""
    return dataclasses.replace(part, features=features)


def join(first: Table, second: Table) -> Table:
    """The rows of two parts of one table."""
    features, targets = (
        np.concatenate([getattr(part, name) for part in (first, second)]) for name in ("features", "targets")
    )
    return dataclasses.replace(first, features=features, targets=targets)
