"""Where tables come from. Whatever is wrong with one is said in a sentence, before anything is computed."""

from __future__ import annotations

import csv
import dataclasses
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

Kind = Literal["regression", "classification"]
TablePath = str  # ends in .npz or .csv, or begins with openml: ; the name tells the configuration what to accept
BUNDLED: dict[str, Kind] = {
    "breast_cancer": "classification",
    "diabetes": "regression",
    "digits": "classification",
    "iris": "classification",
    "wine": "classification",
}


class DataError(ValueError):
    """The data cannot be used; the message names the source, what is wrong, and the fix."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Samples and targets.

    Attributes:
      name: where they come from.
      features: float64, shape (samples, features).
      targets: float64 (regression) or class numbers 0 … k−1 (int64), shape (samples,).
      classes: number of classes; 0 for regression.
    """

    name: str
    features: np.ndarray
    targets: np.ndarray
    classes: int = 0


def load_table(source: str, kind: Kind) -> Table:
    """Load a table.

    Args:
      source: one of scikit-learn's bundled sets by name; the path of an `.npz` file with arrays `X` and `y`; that of a `.csv`
        file with a header, whose column `y`, or else its last one, holds the targets; or `openml:NAME` or
        `openml:NAME/VERSION` (version 1 unless given), downloaded once by scikit-learn's `fetch_openml`, then from its cache.
      kind: what the targets are.

    Raises:
      DataError: unknown name, missing or unreadable file, wrong arrays, wrong shapes, values that are not finite.
    """
    if source.startswith("openml:"):
        features, targets = _fetch_openml(source)
    elif source.endswith(".npz"):
        features, targets = _read_npz(_file(source))
    elif source.endswith(".csv"):
        features, targets = _read_csv(_file(source))
    else:
        known = [name for name, its_kind in BUNDLED.items() if its_kind == kind]
        if source not in known:
            raise DataError(
                f"no {kind} data called {source!r}: use one of {', '.join(known)}, or the path of an .npz or .csv file, "
                "or openml:NAME"
            )
        features, targets = _read_bundled(source)
    return _checked(source, features, targets, kind)


def make_classification(samples: int, features: int, classes: int, informative: float, seed: int) -> Table:
    """Gaussian clusters at the corners of a hypercube in a part of the features, noise in the others (scikit-learn's).

    Args:
      samples, features, classes: sizes.
      informative: the share of the features that carry signal.
      seed: of the generator.
    """
    from sklearn.datasets import make_classification as make

    signal = max(round(informative * features), 1)
    if 2**signal < classes * 2:
        raise DataError(
            f"synthetic data: {signal} informative features cannot tell {classes} classes of 2 clusters apart: "
            "raise features or informative"
        )
    x, y = make(
        n_samples=samples,
        n_features=features,
        n_informative=signal,
        n_redundant=0,
        n_classes=classes,
        random_state=seed,
    )
    return Table("synthetic", np.asarray(x), np.asarray(y), classes)


def make_images(samples: int, side: int, classes: int, seed: int) -> Table:
    """Made images, side × side pixels between 0 and 1: of each class a smooth pattern, with noise.

    Args:
      samples, side, classes: sizes.
      seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    across = np.linspace(-1, 1, side)
    centers = rng.uniform(-0.7, 0.7, size=(classes, 4, 2))
    squares = (across[:, None] - centers[..., None, None, 0]) ** 2 + (across - centers[..., None, None, 1]) ** 2
    patterns = np.exp(-squares / 0.1).max(axis=1).reshape(classes, -1)
    targets = rng.integers(classes, size=samples)
    noise = rng.normal(scale=0.5, size=(samples, side**2))
    return Table("synthetic", np.clip(patterns[targets] + noise, 0, 1), targets, classes)


def _read_bundled(name: str) -> tuple[Any, Any]:
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(return_X_y=True)


def _file(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file; the path is relative to the folder that the command is run in")
    return path


def _fetch_openml(source: str) -> tuple[Any, Any]:
    from sklearn.datasets import fetch_openml, get_data_home

    name, _, version = source.removeprefix("openml:").partition("/")
    try:
        found: Any = fetch_openml(name, version=int(version or 1), as_frame=False, parser="liac-arff")
    except OSError as error:  # URLError and HTTPError are such
        raise DataError(
            f"{source}: cannot be downloaded ({error}) and is not in the cache, {get_data_home()}: go online once, or give "
            "the path of an .npz file"
        ) from error
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    targets = np.asarray(found.target)
    return found.data, _numbers(targets) if targets.dtype == object else targets


def _numbers(values: np.ndarray) -> np.ndarray:
    """Texts as numbers, where all of them are."""
    try:
        return values.astype(np.float64)
    except ValueError:
        return values.astype(str)


def _read_csv(path: Path) -> tuple[Any, Any]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a readable .csv file with a header ({error})") from error
    names = [name.strip() for name in header]
    target = names.index("y") if "y" in names else len(names) - 1
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise DataError(f"{path}: row {number} has {len(row)} values, the header {len(names)}")
    features = np.empty((len(rows), len(names) - 1))
    for column, name in enumerate(names[:target] + names[target + 1 :]):
        place = column if column < target else column + 1
        for number, row in enumerate(rows):
            try:
                features[number, column] = float(row[place])
            except ValueError as error:
                raise DataError(
                    f"{path}: column {name!r} must hold numbers, and its row {number + 1} holds {row[place]!r}"
                ) from error
    return features, _numbers(np.array([row[target].strip() for row in rows], object))


def _read_npz(path: Path) -> tuple[Any, Any]:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(
                    f"{path}: not a readable .npz file of plain arrays, but a single array: save X and y by np.savez"
                )
            missing = [name for name in ("X", "y") if name not in arrays]
            if missing:
                raise DataError(f"{path}: needs arrays X (samples × features) and y (samples); it has {arrays.files}")
            return arrays["X"], arrays["y"]
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable .npz file of plain arrays ({error})") from error


def _checked(name: str, features: Any, targets: Any, kind: Kind) -> Table:
    features, targets = np.asarray(features), np.asarray(targets)
    if features.ndim != 2 or targets.ndim != 1 or len(features) != len(targets):
        raise DataError(
            f"{name}: X must be samples × features and y one value per sample; got shapes {features.shape}, {targets.shape}"
        )
    if not np.issubdtype(features.dtype, np.number) or np.iscomplexobj(features):
        raise DataError(f"{name}: X must hold numbers, got {features.dtype}")
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0]
        raise DataError(
            f"{name}: X holds a NaN or an infinity, first at row {row}, column {column}: clean or impute it"
        )
    if kind == "regression":
        real = np.issubdtype(targets.dtype, np.number) and not np.iscomplexobj(targets)
        if not real or not np.isfinite(targets).all():
            raise DataError(f"{name}: y must hold finite numbers for regression, got {targets.dtype}")
        return Table(name, features, targets.astype(np.float64))
    if np.iscomplexobj(targets):
        raise DataError(f"{name}: y must hold class labels for classification, got complex numbers")
    if np.issubdtype(targets.dtype, np.floating) and not np.isfinite(targets).all():
        raise DataError(f"{name}: y holds a NaN or an infinity: every sample needs a class label")
    if np.issubdtype(targets.dtype, np.floating) and not np.equal(np.mod(targets, 1), 0).all():
        raise DataError(f"{name}: y must hold class labels for classification, got fractional numbers")
    labels, numbers = np.unique(targets, return_inverse=True)
    if len(labels) < 2:
        raise DataError(f"{name}: y holds one class only ({labels.tolist()}): two are needed")
    return Table(name, features, numbers.astype(np.int64), len(labels))
