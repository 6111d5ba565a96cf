"""Send a run folder to a tracker, during the run or after it: `python -m bilevel.track FOLDER wandb`."""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from bilevel import _explain, config


def main() -> None:
    """Entry point, with the exit codes of `bilevel.run`."""
    parser = argparse.ArgumentParser(prog="python -m bilevel.track", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.add_argument("tracker", help="a tracker of the run's configuration, or one of: " + ", ".join(_known()))
    parser.add_argument("--follow", action="store_true", help="send new rows until standard input is closed")
    given = parser.parse_args()
    with _explain.errors_in_a_sentence():
        _send(given.folder.resolve(), given.tracker, given.follow)


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
    os.read(sys.stdin.fileno(), 1)  # reading sys.stdin itself would hold its lock, which Python needs at exit
    over.set()
    time.sleep(60 * minutes)
    print(f"stopped: still sending {minutes:g} minutes after the run ended", file=sys.stderr, flush=True)
    os._exit(1)  # ends the process whatever blocks it


if __name__ == "__main__":
    main()
