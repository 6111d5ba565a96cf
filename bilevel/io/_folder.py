"""The run folder: what a run writes, and `load`, which reads it back."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

CONFIG, METRICS, RESULT, SOLUTION, LOG = "config.yaml", "metrics.jsonl", "result.json", "solution.npz", "log.txt"


class RunFolder:
    """Writes one run. Rows are flushed as they come; the other files appear whole or not at all.

    Args:
      path: the folder; made if absent, refused (FileExistsError) if it already holds a run.
    """

    def __init__(self, path: Path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        if (path / METRICS).exists():
            raise FileExistsError(f"{path} already holds a run: choose another hydra.run.dir, or move it away")
        self.log_file = path / LOG
        self._rows: TextIO = (path / METRICS).open("w", encoding="utf-8")

    def write_config(self, text: str) -> None:
        """Write `config.yaml`."""
        _replace(self.path / CONFIG, text.encode())

    def log_row(self, row: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        self._rows.write(json.dumps(plain(row)) + "\n")
        self._rows.flush()

    def write_picture(self, name: str, figure: Any) -> None:
        """Write a matplotlib figure as `<name>.png`."""
        temporary = self.path / f"{name}.png.tmp"
        figure.savefig(temporary, dpi=110, format="png")
        os.replace(temporary, self.path / f"{name}.png")

    def write_result(self, result: Mapping[str, Any], **trees: Any) -> None:
        """Write the trees into `solution.npz`, then `result.json`: a folder with a result is complete."""
        temporary = self.path / f"{SOLUTION}.tmp"
        with temporary.open("wb") as file:
            arrays: dict[str, Any] = {}
            for name, tree in trees.items():
                arrays |= _flatten(name, tree)
            np.savez(file, **arrays)
        os.replace(temporary, self.path / SOLUTION)
        _replace(self.path / RESULT, (json.dumps(plain(result), indent=2) + "\n").encode())

    def close(self) -> None:
        """Close the open file."""
        self._rows.close()


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read back from its folder.

    Attributes:
      folder: where it lies.
      config: the configuration, a nested dict.
      metrics: the rows of `metrics.jsonl`.
      result: `result.json`, or None if the run did not finish.
      hparams, params: the solution as NumPy arrays, nested as they were saved; None if the run did not finish, or is a study.
      arrays: what a study found, likewise; None unless it is one.
    """

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any] | None
    hparams: Any
    params: Any
    arrays: Any


def load(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder back.

    Args:
      folder: a folder written by `python -m bilevel.run`.

    Raises:
      FileNotFoundError: the folder holds no run.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"{path} holds no run: there is no {CONFIG} in it")
    import yaml

    lines = (path / METRICS).read_text(encoding="utf-8").splitlines()
    result = json.loads((path / RESULT).read_text(encoding="utf-8")) if (path / RESULT).is_file() else None
    trees = dict.fromkeys(("hparams", "params", "arrays"))
    if (path / SOLUTION).is_file():
        with np.load(path / SOLUTION, allow_pickle=False) as saved:
            trees = {name: _unflatten(name, saved) for name in trees}
    config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    return Run(path, config, [json.loads(line) for line in lines], result, **trees)


def plain(value: Any) -> Any:
    """`value` as JSON knows it: arrays as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(np.asarray(value).tolist())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _flatten(name: str, tree: Any) -> dict[str, np.ndarray]:
    """Arrays by path: `params`, `params/w`, `params/#0` for the first of a list."""
    if isinstance(tree, Mapping):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        items = [(f"#{index}", value) for index, value in enumerate(tree)]
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        items = [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    else:
        return {name: np.asarray(tree)}
    flat: dict[str, np.ndarray] = {}
    for key, value in items:
        flat |= _flatten(f"{name}/{key}", value)
    return flat


def _unflatten(name: str, arrays: Mapping[str, np.ndarray]) -> Any:
    if name in arrays:
        return arrays[name]
    keys: dict[str, None] = {}
    for path in arrays:
        if path.startswith(f"{name}/"):
            keys[path[len(name) + 1 :].split("/")[0]] = None
    if not keys:
        return None
    children = {key: _unflatten(f"{name}/{key}", arrays) for key in keys}
    if all(re.fullmatch(r"#\d+", key) for key in children):
        return [children[f"#{index}"] for index in range(len(children))]
    return children
