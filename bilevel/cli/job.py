"""One run to do: its configuration, its folder, what that folder already holds, and how it ended."""

from __future__ import annotations

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
      cfg: its configuration, composed and checked.
      folder: where it writes.
      choices: the choice made in each config group.
      overrides: what the user asked for, as texts.
    """

    cfg: DictConfig
    folder: Path
    choices: Mapping[str, str | None]
    overrides: list[str]

    @property
    def is_study(self) -> bool:
        """Whether it is a study, not a task."""
        return self.cfg.study is not None

    def check(self) -> None:
        """Check its configuration, importing nothing that it names. Raises ConfigError."""
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
        """A hash of what decides its numbers."""
        return config.identity(config.plain_values(self.used))

    @property
    def record(self) -> dict[str, Any]:
        """What `status.json` says of it."""
        return {"config": self.identity, "choices": dict(self.choices), "overrides": self.overrides}

    @property
    def config_text(self) -> str:
        """`config.yaml`."""
        return OmegaConf.to_yaml(self.used, resolve=True)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
      outer_loss: the best one; 0 for a study.
      interrupted: whether it was told to stop, and can be resumed.
    """

    outer_loss: float
    interrupted: bool = False


def read(folder: Path) -> Job:
    """The job that a folder holds. Raises `ConfigError` where it holds none."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise config.ConfigError(f"resume={folder}: there is no run in it, it has no config.yaml")
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:
        raise config.ConfigError(f"{path}: not readable ({str(error).splitlines()[0]})") from error
    assert isinstance(cfg, DictConfig)
    whole = config.with_defaults(cfg)
    status = runs.read_status(folder)
    return Job(whole, folder, status.get("choices") or _targets(whole), status.get("overrides", []))


def _targets(cfg: DictConfig) -> dict[str, str | None]:
    """What stands for the choices where `status.json` is lost: the names of the classes."""
    parts = {str(group): cfg[group] for group in cfg}
    return {
        group: str(part["_target_"]).rpartition(".")[2]
        for group, part in parts.items()
        if isinstance(part, DictConfig) and "_target_" in part
    }


def past(job: Job) -> dict[str, Any] | None:
    """The status of the same run, where its folder holds it; None where the folder holds no run.

    Raises:
      FolderTakenError: it holds another one; nothing was touched.
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
            f"or move it away"
        )
    return runs.read_status(job.folder)


def finished(job: Job) -> dict[str, Any] | None:
    """The result of the run, if it is at its end and this configuration does not take it further."""
    result = runs.read_result(job.folder)
    failed = runs.read_status(job.folder).get("state") == "failed"
    if result is None or failed or result.get("status") == "interrupted":
        return None
    if job.is_study:
        return result
    cfg = job.cfg
    more_steps = cfg.steps > result["steps"]
    more_time = cfg.time_limit is None or cfg.time_limit > result["seconds"]
    goes_on = (result["status"] == "completed" and more_steps) or (
        result["status"] == "time_limit" and more_steps and more_time
    )
    return None if goes_on else result


def newest_unfinished(job: Job) -> Path | None:
    """The newest folder beside the job's own, or that one, with an unfinished run of the same configuration."""
    own = [job.folder] if (job.folder / "config.yaml").is_file() else []
    beside = [path.parent for path in job.folder.parent.glob("*/config.yaml")]
    for folder in sorted({*own, *beside}, key=lambda path: os.path.getmtime(path / "config.yaml"), reverse=True):
        if runs.read_status(folder).get("config") == job.identity:
            there = dataclasses.replace(job, folder=folder)
            if finished(there) is None:
                return folder
    return None
