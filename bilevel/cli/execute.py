"""Do a job: a task or a study, from its start or from where it stopped."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig

from bilevel import config
from bilevel.cli import job as jobs
from bilevel.cli._session import Session
from bilevel.cli.job import Ended, Job


def execute(job: Job) -> Ended:
    """Do a job; nothing where it is done already.

    Raises:
      FolderTakenError: its folder holds a run of another configuration.
      FolderLockedError: another process is doing it.
    """
    past = jobs.past(job)
    if past is not None:
        result = jobs.finished(job)
        if result is not None:
            return _already(job, result)
    configure_jax(job.cfg)
    from bilevel.cli import _study, _task

    kind: Any = _study if job.is_study else _task
    with Session(job) as session:
        if past is not None:
            session.open(**{name: past[name] for name in ("data",) if name in past})
        prepared = kind.prepare(job.cfg)
        return kind.run(job, prepared, session, past or {})


def configure_jax(cfg: DictConfig) -> None:
    """Set platform, precision and the folder of compiled programs.

    Raises:
      ConfigError: there is no such device.
    """
    import jax

    from bilevel.cli import _cache

    jax.config.update("jax_enable_x64", cfg.precision == "float64")
    jax.config.update("jax_platforms", "cuda" if cfg.platform == "gpu" else "cpu")
    _cache.use()
    try:
        found = jax.devices()[0].platform
    except (RuntimeError, AssertionError):
        found = None
    if found != cfg.platform:  # also where JAX was already started on the other one
        raise config.ConfigError(
            f"platform={cfg.platform}: JAX finds no such device here; install jax[cuda13] on a machine with a GPU, "
            f"or use platform=cpu"
        )


def _already(job: Job, result: dict[str, Any]) -> Ended:
    from bilevel.runs import console

    loss = result.get("outer_loss", 0.0)
    told = "" if job.is_study else f" at outer loss {loss:.6g} after {result['steps']} steps"
    console.console.print(f"finished already{told}, left as it is: {job.folder}", markup=False)
    return Ended(math.inf if loss is None else loss)
