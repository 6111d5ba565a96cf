"""Loading and making tables. Every problem with a source is reported in one sentence, before anything is computed."""

import csv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.datasets._table import DataError, Kind, Table

TablePath = str  # ends in .npz or .csv, or starts with openml: ; the configuration checks annotations of this name
_BUNDLED: dict[Kind, list[str]] = {
    "classification": ["breast_cancer", "digits", "iris", "wine"],
    "regression": ["diabetes"],
}


def load_table(source: str, kind: Kind) -> Table:
    """Load a table.

    Args:
      source: the name of a data set that comes with scikit-learn; the path of an `.npz` file with arrays `X` and `y`; the path
        of a `.csv` file with a header, whose targets are in the column `y` or else in the last one; or `openml:NAME` or
        `openml:NAME/VERSION` (version 1 by default), which scikit-learn's `fetch_openml` downloads once and then caches.
      kind: `"regression"` or `"classification"`.

    Raises:
      DataError: unknown name, missing or unreadable file, wrong arrays, wrong shapes, or values that are not finite.
    """
    if source.startswith("openml:"):
        features, targets = _fetch_openml(source)
    elif source.endswith(".npz"):
        features, targets = _read_npz(_file(source))
    elif source.endswith(".csv"):
        features, targets = _read_csv(_file(source))
    elif source in _BUNDLED[kind]:
        from sklearn import datasets

        features, targets = getattr(datasets, f"load_{source}")(return_X_y=True)
    else:
        raise DataError(
            f"no {kind} data called {source!r}: use one of {', '.join(_BUNDLED[kind])}, or the path of an .npz or .csv file, "
            "or openml:NAME"
        )
    return Table.of(features, targets, kind, source)


def make_classification(samples: int, features: int, classes: int, informative: float, seed: int) -> Table:
    """scikit-learn's `make_classification`: Gaussian clusters at the corners of a hypercube, and features of pure noise.

    Args:
      samples, features, classes: sizes.
      informative: share of the features that carry signal.
      seed: of the generator.
    """
    import sklearn.datasets

    signal = max(round(informative * features), 1)
    if 2**signal < classes * 2:
        raise DataError(
            f"synthetic data: {signal} informative features cannot tell {classes} classes of 2 clusters apart: "
            "increase features or informative"
        )
    x, y = sklearn.datasets.make_classification(
        samples, features, n_informative=signal, n_redundant=0, n_classes=classes, random_state=seed
    )
    return Table("synthetic", np.asarray(x), np.asarray(y), classes)


def make_images(samples: int, side: int, classes: int, seed: int) -> Table:
    """Synthetic images of side × side pixels between 0 and 1: a smooth pattern per class, with noise.

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


def _file(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file; a relative path starts at the folder in which the command runs")
    return path


def _fetch_openml(source: str) -> tuple[Any, Any]:
    from sklearn.datasets import fetch_openml, get_data_home

    name, _, version = source.removeprefix("openml:").partition("/")
    try:
        found: Any = fetch_openml(name, version=int(version or 1), as_frame=False, parser="liac-arff")
    except OSError as error:  # includes URLError and HTTPError
        raise DataError(
            f"{source}: cannot be downloaded ({error}) and is not in the cache, {get_data_home()}: connect to the "
            "internet once, or give the path of an .npz file"
        ) from error
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    targets = np.asarray(found.target)
    return found.data, _numbers(targets) if targets.dtype == object else targets


def _numbers(values: np.ndarray) -> np.ndarray:
    """The strings as numbers if all of them are numbers."""
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
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise DataError(f"{path}: row {number} has {len(row)} values, the header {len(names)}")
    target = names.index("y") if "y" in names else len(names) - 1
    cells = np.array(rows, object).reshape(len(rows), len(names))
    features = np.delete(cells, target, axis=1)
    for (row, column), cell in np.ndenumerate(features):
        try:
            features[row, column] = float(cell)
        except ValueError as error:
            name = np.delete(names, target)[column]
            raise DataError(
                f"{path}: column {str(name)!r} must hold numbers, and its row {row + 1} holds {cell!r}"
            ) from error
    return features.astype(np.float64), _numbers(np.array([cell.strip() for cell in cells[:, target]], object))


def _read_npz(path: Path) -> tuple[Any, Any]:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            names = arrays.files if isinstance(arrays, np.lib.npyio.NpzFile) else None
            found = [arrays[name] for name in ("X", "y") if name in (names or ())]
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npz file of plain arrays ({error})") from error
    if names is None:
        raise DataError(f"{path}: not a readable .npz file but a single array: save X and y with np.savez")
    if len(found) < 2:
        raise DataError(f"{path}: needs arrays X (samples × features) and y (samples); it has {names}")
    return found[0], found[1]
