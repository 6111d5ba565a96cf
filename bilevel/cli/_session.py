"""An open run: its folder, its log, its trackers, and a status that says how it ended."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from bilevel import _explain
from bilevel.cli._signals import Stop
from bilevel.cli.job import Job
from bilevel.runs import RunFolder, console, following


class Session(contextlib.ExitStack):
    """Opens the folder of a job, at once or later, and writes `status.json` however the run ends."""

    files: RunFolder
    stop: Stop

    def __init__(self, job: Job):
        super().__init__()
        self._job, self._open = job, False

    def open(self, **record: Any) -> None:
        """Open the folder unless it is: lock it, start the log, and listen to signals."""
        if self._open:
            self.files.write_status("running", **record)
            return
        job = self._job
        self.files = RunFolder(job.folder, job.config_text, {**job.record, **record})
        self._open = True
        self.callback(self.files.close)
        self.enter_context(console.logging_to(self.files.log_file))
        self.stop = self.enter_context(Stop())

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        if self._open and error is not None:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            # for the log, not the console
            logging.getLogger("bilevel").info("the run ended by an error", exc_info=error)
            with contextlib.suppress(OSError):  # the disk may be what failed
                self.files.write_status(state, error=_explain.explain(error)[0])
        return super().__exit__(kind, error, trace)

    def follow(self) -> None:
        """Start the trackers, once `metrics.jsonl` holds no row that will be written again."""
        names = list(self._job.cfg.tracker or {})
        self._followers = self.enter_context(following.Followers(self._job.folder, names))

    def log(self, row: Mapping[str, Any]) -> None:
        """Write a row, and see that its followers live."""
        self.files.log_row(row)
        self._followers.look()

    def end(self, result: Mapping[str, Any], **status: Any) -> None:
        """Write `status.json` of a run that came to its end, or to an interruption that can be resumed."""
        state = "interrupted" if result.get("status") == "interrupted" else "done"
        self.files.write_status(state, **status)
