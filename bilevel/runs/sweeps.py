"""The jobs of a sweep, read from their run folders: overrides, state and results."""

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
class SweepJob:
    """One job of a sweep.

    Attributes:
      folder: its run folder.
      state: "running", "done", "failed" or "interrupted".
      error: why it is not done, in a sentence.
      overrides: its overrides by key.
      results: outer_loss, steps and so on, metrics.*, and the scalar hyperparameters, hparams.*; empty unless done.
    """

    folder: Path
    state: str
    error: str
    overrides: dict[str, str]
    results: dict[str, Any]

    def name(self, keys: Sequence[str]) -> str:
        """Its overrides of these keys, in one text."""
        overrides = self.overrides
        return " ".join(f"{key}={overrides[key]}" for key in keys if key in overrides) or self.folder.name


def mark(folder: Path, overrides: Sequence[str]) -> None:
    """Write `sweep.json`, which marks a folder as a sweep and holds its overrides."""
    folder.mkdir(parents=True, exist_ok=True)
    _files.write_json(folder / SWEEP, {"overrides": list(overrides)})


def is_sweep(folder: Path) -> bool:
    """Whether a folder is the folder of a sweep."""
    return (folder / SWEEP).is_file()


def read(folder: Path) -> list[SweepJob]:
    """The jobs of a sweep, sorted by their overrides."""
    jobs = [_read_job(path.parent) for path in folder.glob(f"*/{STATUS}")]
    return sorted(jobs, key=lambda job: [(key, number(value), value) for key, value in sorted(job.overrides.items())])


def number(text: str) -> float:
    """A text as a number, infinite if it is not one."""
    try:
        return float(text)
    except ValueError:
        return math.inf


def write_table(folder: Path, jobs: Sequence[SweepJob]) -> None:
    """Write `sweep.csv`, with a row for each job and a column for each key that any job has."""
    rows = [
        {"folder": job.folder.name, "state": job.state, **job.overrides, **job.results, "error": job.error}
        for job in jobs
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _files.write_text(folder / TABLE, text.getvalue())


def swept(jobs: Sequence[SweepJob]) -> list[str]:
    """The keys whose values differ between jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def with_loss(jobs: Sequence[SweepJob]) -> list[SweepJob]:
    """The jobs that have an outer loss."""
    return [job for job in jobs if job.results.get("outer_loss") is not None]


def best(jobs: Sequence[SweepJob]) -> SweepJob | None:
    """The job with the lowest outer loss."""
    return min(with_loss(jobs), key=lambda job: job.results["outer_loss"], default=None)


def _read_job(folder: Path) -> SweepJob:
    status = read_status(folder)
    pairs = (override.lstrip("+").partition("=") for override in status.get("overrides", []))
    state = status.get("state", "failed")
    result = read_result(folder) if state == "done" else None
    results: dict[str, Any] = {}
    if result is not None:
        results = {name: result.get(name) for name in ("outer_loss", "steps", "best_step", "seconds")}
        results |= {f"metrics.{name}": value for name, value in result.get("metrics", {}).items()}
        physical = result.get("hparams", {}).items()
        results |= {f"hparams.{name}": value for name, value in physical if isinstance(value, int | float)}
    return SweepJob(folder, state, status.get("error", ""), {key: value for key, _, value in pairs}, results)
