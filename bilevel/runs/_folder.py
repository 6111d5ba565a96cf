"""The run folder: what a run writes, and `load`, which reads it back."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bilevel.runs import _files
from bilevel.runs._rows import FolderLockedError, Rows, plain, read_rows

CONFIG, METRICS, RESULT, SOLUTION, LOG = "config.yaml", "metrics.jsonl", "result.json", "solution.npz", "log.txt"
STATUS = "status.json"
State = Literal["running", "done", "failed", "interrupted"]


class RunFolder:
    """Writes one run, which no other process can do meanwhile. Files appear whole or not at all, rows one by one.

    Args:
      path: the folder; made if absent.
      config: `config.yaml`.
      record: what `status.json` says besides the state: plain values.

    Raises:
      FolderLockedError: another process writes in it.
    """

    def __init__(self, path: Path, config: str, record: Mapping[str, Any]):
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.log_file = path / LOG
        self._rows = Rows(path / METRICS)
        self._record = {**record, "host": platform.node(), "pid": os.getpid()}
        try:
            (path / RESULT).unlink(missing_ok=True)  # of a run that was interrupted, or now goes further
            self.write_status("running")
            _files.replace(path / CONFIG, config.encode())
        except BaseException:
            self._rows.close()
            raise

    def keep_rows(self, count: int) -> list[dict[str, Any]]:
        """Cut `metrics.jsonl` after its first `count` rows, half a line included, and return them."""
        return self._rows.keep(count)

    def count_rows(self) -> int:
        """The number of whole rows in `metrics.jsonl`."""
        return len(read_rows(self.path / METRICS))

    def log_row(self, row: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        self._rows.append(row)

    def sync_rows(self) -> None:
        """Wait until the disk has all rows."""
        self._rows.sync()

    def write_picture(self, name: str, figure: Any) -> None:
        """Write a matplotlib figure as `<name>.png`."""
        _files.replace(self.path / f"{name}.png", lambda file: figure.savefig(file, dpi=110, format="png"))

    def write_result(self, result: Mapping[str, Any], **trees: Any) -> None:
        """Write the trees into `solution.npz`, then `result.json`."""
        arrays: dict[str, Any] = {}
        for name, tree in trees.items():
            arrays |= _flatten(name, tree)
        _files.replace(self.path / SOLUTION, lambda file: np.savez(file, **arrays))
        _files.write_json(self.path / RESULT, plain(result))

    def write_status(self, state: State, **more: Any) -> None:
        """Write `status.json`; what is said besides the state is kept for the next time."""
        self._record |= more
        write_status(self.path, state, **self._record)

    def close(self) -> None:
        """Let others write in the folder."""
        self._rows.close()


def write_status(folder: Path, state: State, **record: Any) -> None:
    """Write `status.json` into a folder."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _files.write_json(folder / STATUS, plain({"state": state, "updated": now, **record}))


def read_status(folder: Path) -> dict[str, Any]:
    """What `status.json` says; empty where there is none."""
    return _files.read_json(folder / STATUS) or {}


def read_result(folder: Path) -> dict[str, Any] | None:
    """`result.json`; None where there is none."""
    return _files.read_json(folder / RESULT)


def is_locked(folder: Path) -> bool:
    """Whether a process is writing a run in a folder."""
    if not (folder / METRICS).is_file():
        return False
    try:
        Rows(folder / METRICS).close()
    except FolderLockedError:
        return True
    return False


def holds_run(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return (folder / CONFIG).is_file() or bool(read_rows(folder / METRICS))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read back from its folder.

    Attributes:
      folder: where it lies.
      config: the configuration, a nested dict.
      metrics: the rows of `metrics.jsonl`.
      result: `result.json`, or None if the run is not at its end; its status is "interrupted" if the run can be resumed.
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

    @property
    def ended(self) -> bool:
        """Whether the run came to its end."""
        return self.result is not None and self.result.get("status") != "interrupted"


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

    trees = dict.fromkeys(("hparams", "params", "arrays"))
    if (path / SOLUTION).is_file():
        with np.load(path / SOLUTION, allow_pickle=False) as saved:
            trees = {name: _unflatten(name, saved) for name in trees}
    config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    return Run(path, config, read_rows(path / METRICS), read_result(path), **trees)


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
