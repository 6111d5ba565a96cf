"""Show run folders in the local browser, and keep showing what they write: `python -m bilevel.dashboard [FOLDER]`.

The dashboard is trackio's (`pip install "bilevel[dashboard]"`); nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

from bilevel import _explain

_PAUSE = 2.0  # seconds between two looks at the folders
_PROJECT = "bilevel"


def main() -> None:
    """Entry point; exit codes as of `bilevel.run`."""
    parser = argparse.ArgumentParser(prog="python -m bilevel.dashboard", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="holds run folders, at any depth")
    parser.add_argument("--port", type=int, help="of the page; the first free one from 7860 on by default")
    parser.add_argument("--no-open", action="store_true", help="do not open the browser")
    given = parser.parse_args()
    try:
        _show(given.folder.resolve(), given.port, not given.no_open)
    except KeyboardInterrupt:
        return
    except Exception as error:
        message, code = _explain.explain(error)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(code)


def _show(folder: Path, port: int | None, open_browser: bool) -> None:
    from bilevel.runs.collecting import Collector

    collector = Collector(folder, _PROJECT)
    with _silence():
        runs = collector.update()
    if not runs:
        raise FileNotFoundError(f"{folder}: no run in it; run something, for example python -m bilevel.run task=svm")
    os.environ.setdefault("TRACKIO_TELEMETRY", "0")
    import trackio

    with _silence():  # it would print a link with a token in it
        _, url, *_ = trackio.show(
            _PROJECT, open_browser=open_browser, block_thread=False, server_port=port, host="127.0.0.1", footer=False
        )
    print(f"{runs} runs of {folder} at {url.split('?')[0]} (Ctrl-C ends)", flush=True)
    while True:
        time.sleep(_PAUSE)
        with _silence():
            collector.update()


def _silence() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stdout(io.StringIO())


if __name__ == "__main__":
    main()
