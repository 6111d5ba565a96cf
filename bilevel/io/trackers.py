"""Trackers: where a run is logged besides its own folder."""

from __future__ import annotations

import abc
import dataclasses
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bilevel.io._folder import plain


class Tracker(abc.ABC):
    """Told of the start of a run, of every row, and of its end."""

    @abc.abstractmethod
    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Open a run."""

    @abc.abstractmethod
    def log(self, row: Mapping[str, Any]) -> None:
        """Log one outer step."""

    @abc.abstractmethod
    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Close the run, with its result unless it failed."""


@dataclasses.dataclass(kw_only=True)
class WandB(Tracker):
    """Weights & Biases. Offline, into the run folder, unless the user is logged in; never asks at a prompt.

    Args:
      project: project name.
      entity: team or user; None is the account's default.
      group: groups runs.
      name: of the run; None is the folder's name.
    """

    project: str = "bilevel"
    entity: str | None = None
    group: str | None = None
    name: str | None = None

    def start(self, folder, config):
        """Choose the mode by environment, before wandb is imported: offline must not look up a single address."""
        if "WANDB_MODE" not in os.environ and not _logged_in():
            os.environ["WANDB_MODE"] = "offline"
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        settings = wandb.Settings(console="off", disable_git=True, save_code=False)
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            name=self.name or folder.name,
            dir=str(folder),
            config=dict(config),
            settings=settings,
        )

    def log(self, row):
        """Log the row at its step."""
        self._run.log({k: v for k, v in plain(row).items() if k != "step" and v is not None}, step=row.get("step"))

    def finish(self, result):
        """Write the result to the summary."""
        if result is not None:
            kept = ("outer_loss", "status", "best_step", "seconds", "metrics", "hparams", "summary")
            self._run.summary.update(plain({name: result[name] for name in kept if name in result}))
        self._run.finish(exit_code=0 if result is not None else 1)


def _logged_in() -> bool:
    """Whether wandb would find credentials: a key in the environment, or an entry for its server in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    server = os.environ.get("WANDB_BASE_URL", "")
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host or (host in server and host) for host in hosts)
