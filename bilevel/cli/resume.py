"""`resume=FOLDER` and `resume=auto`: go on with a run that did not come to its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from bilevel import config
from bilevel.cli import job as jobs
from bilevel.cli.job import Job

_KEY = "resume="


def asked(arguments: Sequence[str]) -> Job | None:
    """The job that `resume=` asks for; None without one, or where `auto` finds no unfinished run.

    Raises:
      ConfigError: no run there, or the other arguments would change its numbers.
    """
    value = next((argument.removeprefix(_KEY) for argument in arguments if argument.startswith(_KEY)), None)
    if value in (None, "null"):
        return None
    others = without_resume(arguments)
    flags = [argument for argument in others if argument.startswith("-")]
    if flags:
        raise config.ConfigError(f"resume: not together with {flags[0]}; to go on with a sweep, run its command again")
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
    """A job read from a folder, with what may change beside `resume`."""
    cfg = there.cfg.copy()
    about_trackers = [override for override in overrides if override.startswith("tracker")]
    if about_trackers:
        cfg.tracker = config.compose(about_trackers).tracker
    parser = OverridesParser.create()
    for override in parser.parse_overrides([override for override in overrides if override not in about_trackers]):
        key, value = override.key_or_group, override.value()
        if key.split(".")[0] in config.NEUTRAL:
            OmegaConf.update(cfg, key, value)
        elif value not in (there.choices.get(key), OmegaConf.select(cfg, key)):
            raise config.ConfigError(
                f"{key}={value}: resume goes on with the configuration in {there.folder}, where it is "
                f"{there.choices.get(key, OmegaConf.select(cfg, key))}; beside resume only "
                f"{', '.join(config.NEUTRAL)} can change"
            )
    config.check(cfg)
    if cfg.steps < there.cfg.steps:
        raise config.ConfigError(f"steps: resume can only raise it; it is {there.cfg.steps} there, got {cfg.steps}")
    return dataclasses.replace(there, cfg=cfg)
