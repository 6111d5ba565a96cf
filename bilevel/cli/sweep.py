"""Sweeps: each job in a child process, whatever the launcher; what is done is skipped, what failed is named."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from bilevel import _explain, runs
from bilevel.cli import _table, _trials
from bilevel.cli import job as jobs
from bilevel.cli._signals import PARENT
from bilevel.cli.job import Job
from bilevel.runs import sweeps

_GRACE = 10.0  # seconds that a job that was told to stop has for its step and its checkpoint
_OUTPUT = "output.txt"
_exit_codes: list[int] = []


def supervise(job: Job) -> float:
    """Do a job of a sweep in a process of its own. Its objective: the outer loss, infinite where there is none."""
    try:
        job.check()
        if jobs.past(job) is not None:
            result = jobs.finished(job)
            if result is not None:
                return _objective(result)
        _prepare(job)
        _run_child(job)
    except Exception as error:
        _note(job, "failed", _explain.explain(error)[0])
    done = runs.read_status(job.folder).get("state") == "done"
    return _objective(runs.read_result(job.folder) if done else None)


def exit_code() -> int:
    """The exit code of the sweep that has ended."""
    return max(_exit_codes, default=_explain.DONE)


def _objective(result: dict[str, Any] | None) -> float:
    loss = None if result is None or result.get("status") == "interrupted" else result.get("outer_loss", 0.0)
    return math.inf if loss is None else loss


def _prepare(job: Job) -> None:
    """Leave in the folder what the child needs: it resumes a run that has not begun."""
    job.folder.mkdir(parents=True, exist_ok=True)
    _note(job, "running", None)
    (job.folder / "config.yaml").write_text(job.config_text, encoding="utf-8")


def _run_child(job: Job) -> None:
    environment = os.environ | {PARENT: str(os.getpid()), "HYDRA_FULL_ERROR": "0"}
    with (job.folder / _OUTPUT).open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "bilevel.run", f"resume={job.folder}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # Ctrl-C comes here, and is passed on
        )
    try:
        code = child.wait(job.cfg.job_time_limit)
    except subprocess.TimeoutExpired:
        _end(child)
        _note(job, "failed", f"it took longer than job_time_limit={job.cfg.job_time_limit} s and was stopped")
        return
    except BaseException:
        _end(child)
        if runs.read_status(job.folder).get("state") == "running":
            _note(job, "interrupted", "the sweep was interrupted")
        raise
    if code < 0:
        _note(job, "failed", f"its process was killed by {signal.Signals(-code).name}")
    elif runs.read_status(job.folder).get("state") == "running":
        _note(job, "failed", f"its process ended with exit code {code}; {_OUTPUT} says more")


def _stop_jobs(folder: Path) -> None:
    """Tell the jobs on this machine to stop, and wait for their checkpoints: some launchers kill what they started."""
    running = [line.folder for line in sweeps.read(folder) if runs.is_locked(line.folder)]
    for job in running:
        record = runs.read_status(job)
        if record.get("host") == platform.node():
            with contextlib.suppress(ProcessLookupError):
                os.kill(record["pid"], signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    while any(map(runs.is_locked, running)) and time.monotonic() < deadline:
        time.sleep(0.1)
    raise KeyboardInterrupt


def _end(child: subprocess.Popen) -> None:
    child.terminate()
    try:
        child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _note(job: Job, state: Any, error: str | None) -> None:
    """Write `status.json`, of a job whose process cannot."""
    record = {**job.record, **{key: value for key, value in runs.read_status(job.folder).items() if key == "data"}}
    job.folder.mkdir(parents=True, exist_ok=True)
    runs.write_status(job.folder, state, **record, pid=os.getpid(), **({} if error is None else {"error": error}))


class Sweep(Callback):
    """Begins and ends a sweep: marks its folder, and sums up its jobs."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Mark the folder, and ask only for the trials that a persistent storage lacks."""
        _exit_codes.clear()
        folder = Path(config.hydra.sweep.dir)
        sweeps.mark(folder, list(config.hydra.overrides.task))
        _trials.go_on(config.hydra.sweeper)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: _stop_jobs(folder))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write `sweep.csv`, and say what was found, what failed, and what to do next."""
        _exit_codes.append(_table.sum_up(Path(config.hydra.sweep.dir)))
