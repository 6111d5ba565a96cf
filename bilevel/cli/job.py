"""A job: the configuration of one run, its folder, and what that folder already holds."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bilevel import config, runs


class FolderTakenError(ValueError):
    """The folder holds another run."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to do.

    Attributes:
      cfg: its composed configuration.
      folder: its run folder.
      choices: the choice made in each config group.
      overrides: the user's overrides, as text.
    """

    cfg: DictConfig
    folder: Path
    choices: Mapping[str, str | None]
    overrides: list[str]

    @property
    def is_study(self) -> bool:
        """Whether it runs a study, not a task."""
        return self.cfg.study is not None

    def check(self) -> None:
        """Check the configuration without importing anything that it names. Raises ConfigError."""
        config.check(self.cfg)
        if self.is_study:
            config.check_study(self.overrides)

    @property
    def used(self) -> DictConfig:
        """The part of the configuration that the run uses."""
        kept = ["study", "size", *config.GENERAL, *config.AROUND]
        return OmegaConf.masked_copy(self.cfg, kept) if self.is_study else self.cfg

    @property
    def identity(self) -> str:
        """A hash of everything that determines the numbers of the run."""
        return config.identity(config.plain_values(self.used))

    @property
    def record(self) -> dict[str, Any]:
        """The description of the job in `status.json`."""
        return {"config": self.identity, "choices": dict(self.choices), "overrides": self.overrides}

    @property
    def config_text(self) -> str:
        """The text of `config.yaml`."""
        return OmegaConf.to_yaml(self.used, resolve=True)


def read(folder: Path) -> Job:
    """The job of a run folder. Raises ConfigError if the folder holds no run."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise config.ConfigError(f"resume={folder}: no run in it, config.yaml is missing")
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:
        raise config.ConfigError(f"{path}: not readable ({str(error).splitlines()[0]})") from error
    assert isinstance(cfg, DictConfig)
    whole = config.with_defaults(cfg)
    status = runs.read_status(folder)
    return Job(whole, folder, status.get("choices") or _class_names(whole), status.get("overrides", []))


def _class_names(cfg: DictConfig) -> dict[str, str | None]:
    """The class built for each group, which replaces the choices if `status.json` is lost."""
    parts = {str(group): cfg[group] for group in cfg}
    return {
        group: str(part["_target_"]).rpartition(".")[2]
        for group, part in parts.items()
        if isinstance(part, DictConfig) and "_target_" in part
    }


def past(job: Job) -> dict[str, Any] | None:
    """The status of the same run if its folder holds it, or None if the folder holds no run.

    Raises:
      FolderTakenError: the folder holds another run, which was not changed.
    """
    if not runs.holds_run(job.folder):
        return None
    try:
        there = read(job.folder)
    except config.ConfigError as error:
        raise FolderTakenError(f"{job.folder} holds another run: {error}") from error
    found = config.differences(config.plain_values(there.used), config.plain_values(job.used))
    if found:
        shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        raise FolderTakenError(
            f"{job.folder} already holds a run of another configuration ({shown}): choose another hydra.run.dir, "
            f"or move that run away"
        )
    return runs.read_status(job.folder)


def finished(job: Job) -> dict[str, Any] | None:
    """The result of the run, or None if this configuration takes the run further."""
    result = runs.read_result(job.folder)
    if result is None or runs.read_status(job.folder).get("state") == "failed":
        return None
    if job.is_study:
        return result
    cfg = job.cfg
    can_resume = {
        "interrupted": True,
        "completed": cfg.steps > result["steps"],
        "time_limit": cfg.steps > result["steps"] and (cfg.time_limit or float("inf")) > result["seconds"],
    }
    return None if can_resume.get(result["status"]) else result


def newest_unfinished(job: Job) -> Path | None:
    """The newest folder with an unfinished run of the same configuration: the job's own or one beside it."""
    beside = [path.parent for path in job.folder.parent.glob("*/config.yaml")]  # the job's own among them
    for folder in sorted(beside, key=lambda path: os.path.getmtime(path / "config.yaml"), reverse=True):
        same = runs.read_status(folder).get("config") == job.identity
        if same and finished(dataclasses.replace(job, folder=folder)) is None:
            return folder
    return None
