"""A run in progress: its folder, log, trackers and signals, and a status file that records how it ended."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from bilevel import _explain
from bilevel.cli.job import Job
from bilevel.runs import RunFolder, console, following

PARENT = "BILEVEL_PARENT"  # the variable that tells a job of a sweep the process that started it


class Session(contextlib.ExitStack):
    """Opens the folder of a job, and writes `status.json` however the run ends.

    Args:
      job: the job.
      past: the status of the same run, or None if the folder holds no run.
    """

    files: RunFolder
    stop: "Stop"

    def __init__(self, job: Job, past: dict[str, Any] | None):
        super().__init__()
        self.past = past or {}
        self._job, self._open = job, False

    def open(self, **record: Any) -> None:
        """Lock the folder, start the log and listen for signals, unless the folder is open already."""
        if self._open:
            self.files.write_status("running", **record)
            return
        job, kept = self._job, {key: value for key, value in self.past.items() if key == "data"}
        self.files = RunFolder(job.folder, job.config_text, {**job.record, **kept, **record})
        self._open = True
        self.callback(self.files.close)
        self.enter_context(console.logging_to(self.files.log_file))
        self.stop = Stop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.callback(signal.signal, number, signal.signal(number, self.stop.note))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        if self._open and error is not None:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            # at this level, the log file has the traceback and the console does not
            logging.getLogger("bilevel").info("an error ended the run", exc_info=error)
            with contextlib.suppress(OSError):  # the disk may be what failed
                self.files.write_status(state, error=_explain.explain(error)[0])
        return super().__exit__(kind, error, trace)

    def follow(self) -> None:
        """Start the trackers; `metrics.jsonl` must hold no row that will be written again."""
        names = list(self._job.cfg.tracker or {})
        self._followers = self.enter_context(following.Followers(self._job.folder, names))

    def log(self, row: Mapping[str, Any]) -> None:
        """Write a row, and warn of trackers that have failed."""
        self.files.rows.append(row)
        self._followers.look()


class Stop:
    """Records the first signal, after which a run ends with its current step; a second signal ends it at once."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._parent = int(os.environ.get(PARENT, "0"))

    def reason(self) -> str | None:
        """Why to stop, or None. A job of a sweep also stops when the sweep's process has ended."""
        if self._parent and os.getppid() != self._parent:
            return "the sweep has ended"
        return self._signal

    def note(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name
