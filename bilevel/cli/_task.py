"""A task: an outer algorithm finds its hyperparameters."""

import dataclasses
import logging
import math
from typing import Any, NamedTuple

from omegaconf import DictConfig

from bilevel import __version__, config, outer
from bilevel.cli import _jax
from bilevel.cli._session import Session
from bilevel.cli.job import Job
from bilevel.runs import console
from bilevel.runs.checkpoints import Checkpoints, fingerprint
from bilevel.tasks import Setup

_PARTS = {"inner": "inner", "hypergrad": "hypergradient", "optimizer": "optimizer"}  # of an algorithm, for the header
_log = logging.getLogger("bilevel")


class DivergedError(RuntimeError):
    """The outer loss or its gradient is no longer finite."""


class Prepared(NamedTuple):
    """A task with its data, its algorithm, and the state in which the algorithm starts."""

    setup: Setup
    algorithm: outer.Nested
    start: outer.Progress


def prepare(cfg: DictConfig) -> Prepared:
    """Load the data and build the algorithm."""
    setup = config.build(cfg.task, cfg.allow_targets).setup(cfg.seed, cfg.precision)
    problem = setup.problem
    if cfg.optimality:
        problem = dataclasses.replace(problem, optimality=config.build(cfg.optimality, cfg.allow_targets))
    algorithm = config.build(cfg.outer, cfg.allow_targets)(problem)
    start = algorithm.init(setup.hparams, setup.params, setup.data)
    return Prepared(setup, algorithm, outer.Progress.start(algorithm, start))


def run(job: Job, session: Session) -> None:
    """Run the outer loop in the job's folder, from its last checkpoint if there is one."""
    past = session.past
    setup, algorithm, start = prepare(job.cfg)
    cfg, data = job.cfg, fingerprint(setup.data)
    if past.get("data", data) != data and past.get("state") != "failed":
        raise ValueError(f"{job.folder}: the data have changed since this run was started; start a new run")
    session.open(data=data)
    _show_header(job, setup)
    origin = {"configuration": job.identity, "set of data": data}
    checkpoints = Checkpoints(job.folder / "checkpoints", cfg.checkpoint.every, cfg.checkpoint.seconds, origin)
    progress = _recover(session, checkpoints, start)
    session.follow()
    with console.Bar(cfg.steps, progress.steps) as bar:

        def report(row: dict[str, Any], _: Any) -> None:
            session.log(row)
            bar.update(row)

        def keep(progress: outer.Progress, status: str | None) -> str | None:
            stop = session.stop.reason() if status is None else None
            if stop or status or checkpoints.due(progress.steps):
                _save(session, checkpoints, progress)
            return "interrupted" if stop else None

        found = outer.run_loop(
            algorithm,
            progress.state,
            setup.data,
            steps=cfg.steps,
            gtol=cfg.gtol,
            patience=cfg.patience,
            time_limit=cfg.time_limit,
            on_failure=cfg.on_failure,
            callback=report,
            progress=progress,
            keep=keep,
            examine=algorithm.examine,
        )
    interrupted = found.status == "interrupted"
    result = _result(job, setup, found)
    session.files.write_result(result, hparams=found.hparams, params=found.params)
    if not interrupted:
        for name, figure in setup.pictures(found.hparams, found.params).items():
            session.files.write_picture(name, figure)
    console.show_result(result, found.history[0]["outer_loss"], job.folder)
    if found.status == "non_finite":
        raise DivergedError(
            f"outer step {found.steps - 1}: the outer loss, its gradient or the update is not finite, and the run ended; "
            f"the best earlier step is in result.json. Try a lower optimizer.learning_rate, or another inner solver"
        )
    state = "interrupted" if interrupted else "done"
    session.files.write_status(state, outer_loss=found.outer_loss, steps=found.steps)


def _save(session: Session, checkpoints: Checkpoints, progress: outer.Progress) -> None:
    step = progress.steps
    try:
        session.files.rows.sync()
        checkpoints.save(step, _saved(progress))
    except OSError as error:
        _log.warning("the checkpoint after step %d could not be written (%s); the run continues", step, error)


def _recover(session: Session, checkpoints: Checkpoints, start: outer.Progress) -> outer.Progress:
    """The progress at the last usable checkpoint; later rows are deleted, since the run writes them again."""
    rows = session.files.rows
    found = checkpoints.restore(_saved(start), len(rows.read()))
    if found is None:
        rows.keep(0)
        return start
    step, tree = found
    console.say(f"resuming after step {step}")
    history = [{name: math.nan if value is None else value for name, value in row.items()} for row in rows.keep(step)]
    return outer.Progress(**tree, history=history)


def _saved(progress: outer.Progress) -> dict[str, Any]:
    """What a checkpoint holds: everything except the rows, which are in `metrics.jsonl`."""
    return {name: value for name, value in vars(progress).items() if name != "history"}


def _show_header(job: Job, setup: Setup) -> None:
    cfg, choices = job.cfg, dict(job.choices)
    if "linear" in cfg.hypergrad:
        choices["hypergrad"] = f"{choices['hypergrad']} ({choices['linear']})"
    parts = [f"{word} {choices[group]}" for group, word in _PARTS.items() if group in cfg.outer]
    console.say(f"bilevel {__version__} · {setup.title}")
    console.say("  " + " · ".join(f"{count} {name}" for name, count in setup.sizes.items()))
    console.say("  " + " · ".join([f"outer {choices['outer']}", *parts, f"{cfg.steps} steps"]))
    console.say(_jax.header(cfg))


def _result(job: Job, setup: Setup, found: outer.Result) -> dict[str, Any]:
    interrupted = found.status == "interrupted"
    return {
        "task": job.choices["task"],
        "outer_loss": found.outer_loss,
        "start": setup.physical(setup.hparams),
        "hparams": setup.physical(found.hparams),
        "metrics": {} if interrupted else setup.metrics(found.hparams, found.params),
        "status": found.status,
        "steps": found.steps,
        "best_step": found.best_step,
        "failures": found.failures,
        "verdicts": found.verdicts,
        "seconds": found.history[-1]["seconds"],
        **_jax.origin(job.cfg),
    }
