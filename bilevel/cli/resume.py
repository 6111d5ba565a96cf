"""`resume=FOLDER` and `resume=auto`: continue a run that did not finish."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from bilevel import config
from bilevel.cli import job as jobs
from bilevel.cli.job import Job

_KEY = "resume="


def requested(arguments: Sequence[str]) -> Job | None:
    """The job that `resume=` names, or None without `resume=`, or if `auto` finds no unfinished run.

    Raises:
      ConfigError: the folder holds no run, or the other arguments would change its numbers.
    """
    value = next((argument.removeprefix(_KEY) for argument in arguments if argument.startswith(_KEY)), None)
    if value in (None, "null"):
        return None
    others = without_resume(arguments)
    flag = next((argument for argument in others if argument.startswith("-")), None)
    if flag:
        raise config.ConfigError(f"resume: cannot be combined with {flag}; to resume a sweep, rerun its command")
    if value == "auto":
        return _newest(others)
    return _with(jobs.read(Path(str(value)).resolve()), others)


def without_resume(arguments: Sequence[str]) -> list[str]:
    """The other arguments."""
    return [argument for argument in arguments if not argument.startswith(_KEY)]


def _newest(overrides: Sequence[str]) -> Job | None:
    cfg, hydra = config.compose(overrides), config.compose(overrides, with_hydra=True).hydra
    job = Job(cfg, Path(hydra.run.dir).resolve(), config.choices(hydra), list(overrides))
    job.check()
    found = jobs.newest_unfinished(job)
    return None if found is None else dataclasses.replace(job, folder=found)


def _with(there: Job, overrides: Sequence[str]) -> Job:
    """The job of a run folder, with overrides that leave the numbers of its steps unchanged."""
    cfg = there.cfg.copy()
    about_trackers = [override for override in overrides if override.startswith("tracker")]
    if about_trackers:
        cfg.tracker = config.compose(about_trackers).tracker
    parser = OverridesParser.create()
    for override in parser.parse_overrides([override for override in overrides if override not in about_trackers]):
        key, value = override.key_or_group, override.value()
        before = there.choices.get(key), OmegaConf.select(cfg, key)
        if key.split(".")[0] in config.NEUTRAL:
            OmegaConf.update(cfg, key, value)
        elif value not in before:
            raise config.ConfigError(
                f"{key}={value}: the run in {there.folder} was started with {before[0] or before[1]}; only "
                f"{', '.join(config.NEUTRAL)} can change when a run is resumed"
            )
    config.check(cfg)
    if cfg.steps < there.cfg.steps:
        raise config.ConfigError(f"steps: resume can only increase it; the run has {there.cfg.steps}, got {cfg.steps}")
    return dataclasses.replace(there, cfg=cfg)
