"""Sweeps: one child process per job under every launcher; a rerun skips finished jobs, and a summary names failed ones."""

import contextlib
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from bilevel import _explain, runs
from bilevel.cli import job as jobs
from bilevel.cli._session import PARENT
from bilevel.cli.job import Job
from bilevel.runs import console, sweeps

_GRACE = 10.0  # seconds for a job that was told to stop to complete its step and its checkpoint
_NAMED = 8  # unfinished jobs named on the console; the table has all of them
_OUTPUT = "output.txt"
_exit_codes: list[int] = []


class Sweep(Callback):
    """Hydra's hooks at the start and at the end of a sweep."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Mark the folder as a sweep, and request only the Optuna trials that are missing."""
        _exit_codes.clear()
        folder = Path(config.hydra.sweep.dir)
        sweeps.mark(folder, list(config.hydra.overrides.task))
        _resume_trials(config.hydra.sweeper)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: _stop_jobs(folder))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write `sweep.csv`, and print the results, the errors, and how to continue."""
        _exit_codes.append(_summarize(Path(config.hydra.sweep.dir)))


def supervise(job: Job) -> float:
    """Run a job of a sweep in a child process, and return its objective: the outer loss, or infinity if there is none."""
    try:
        job.check()
        result = None if jobs.past(job) is None else jobs.finished(job)
        if result is not None:
            return _objective(result)
        _note(job, "running", None)
        (job.folder / "config.yaml").write_text(job.config_text, encoding="utf-8")  # the child process resumes this run
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


def _run_child(job: Job) -> None:
    environment = os.environ | {PARENT: str(os.getpid()), "HYDRA_FULL_ERROR": "0"}
    with (job.folder / _OUTPUT).open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "bilevel.run", f"resume={job.folder}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which stops the child
        )
    try:
        code = child.wait(job.cfg.job_time_limit)
    except subprocess.TimeoutExpired:
        _end(child)
        _note(job, "failed", f"stopped after job_time_limit={job.cfg.job_time_limit} s")
        return
    except BaseException:
        _end(child)
        if runs.read_status(job.folder).get("state") == "running":
            _note(job, "interrupted", "the sweep was interrupted")
        raise
    if code < 0:
        _note(job, "failed", f"its process was killed by {signal.Signals(-code).name}")
    elif runs.read_status(job.folder).get("state") == "running":
        _note(job, "failed", f"its process ended with exit code {code}; see {_OUTPUT}")


def _stop_jobs(folder: Path) -> None:
    """Tell the jobs on this machine to stop, and wait for their checkpoints, since some launchers kill their processes."""
    running = [job.folder for job in sweeps.read(folder) if runs.is_locked(job.folder)]
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


def _note(job: Job, state: Literal["running", "failed", "interrupted"], error: str | None) -> None:
    """Write the `status.json` of a job whose process cannot."""
    record = {**job.record, **{key: value for key, value in runs.read_status(job.folder).items() if key == "data"}}
    job.folder.mkdir(parents=True, exist_ok=True)
    runs.write_status(job.folder, state, **record, pid=os.getpid(), **({} if error is None else {"error": error}))


def _resume_trials(sweeper: DictConfig) -> None:
    """Subtract the successful trials in Optuna's storage from the number of trials, and advance the sampler's seed.

    Hydra's sweeper would otherwise request all trials again, with the seed of the first ones.
    """
    if not sweeper.get("storage"):
        return
    import optuna

    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage)
    except KeyError:
        return
    completed = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    done = sum(trial.value is not None and math.isfinite(trial.value) for trial in completed)
    with open_dict(sweeper):
        sweeper.n_trials = max(0, sweeper.n_trials - done)
        if sweeper.sampler.get("seed") is not None:
            sweeper.sampler.seed += done


def _summarize(folder: Path) -> int:
    """Write `sweep.csv` and the best configuration, `best.yaml`; print a summary, and return the exit code."""
    found = sweeps.read(folder)
    keys = sweeps.swept(found)
    sweeps.write_table(folder, found)
    states = Counter(job.state for job in found)
    unfinished = [job for job in found if job.state != "done"]
    lines = [", ".join(f"{states[state]} {state}" for state in ("done", "failed", "interrupted") if states[state])]
    lines += [f"  {job.state}: {job.name(keys)}: {job.error}" for job in unfinished[:_NAMED]]
    if len(unfinished) > _NAMED:
        lines.append(f"  and {len(unfinished) - _NAMED} more")
    best = sweeps.best(found)
    if best is not None:
        runs.write_text(folder / "best.yaml", (best.folder / "config.yaml").read_text(encoding="utf-8"))
        lines.append(f"best: {best.name(keys)}: outer loss {best.results['outer_loss']:.6g}, in {best.folder}")
    lines.append(f"table: {folder / sweeps.TABLE}; report: python -m bilevel.report {folder}")
    if unfinished:
        lines.append("rerun the command to complete the jobs that are not done")
    for line in lines:
        console.console.print(line, markup=False)
    if states["interrupted"]:
        return _explain.INTERRUPTED
    return _explain.FAILED if unfinished else _explain.DONE
