"""Being told to stop: by Ctrl-C, by a scheduler, by the end of the process that started this one."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

PARENT = "BILEVEL_PARENT"  # of a job of a sweep: the process without which it shall not go on


class Stop:
    """Notes SIGINT and SIGTERM, so that a run ends after the step at hand; a second signal ends it at once."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._parent = int(os.environ.get(PARENT, "0"))

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self._parent and os.getppid() != self._parent:
            return "the sweep is gone"
        return self._signal

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name
