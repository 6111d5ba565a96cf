"""A table of samples and targets, checked when it is made from arrays."""

import dataclasses
from typing import Any, Literal

import numpy as np

Kind = Literal["regression", "classification"]


class DataError(ValueError):
    """The data cannot be used. The message names the source, the problem and the fix."""


def require_shape(name: str, array: Any, shape: tuple[int | str, ...], dtype: str | None = None) -> None:
    """Check an array.

    Args:
      name: of the array, for the message.
      array: the array.
      shape: its sizes; a word stands for any size of at least 1.
      dtype: required; None for any.

    Raises:
      DataError: the shape or the dtype is wrong.
    """
    found, kind = np.shape(array), np.asarray(array).dtype
    right = len(found) == len(shape) and all(
        size >= 1 if isinstance(wanted, str) else size == wanted for size, wanted in zip(found, shape, strict=True)
    )
    if not right or dtype not in (None, kind.name):
        wanted = str(shape).replace("'", "") + ("" if dtype is None else f" and the dtype {dtype}")
        raise DataError(f"{name} must have the shape {wanted}; got {found} and {kind}")


@dataclasses.dataclass(frozen=True)
class Table:
    """Samples and targets. `Table.of` makes one from arrays and checks them.

    Attributes:
      name: the source.
      features: float64, shape (samples, features).
      targets: float64 (regression) or class numbers 0 … k−1 (int64), shape (samples,).
      classes: number of classes; 0 for regression.
      unit: for regression, the factor that takes differences of `targets` back to the units of the source.
    """

    name: str
    features: np.ndarray
    targets: np.ndarray
    classes: int = 0
    unit: float = 1.0

    @classmethod
    def of(cls, features: Any, targets: Any, kind: Kind, name: str = "arrays") -> "Table":
        """Make a table from arrays; class labels of any type become class numbers, in sorted order.

        Args:
          features: numbers, shape (samples, features).
          targets: numbers or class labels, shape (samples,).
          kind: `"regression"` or `"classification"`.
          name: used in messages and titles.

        Raises:
          DataError: wrong shapes or types, values that are not finite, or a single class.
        """
        features, targets = np.asarray(features), np.asarray(targets)
        if features.ndim != 2 or targets.ndim != 1 or len(features) != len(targets):
            shapes = f"{features.shape}, {targets.shape}"
            raise DataError(f"{name}: X must be samples × features and y one value per sample; got shapes {shapes}")
        features = _numbers(features, name)
        if kind == "regression":
            real = np.issubdtype(targets.dtype, np.number) and not np.iscomplexobj(targets)
            if not real or not np.isfinite(targets).all():
                raise DataError(f"{name}: y must hold finite numbers for regression, got {targets.dtype}")
            return cls(name, features, targets.astype(np.float64))
        labels, numbers = np.unique(_labels(targets, name), return_inverse=True)
        if len(labels) < 2:
            raise DataError(f"{name}: y holds one class only ({labels.tolist()}): two are needed")
        return cls(name, features, numbers.astype(np.int64), len(labels))

    def __len__(self) -> int:
        return len(self.features)

    def at(self, rows: Any) -> "Table":
        """The samples at these rows: a slice, indices or a mask."""
        return dataclasses.replace(self, features=self.features[rows], targets=self.targets[rows])


def _numbers(features: np.ndarray, name: str) -> np.ndarray:
    if not np.issubdtype(features.dtype, np.number) or np.iscomplexobj(features):
        raise DataError(f"{name}: X must hold numbers, got {features.dtype}")
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0]
        raise DataError(
            f"{name}: X holds a NaN or an infinity, first at row {row}, column {column}: clean or impute it"
        )
    return features


def _labels(targets: np.ndarray, name: str) -> np.ndarray:
    numbers = np.issubdtype(targets.dtype, np.inexact)
    if numbers and not np.isfinite(targets).all():
        raise DataError(f"{name}: y holds a NaN or an infinity: every sample needs a class label")
    if numbers and (np.iscomplexobj(targets) or np.any(targets % 1)):
        found = "complex" if np.iscomplexobj(targets) else "fractional"
        raise DataError(f"{name}: y must hold class labels for classification, got {found} numbers")
    return targets
