"""Run a job, a task or a study, from its start or from its last checkpoint."""

from typing import Any

from bilevel import runs
from bilevel.cli import job as jobs
from bilevel.cli._session import Session
from bilevel.cli.job import Job


def execute(job: Job) -> bool:
    """Run a job unless it is finished, and return whether it was interrupted, so that it can be resumed.

    Raises:
      FolderTakenError: its folder holds a run of another configuration.
      FolderLockedError: another process is running it.
    """
    past = jobs.past(job)
    result = None if past is None else jobs.finished(job)
    if result is not None:
        _show_finished(job, result)
        return False
    from bilevel.cli import _jax

    _jax.configure(job.cfg)
    from bilevel.cli import _study, _task

    with Session(job, past) as session:
        if past is not None:
            session.open()
        (_study if job.is_study else _task).run(job, session)
    return runs.read_status(job.folder).get("state") == "interrupted"


def _show_finished(job: Job, result: dict[str, Any]) -> None:
    from bilevel.runs import console

    loss, steps = result.get("outer_loss"), result.get("steps")
    outcome = "" if loss is None else f" with outer loss {loss:.6g} after {steps} steps"
    console.console.print(f"already finished{outcome}; nothing was changed: {job.folder}", markup=False)
