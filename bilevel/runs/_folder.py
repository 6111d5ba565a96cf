"""The run folder: `RunFolder` writes it, and `load` reads it."""

import dataclasses
import datetime
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bilevel.runs import _files
from bilevel.runs._rows import FolderLockedError, Rows, plain, read_rows

CONFIG, METRICS, RESULT, SOLUTION, LOG = "config.yaml", "metrics.jsonl", "result.json", "solution.npz", "log.txt"
STATUS = "status.json"
State = Literal["running", "done", "failed", "interrupted"]


class RunFolder:
    """Writes one run, and locks the folder meanwhile. Rows are appended one by one, and other files are replaced as a whole.

    Args:
      path: the folder, which is created if it is missing.
      config: the text of `config.yaml`.
      record: the entries of `status.json` besides the state, plain values.

    Attributes:
      rows: the rows of `metrics.jsonl`.

    Raises:
      FolderLockedError: another process is writing in the folder.
    """

    def __init__(self, path: Path, config: str, record: Mapping[str, Any]):
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.log_file = path / LOG
        self.rows = Rows(path / METRICS)
        self._record = {**record, "host": platform.node(), "pid": os.getpid()}
        try:
            (path / RESULT).unlink(missing_ok=True)  # of a run that is now resumed
            self.write_status("running")
            _files.replace(path / CONFIG, config.encode())
        except BaseException:
            self.rows.close()
            raise

    def write_picture(self, name: str, figure: Any) -> None:
        """Write a matplotlib figure as `<name>.png`."""
        _files.replace(self.path / f"{name}.png", lambda file: figure.savefig(file, dpi=110, format="png"))

    def write_result(self, result: Mapping[str, Any], **trees: Any) -> None:
        """Write the trees to `solution.npz`, then `result.json`."""
        arrays: dict[str, Any] = dict(_flatten(trees))
        _files.replace(self.path / SOLUTION, lambda file: np.savez(file, **arrays))
        _files.write_json(self.path / RESULT, plain(result))

    def write_status(self, state: State, **more: Any) -> None:
        """Write `status.json`; later calls keep the entries besides the state."""
        self._record |= more
        write_status(self.path, state, **self._record)

    def close(self) -> None:
        """Release the lock of the folder."""
        self.rows.close()


def write_status(folder: Path, state: State, **record: Any) -> None:
    """Write the `status.json` of a folder."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _files.write_json(folder / STATUS, plain({"state": state, "updated": now, **record}))


def read_status(folder: Path) -> dict[str, Any]:
    """The contents of `status.json`, empty if there is no such file."""
    return _files.read_json(folder / STATUS) or {}


def read_result(folder: Path) -> dict[str, Any] | None:
    """The contents of `result.json`, or None if there is no such file."""
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
    """Whether a run was started in a folder."""
    return (folder / CONFIG).is_file() or bool(read_rows(folder / METRICS))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, read from its folder.

    Attributes:
      folder: its path.
      config: the configuration, a nested dict.
      metrics: the rows of `metrics.jsonl`.
      result: `result.json`, or None if the run has not ended; its status is "interrupted" if the run can be resumed.
      hparams, params: the solution as NumPy arrays, nested as they were saved; None if the run did not finish, or is a study.
      arrays: the arrays of a study, nested likewise; None for a task.
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
        """Whether the run finished."""
        return self.result is not None and self.result.get("status") != "interrupted"


def load(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder.

    Args:
      folder: a folder written by `python -m bilevel.run`.

    Raises:
      FileNotFoundError: the folder holds no run.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"{path} holds no run: {CONFIG} is missing")
    import yaml

    trees = dict.fromkeys(("hparams", "params", "arrays"))
    if (path / SOLUTION).is_file():
        with np.load(path / SOLUTION, allow_pickle=False) as saved:
            trees = {name: _unflatten(name, saved) for name in trees}
    config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    return Run(path, config, read_rows(path / METRICS), read_result(path), **trees)


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Arrays by path: `params`, `params/w`, and `params/#0` for the first of a list."""
    if isinstance(tree, list | tuple):
        tree = {f"#{index}": value for index, value in enumerate(tree)}
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flatten(value, f"{prefix}/{key}" if prefix else str(key))
    else:
        yield prefix, np.asarray(tree)


def _unflatten(name: str, arrays: Mapping[str, np.ndarray]) -> Any:
    if name in arrays:
        return arrays[name]
    below = [path.removeprefix(f"{name}/") for path in arrays if path.startswith(f"{name}/")]
    if not below:
        return None
    children = {key: _unflatten(f"{name}/{key}", arrays) for key in dict.fromkeys(path.split("/")[0] for path in below)}
    if all(re.fullmatch(r"#\d+", key) for key in children):
        return [children[f"#{index}"] for index in range(len(children))]
    return children
