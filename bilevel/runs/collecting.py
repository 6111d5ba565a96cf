"""Run folders, copied into trackio's database as they grow."""

from __future__ import annotations

from pathlib import Path

from bilevel.runs import _files
from bilevel.runs._folder import CONFIG, METRICS, RESULT, load
from bilevel.runs.trackers import Trackio

_HOME = ".trackio"


class Collector:
    """Copies what run folders below a folder have written since the last time.

    Args:
      folder: holds run folders, at any depth; the database is made in it, in `.trackio`.
      project: trackio's name for all of them together.
    """

    def __init__(self, folder: Path, project: str):
        self._folder, self._home = folder, folder / _HOME
        self._tracker = Trackio(project=project, folder=str(self._home))
        self._seen: dict[Path, list[tuple[int, int] | None]] = {}

    def update(self) -> int:
        """Copy what is new, and return the number of runs."""
        runs = sorted(path.parent for path in self._folder.rglob(METRICS) if (path.parent / CONFIG).is_file())
        path = self._home / "copied.json"
        copied = _files.read_json(path) or {}
        for run in filter(self._changed, runs):
            name = "-".join(run.relative_to(self._folder).parts) or run.name
            rows, ended = copied.get(name, (0, False))
            found = load(run)
            if len(found.metrics) > rows or (found.ended and not ended):
                self._tracker.start(run, found.config, name)
                for row in found.metrics[rows:]:
                    self._tracker.log(row)
                self._tracker.finish(found.result if found.ended else None, sorted(run.glob("*.png")))
                copied[name] = (len(found.metrics), found.ended)
                _files.write_json(path, copied)
        return len(runs)

    def _changed(self, run: Path) -> bool:
        """Whether the run has written since it was asked last."""
        now = [_stamp(run / name) for name in (METRICS, RESULT)]
        before, self._seen[run] = self._seen.get(run), now
        return now != before


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns
