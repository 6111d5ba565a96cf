"""Trackers: where a run is shown besides its own folder. Each works in a process of its own (`following.py`)."""

from __future__ import annotations

import abc
import dataclasses
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bilevel.runs._rows import plain
from bilevel.runs.sweeps import is_sweep

_SUMMARY = ("outer_loss", "status", "best_step", "seconds", "metrics", "hparams", "summary")


class Tracker(abc.ABC):
    """Told of the start of a run, of every row, and of its end."""

    @abc.abstractmethod
    def start(self, folder: Path, config: Mapping[str, Any], run: str | None) -> str | None:
        """Open a run, or go on in an earlier one.

        Args:
          folder: the run folder.
          config: its configuration.
          run: what `start` returned the last time that this run was followed; None the first time.

        Returns:
          The tracker's name for the run.
        """

    @abc.abstractmethod
    def log(self, row: Mapping[str, Any]) -> None:
        """Send one row of `metrics.jsonl`."""

    @abc.abstractmethod
    def finish(self, result: Mapping[str, Any] | None, pictures: Sequence[Path]) -> None:
        """Close the run, with its result unless it did not come to its end, and its pictures."""


@dataclasses.dataclass(kw_only=True)
class WandB(Tracker):
    """Weights & Biases. Offline, into the run folder, unless the user is logged in; never asks at a prompt.

    Args:
      project: project name.
      entity: team or user; None is the account's default.
      group: groups runs; None is the sweep that the run is part of.
      name: of the run; None is the folder's name.
    """

    project: str = "bilevel"
    entity: str | None = None
    group: str | None = None
    name: str | None = None

    def start(self, folder, config, run):
        """Choose the mode by environment, before wandb is imported: offline must not look up a single address."""
        if "WANDB_MODE" not in os.environ and not _logged_in():
            os.environ["WANDB_MODE"] = "offline"
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group or _sweep_of(folder),
            name=self.name or folder.name,
            id=run or secrets.token_hex(4),
            resume="allow",
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(
                console="off", disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
            ),
        )
        return self._run.id

    def log(self, row):
        """Log the row at its step."""
        self._run.log({k: v for k, v in row.items() if k != "step" and v is not None}, step=row.get("step"))

    def finish(self, result, pictures):
        """Write the result to the summary, and the pictures as media."""
        if result is not None:
            self._run.summary.update(plain({name: result[name] for name in _SUMMARY if name in result}))
            if pictures:
                self._run.log({path.stem: self._wandb.Image(str(path)) for path in pictures})
        self._run.finish(exit_code=0 if result is not None else 1)


@dataclasses.dataclass(kw_only=True)
class Trackio(Tracker):
    """Trackio: a dashboard in the local browser, `python -m bilevel.dashboard`. Needs the extra `dashboard`.

    Args:
      project: project name.
      folder: where its databases lie; None is the user's cache folder of trackio.
    """

    project: str = "bilevel"
    folder: str | None = None

    def start(self, folder, config, run):
        """Open the run in the project's database."""
        if self.folder is not None:
            os.environ["TRACKIO_DIR"] = str(Path(self.folder).resolve())
        try:
            import trackio
        except ImportError as error:
            raise ImportError('tracker=trackio needs trackio: pip install "bilevel[dashboard]"') from error
        name = run or f"{folder.parent.name}-{folder.name}"
        self._trackio = trackio
        trackio.init(
            project=self.project,
            name=name,
            group=_sweep_of(folder),
            config=plain(dict(config)),
            resume="allow",
            auto_log_gpu=False,
            auto_log_cpu=False,
            embed=False,
        )
        return name

    def log(self, row):
        """Log the row at its step."""
        self._trackio.log({k: v for k, v in row.items() if k != "step" and v is not None}, step=row.get("step"))

    def finish(self, result, pictures):
        """Log the result as a table, and the pictures; flush."""
        if result is not None:
            rows = [[name, f"{value:.6g}" if isinstance(value, float) else str(value)] for name, value in _flat(result)]
            media = {path.stem: self._trackio.Image(str(path)) for path in pictures}
            self._trackio.log({"result": self._trackio.Table(columns=["name", "value"], data=rows), **media})
        self._trackio.finish()


@dataclasses.dataclass(kw_only=True)
class TensorBoard(Tracker):
    """TensorBoard, by tensorboardX: event files in the run folder, `tensorboard --logdir runs`. Needs the extra `dashboard`."""

    def start(self, folder, config, run):
        """Open an event file."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError('tracker=tensorboard needs tensorboardX: pip install "bilevel[dashboard]"') from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._step = 0
        if run is None:
            self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()), 0)
        return "tensorboard"

    def log(self, row):
        """Write every number of the row as a scalar."""
        self._step = row.get("step", self._step + 1)
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, self._step)

    def finish(self, result, pictures):
        """Write the numbers of the result and the pictures."""
        if result is not None:
            for name, value in {**result.get("metrics", {}), "best_outer_loss": result.get("outer_loss")}.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"result/{name}", value, self._step)
            for path in pictures:
                import matplotlib.image

                pixels = matplotlib.image.imread(path)
                self._writer.add_image(path.stem, pixels[..., :3], self._step, dataformats="HWC")
        self._writer.close()


def _flat(result: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The numbers and texts of a result by name."""
    found: list[tuple[str, Any]] = []
    for name in _SUMMARY:
        value = result.get(name)
        pairs = value.items() if isinstance(value, Mapping) else [(name, value)]
        found += [(key, each) for key, each in pairs if isinstance(each, int | float | str)]
    return found


def _sweep_of(folder: Path) -> str | None:
    return folder.parent.name if is_sweep(folder.parent) else None


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
