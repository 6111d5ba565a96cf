"""Processes that send a run folder's rows to trackers, so that no tracker can stop or slow down the run.

Each tracker has its own process, `python -m bilevel.track FOLDER NAME`, which reads the rows until its standard input is closed:
by the run when it ends, or by the system if the run dies. `trackers/NAME.json` holds the number of rows sent, where a later
process continues once the earlier one has ended.
"""

import logging
import os
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

PATIENCE = 20.0  # seconds that a finished run waits for its trackers
MINUTES_ALONE = 10  # after which a tracker stops, once the run has ended
_PAUSE = 1.0  # seconds between two checks for new rows
_log = logging.getLogger("bilevel")


class Followers:
    """One process per tracker during a run: those `alive`, and at the end those `left` that continue on their own."""

    def __init__(self, folder: Path, names: Sequence[str], patience: float = PATIENCE):
        self._folder, self._names, self._patience = folder, names, patience
        self.left: list[subprocess.Popen] = []
        self.alive: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Followers":
        for name in self._names:
            try:
                self.alive[name] = self._begin(name)
            except OSError as error:  # a full disk, or too many processes
                self._warn(name, f"could not be started, the run continues: {error}")
        return self

    def _begin(self, name: str) -> subprocess.Popen:
        nice = shutil.which("nice")
        # from its first instruction, for to start three trackers takes seconds of a core
        priority = [nice, "-n", "19"] if nice else []
        with (_home(self._folder) / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*priority, sys.executable, "-m", "bilevel.track", str(self._folder), name, "--follow"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | {"HYDRA_FULL_ERROR": "1"},  # the log has tracebacks
                process_group=0,  # Ctrl-C is for the run; in its own session, Linux would ignore the priority
            )

    def look(self) -> None:
        """Warn of each tracker that has ended before the run."""
        for name, process in list(self.alive.items()):
            if process.poll() is not None:
                del self.alive[name]
                _close_input(process)
                self._check(name, process.returncode)

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + self._patience
        for process in self.alive.values():
            _close_input(process)
        for name, process in self.alive.items():
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.left.append(process)
                self._warn(name, f"is still sending, and continues on its own for at most {MINUTES_ALONE} minutes")
            else:
                self._check(name, code)

    def _check(self, name: str, code: int) -> None:
        if code:
            lines = (_home(self._folder) / f"{name}.log").read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
            self._warn(name, f"failed, the run continues: {last}")

    def _warn(self, name: str, problem: str) -> None:
        fix = f"To send the rows later: python -m bilevel.track {self._folder} {name}"
        _log.warning("tracker %s %s. %s", name, problem, fix)


def follow(tracker: Tracker, name: str, folder: Path, over: threading.Event) -> None:
    """Send the rows of a run to a tracker, and new rows until the run is `over`."""
    with (_home(folder) / f"{name}.lock").open("ab") as alone:
        if not _files.lock(alone.fileno()):
            _log.warning("another process is sending this run to %s; waiting until it ends", name)
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


def _close_input(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _home(folder: Path) -> Path:
    home = folder / "trackers"
    home.mkdir(exist_ok=True)
    return home
