"""The command line: `python -m bilevel.run task=svm`. Compose, check, build, run, save."""

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
from bilevel.cli import Job, execute, listing, resume, sweep

_outcome: list[bool | Exception] = []  # of the one run of this command: whether it was interrupted, or its error


def main() -> None:
    """Entry point.

    Exit codes: 0 done; 1 the run, or a job of the sweep, failed; 2 the configuration, the data or the folder cannot be used;
    3 system error (disk, memory, permissions, another process); 75 interrupted, can be resumed.
    """
    arguments = sys.argv[1:]
    with _explain.errors_in_a_sentence(arguments):
        os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise, and leaves printing to this function
        try:
            sys.exit(_dispatch(arguments))
        except BrokenPipeError:  # the reader closed the pipe, as in `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    if arguments and arguments[0] == "--list":
        print(listing.of(arguments[1:]))
        return _explain.DONE
    if {"-h", "--help"} & set(arguments):
        print(listing.help_for(arguments))
        return _explain.DONE
    job = resume.requested(arguments)
    if job is not None:
        return _code(execute(job))
    sys.argv[1:] = resume.without_resume(arguments)
    _outcome.clear()
    _hydra_main()
    if not _outcome:
        return sweep.exit_code()
    (outcome,) = _outcome
    if isinstance(outcome, Exception):
        raise outcome
    return _code(outcome)


def _code(interrupted: bool) -> int:
    return _explain.INTERRUPTED if interrupted else _explain.DONE


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
        _outcome.append(error)  # if it were raised here, Hydra would print a line before it
    return 0.0


def _remove_empty(folder: Path) -> None:
    """Remove the folder that Hydra created before the configuration was checked, if it is empty and below `runs`.

    `runs` is the default place; a folder that the user named is kept.
    """
    parts = folder.relative_to(Path.cwd()).parts if folder.is_relative_to(Path.cwd()) else ()
    if parts[:1] == ("runs",):
        with contextlib.suppress(OSError):
            for depth in range(len(parts), 0, -1):
                Path(*parts[:depth]).rmdir()


if __name__ == "__main__":
    main()
