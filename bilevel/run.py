"""The command line: `python -m bilevel.run task=svm`. Compose, check, build, run, save."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from bilevel import _explain, config
from bilevel.cli import Ended, Job, execute, listing, resume, sweep

_outcome: list[Ended | Exception] = []


def main() -> None:
    """Entry point.

    Exit codes: 0 done; 1 the run, or a job of the sweep, failed; 2 the configuration, the data or the folder cannot be used;
    3 the machine got in the way (disk, memory, permissions, another process); 75 interrupted, to be resumed.
    """
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises; what to print is decided here
    arguments = sys.argv[1:]
    try:
        sys.exit(_dispatch(arguments))
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        if traceback_wanted:
            raise
        message, code = _explain.explain(error, arguments)
        print(f"error: {message}\n(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
        sys.exit(code)


def _dispatch(arguments: Sequence[str]) -> int:
    """Do what the arguments ask for, and return the exit code."""
    if arguments and arguments[0] == "--list":
        print(listing.of(arguments[1:]))
        return _explain.DONE
    if listing.wants_help(arguments):
        print(listing.help_for(arguments))
        return _explain.DONE
    found = resume.asked(arguments)
    if found is not None:
        return _code(execute(found))
    sys.argv[1:] = resume.without_resume(arguments)
    _outcome.clear()
    _hydra_main()
    for ended in _outcome:
        if isinstance(ended, Exception):
            raise ended
        return _code(ended)
    return sweep.exit_code()


def _code(ended: Ended) -> int:
    return _explain.INTERRUPTED if ended.interrupted else _explain.DONE


@hydra.main(version_base="1.3", config_path=str(config.config_dir()), config_name="config")
def _hydra_main(cfg: DictConfig) -> float:
    chosen = HydraConfig.get()
    job = Job(cfg, Path(chosen.runtime.output_dir), config.choices(chosen), list(chosen.overrides.task))
    if chosen.mode == RunMode.MULTIRUN:
        return sweep.supervise(job)
    try:
        job.check()
        _outcome.append(execute(job))
    except Exception as error:
        _remove_empty(job.folder)
        _outcome.append(error)  # raised from here, Hydra would print a line of its own first
    return 0.0


def _remove_empty(folder: Path) -> None:
    """Hydra makes the folder before the configuration can be checked: leave none behind that nothing was written to.

    Only below `runs`, the default place; a folder that the user named stays.
    """
    parts = folder.relative_to(Path.cwd()).parts if folder.is_relative_to(Path.cwd()) else ()
    if parts[:1] == ("runs",):
        with contextlib.suppress(OSError):
            for depth in range(len(parts), 0, -1):
                Path(*parts[:depth]).rmdir()


if __name__ == "__main__":
    main()
