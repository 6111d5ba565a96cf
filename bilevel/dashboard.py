"""Show run folders in the local browser while they grow: `python -m bilevel.dashboard [FOLDER]`.

The dashboard is trackio's (`pip install "bilevel[dashboard]"`). No data leave this machine.
"""

import argparse
import contextlib
import io
import os
import time
from pathlib import Path

from bilevel import _explain
from bilevel.runs import _files, load
from bilevel.runs._folder import CONFIG, METRICS, RESULT
from bilevel.runs.trackers import Trackio

_PAUSE = 2.0  # seconds between two checks of the folders
_PROJECT = "bilevel"


def main() -> None:
    """Entry point, with the exit codes of `bilevel.run`."""
    parser = argparse.ArgumentParser(prog="python -m bilevel.dashboard", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="contains run folders at any depth")
    parser.add_argument("--port", type=int, help="port of the page; by default the first free port from 7860")
    parser.add_argument("--no-open", action="store_true", help="do not open the browser")
    given = parser.parse_args()
    with _explain.errors_in_a_sentence(), contextlib.suppress(KeyboardInterrupt):
        _show(given.folder.resolve(), given.port, not given.no_open)


def _show(folder: Path, port: int | None, open_browser: bool) -> None:
    collector = Collector(folder)
    runs = collector.update()
    if not runs:
        raise FileNotFoundError(f"{folder}: no run in it; start one, for example python -m bilevel.run task=svm")
    os.environ.setdefault("TRACKIO_TELEMETRY", "0")
    import trackio

    with contextlib.redirect_stdout(io.StringIO()):  # trackio prints a link that contains a token
        _, url, *_ = trackio.show(
            _PROJECT, open_browser=open_browser, block_thread=False, server_port=port, host="127.0.0.1", footer=False
        )
    print(f"{runs} runs of {folder} at {url.split('?')[0]} (Ctrl-C ends)", flush=True)
    while True:
        time.sleep(_PAUSE)
        collector.update()


class Collector:
    """Copies run folders at any depth below a folder to trackio's database, which is in `.trackio` in that folder."""

    def __init__(self, folder: Path):
        self._folder, home = folder, folder / ".trackio"
        self._tracker, self._record = Trackio(project=_PROJECT, folder=str(home)), home / "copied.json"
        self._seen: dict[Path, list[tuple[int, int] | None]] = {}

    def update(self) -> int:
        """Copy what was written since the last call, and return the number of runs."""
        runs = sorted(path.parent for path in self._folder.rglob(METRICS) if (path.parent / CONFIG).is_file())
        with contextlib.redirect_stdout(io.StringIO()):
            for run in filter(self._changed, runs):
                self._copy(run)
        return len(runs)

    def _copy(self, folder: Path) -> None:
        copied = _files.read_json(self._record) or {}
        name = "-".join(folder.relative_to(self._folder).parts) or folder.name
        rows, ended = copied.get(name, (0, False))
        run = load(folder)
        if len(run.metrics) > rows or (run.ended and not ended):
            self._tracker.start(folder, run.config, name)
            for row in run.metrics[rows:]:
                self._tracker.log(row)
            self._tracker.finish(run.result if run.ended else None, sorted(folder.glob("*.png")))
            _files.write_json(self._record, {**copied, name: (len(run.metrics), run.ended)})

    def _changed(self, run: Path) -> bool:
        """Whether a run has written since the last call."""
        now = [_stamp(run / name) for name in (METRICS, RESULT)]
        before, self._seen[run] = self._seen.get(run), now
        return now != before


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


if __name__ == "__main__":
    main()
