"""Processes that send a run folder's rows to trackers, so that no tracker can stop or slow the run.

Each tracker has a process of its own, `python -m bilevel.track FOLDER NAME`, which reads what the run writes until its standard
input is closed: by the run at its end, or by the system where the run dies. How many rows it has sent stands in
`trackers/NAME.json`, so that a later one goes on there, once the earlier one has ended.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bilevel.runs import _files
from bilevel.runs._folder import METRICS, load
from bilevel.runs._rows import Tail
from bilevel.runs.trackers import Tracker

PATIENCE = 20.0  # seconds that a run waits, once it is over, for what its trackers still send
MINUTES_ALONE = 10  # that a tracker has to end, once the run is over
_PAUSE = 1.0  # seconds between two looks at the rows
_log = logging.getLogger("bilevel")


class Followers:
    """One process per tracker, for the length of a run: those `alive`, and in the end those `left` to end by themselves."""

    def __init__(self, folder: Path, names: Sequence[str], patience: float = PATIENCE):
        self._folder, self._names, self._patience = folder, names, patience
        self.left: list[subprocess.Popen] = []
        self.alive: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Followers:
        for name in self._names:
            try:
                self.alive[name] = self._begin(name)
            except OSError as error:  # a full disk, or too many processes
                _log.warning("tracker %s could not be started, the run goes on: %s. %s", name, error, self._fix(name))
        return self

    def _begin(self, name: str) -> subprocess.Popen:
        _home(self._folder).mkdir(exist_ok=True)
        with (_home(self._folder) / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*_last_in_line(), sys.executable, "-m", "bilevel.track", str(self._folder), name, "--follow"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is for the run; in a session of its own, Linux would not heed its priority
            )

    def look(self) -> None:
        """Say once of each that ended before the run that it did."""
        for name, process in list(self.alive.items()):
            if process.poll() is not None:
                del self.alive[name]
                _close_input(process)
                self._say(name, process.returncode)

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + self._patience
        for process in self.alive.values():
            _close_input(process)
        for name, process in self.alive.items():
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.left.append(process)
                _log.warning(
                    "tracker %s still sends, and goes on by itself for at most %d minutes. %s",
                    name,
                    MINUTES_ALONE,
                    self._fix(name),
                )
            else:
                self._say(name, code)

    def _say(self, name: str, code: int) -> None:
        if code:
            lines = (_home(self._folder) / f"{name}.log").read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
            _log.warning("tracker %s failed, the run goes on: %s. %s", name, last, self._fix(name))

    def _fix(self, name: str) -> str:
        return f"The rows are in {METRICS}; to send them later: python -m bilevel.track {self._folder} {name}"


def follow(tracker: Tracker, name: str, folder: Path, over: threading.Event) -> None:
    """Send a run to a tracker: what it has written, and until it is `over`, what it still writes."""
    _home(folder).mkdir(exist_ok=True)
    with (_home(folder) / f"{name}.lock").open("ab") as alone:
        if not _files.lock(alone.fileno()):
            _log.warning("another process sends this run to %s: waiting for its end", name)
            _files.lock(alone.fileno(), wait=True)
        _follow(tracker, _home(folder) / f"{name}.json", folder, over)


def _follow(tracker: Tracker, path: Path, folder: Path, over: threading.Event) -> None:
    cursor = _files.read_json(path) or {}
    sent, seen, tail = int(cursor.get("rows", 0)), 0, Tail(folder / METRICS)
    cursor["run"] = tracker.start(folder, load(folder).config, cursor.get("run"))
    last = False
    while not last:
        last = over.is_set()
        try:
            for row in tail.new():
                if seen >= sent:
                    tracker.log(row)
                seen += 1
        finally:
            _files.write_json(path, {**cursor, "rows": max(seen, sent)})
        if not last:
            over.wait(_PAUSE)
    run = load(folder)
    tracker.finish(run.result if run.ended else None, sorted(folder.glob("*.png")))


def _last_in_line() -> list[str]:
    """Before a command: at the lowest priority from its first instruction, for three that start take seconds of a core."""
    nice = shutil.which("nice")
    return [nice, "-n", "19"] if nice else []


def _close_input(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _home(folder: Path) -> Path:
    return folder / "trackers"
