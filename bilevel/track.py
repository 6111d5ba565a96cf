"""Send a run folder to a tracker: `python -m bilevel.track FOLDER wandb`, once the run is over or while it goes on."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from bilevel import _explain, config


def main() -> None:
    """Entry point; exit codes as of `bilevel.run`."""
    parser = argparse.ArgumentParser(prog="python -m bilevel.track", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.add_argument("tracker", help="one of the run's own, or of: " + ", ".join(_known()))
    parser.add_argument("--follow", action="store_true", help="until standard input is closed, send what still comes")
    given = parser.parse_args()
    try:
        _send(given.folder.resolve(), given.tracker, given.follow)
    except (Exception, KeyboardInterrupt) as error:
        message, code = _explain.explain(error)
        print(message, file=sys.stderr)
        sys.exit(code)


def _known() -> list[str]:
    return [name for name in config.groups()["tracker"] if name != "none"]


def _send(folder: Path, name: str, follow: bool) -> None:
    from bilevel.cli import job
    from bilevel.runs import following

    over = threading.Event()
    if follow:
        threading.Thread(target=_wait_for_end, args=(over, following.MINUTES_ALONE), daemon=True).start()
    else:
        over.set()
    cfg = job.read(folder).cfg
    node = (cfg.tracker or {}).get(name)
    if node is None and name not in _known():
        raise config.ConfigError(f"{name}: there is no such tracker{config.close(name, _known())}")
    node = node or config.compose([f"tracker={name}"]).tracker[name]
    following.follow(config.build(node, cfg.allow_targets), name, folder, over)


def _wait_for_end(over: threading.Event, minutes: float) -> None:
    os.read(sys.stdin.fileno(), 1)  # without the lock of sys.stdin, which would have to be free at exit
    over.set()
    time.sleep(60 * minutes)
    print(f"not ended {minutes:g} minutes after the run: stopped", file=sys.stderr, flush=True)
    os._exit(1)  # whatever it is that blocks


if __name__ == "__main__":
    main()
