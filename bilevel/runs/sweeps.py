"""The jobs of a sweep side by side: what each was given, how it ended, what it found."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bilevel.runs import _files
from bilevel.runs._folder import STATUS, read_result, read_status

SWEEP, TABLE = "sweep.json", "sweep.csv"


@dataclasses.dataclass(frozen=True)
class Line:
    """One job.

    Attributes:
      folder: its run folder.
      state: "running", "done", "failed" or "interrupted".
      error: why it is not done, in a sentence.
      given: its overrides, by key.
      found: outer_loss, steps and so on, metrics.* and the hyperparameters that are numbers, hparams.*; empty unless done.
    """

    folder: Path
    state: str
    error: str
    given: dict[str, str]
    found: dict[str, Any]

    def name(self, keys: Sequence[str]) -> str:
        """What it was given for these keys, in one text."""
        return " ".join(f"{key}={self.given[key]}" for key in keys if key in self.given) or self.folder.name


def mark(folder: Path, overrides: Sequence[str]) -> None:
    """Write `sweep.json`, which makes a folder one of a sweep, with what was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    _files.write_json(folder / SWEEP, {"overrides": list(overrides)})


def is_sweep(folder: Path) -> bool:
    """Whether a folder is one of a sweep."""
    return (folder / SWEEP).is_file()


def read(folder: Path) -> list[Line]:
    """The jobs of a sweep, in the order of what they were given."""
    lines = [_line(path.parent) for path in folder.glob(f"*/{STATUS}")]
    return sorted(lines, key=lambda line: [(key, number(value), value) for key, value in sorted(line.given.items())])


def number(text: str) -> float:
    """A text as a number, infinite if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.inf


def write_table(folder: Path, lines: Sequence[Line]) -> None:
    """Write `sweep.csv`: a row per job, a column for every key that any of them has."""
    rows = [
        {"folder": line.folder.name, "state": line.state, **line.given, **line.found, "error": line.error}
        for line in lines
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _files.replace(folder / TABLE, text.getvalue().encode())


def swept(lines: Sequence[Line]) -> list[str]:
    """The keys that jobs were given different values of."""
    keys = dict.fromkeys(key for line in lines for key in line.given)
    return [key for key in keys if len({line.given.get(key) for line in lines}) > 1]


def best(lines: Sequence[Line]) -> Line | None:
    """The job with the lowest outer loss."""
    found = [line for line in lines if isinstance(line.found.get("outer_loss"), int | float)]
    return min(found, key=lambda line: line.found["outer_loss"], default=None)


def _line(folder: Path) -> Line:
    status = read_status(folder)
    pairs = (override.lstrip("+").partition("=") for override in status.get("overrides", []))
    state = status.get("state", "failed")
    result = read_result(folder) if state == "done" else None
    found: dict[str, Any] = {}
    if result is not None:
        found = {name: result.get(name) for name in ("outer_loss", "steps", "best_step", "seconds")}
        found |= {f"metrics.{name}": value for name, value in result.get("metrics", {}).items()}
        physical = result.get("hparams", {}).items()
        found |= {f"hparams.{name}": value for name, value in physical if isinstance(value, int | float)}
    return Line(folder, state, status.get("error", ""), {key: value for key, _, value in pairs}, found)
