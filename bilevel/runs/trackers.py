"""Trackers, which show a run outside its folder. Each works in its own process (`following.py`)."""

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

Row = Mapping[str, Any]
_SUMMARY = ("outer_loss", "status", "best_step", "seconds", "metrics", "hparams", "summary")


class Tracker(abc.ABC):
    """Receives the start of a run, every row, and the end of the run."""

    @abc.abstractmethod
    def start(self, folder: Path, config: Mapping[str, Any], run: str | None) -> str | None:
        """Open a run, or resume an earlier one.

        Args:
          folder: the run folder.
          config: the configuration of the run.
          run: the value that `start` returned the last time for this run; None the first time.

        Returns:
          The tracker's name for the run.
        """

    @abc.abstractmethod
    def log(self, row: Row) -> None:
        """Send one row of `metrics.jsonl`."""

    @abc.abstractmethod
    def finish(self, result: Row | None, pictures: Sequence[Path]) -> None:
        """Close the run, with its pictures and its result, which is None unless the run finished."""


@dataclasses.dataclass(kw_only=True)
class WandB(Tracker):
    """Weights & Biases. Offline, in the run folder, unless the user is logged in; never prompts.

    Args:
      project: project name.
      entity: team or user; None is the account's default.
      group: name of a group of runs; None is the sweep of the run, if any.
      name: name of the run; None is the folder's name.
    """

    project: str = "bilevel"
    entity: str | None = None
    group: str | None = None
    name: str | None = None

    def start(self, folder: Path, config: Mapping[str, Any], run: str | None) -> str:
        """Choose the mode by environment before importing wandb, so that offline mode looks up no address."""
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

    def log(self, row: Row) -> None:
        """Log the row at its step."""
        self._run.log(_values(row), step=row.get("step"))

    def finish(self, result: Row | None, pictures: Sequence[Path]) -> None:
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
      folder: the folder of its databases; None is the user's cache folder of trackio.
    """

    project: str = "bilevel"
    folder: str | None = None

    def start(self, folder: Path, config: Mapping[str, Any], run: str | None) -> str:
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

    def log(self, row: Row) -> None:
        """Log the row at its step."""
        self._trackio.log(_values(row), step=row.get("step"))

    def finish(self, result: Row | None, pictures: Sequence[Path]) -> None:
        """Log the result as a table, and the pictures; flush."""
        if result is not None:
            rows = [[name, f"{value:.6g}" if isinstance(value, float) else str(value)] for name, value in _flat(result)]
            media = {path.stem: self._trackio.Image(str(path)) for path in pictures}
            self._trackio.log({"result": self._trackio.Table(columns=["name", "value"], data=rows), **media})
        self._trackio.finish()


@dataclasses.dataclass(kw_only=True)
class TensorBoard(Tracker):
    """TensorBoard, by tensorboardX: event files in the run folder, `tensorboard --logdir runs`. Needs the extra `dashboard`."""

    def start(self, folder: Path, config: Mapping[str, Any], run: str | None) -> str:
        """Open an event file."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError('tracker=tensorboard needs tensorboardX: pip install "bilevel[dashboard]"') from error
        self._writer, self._step = SummaryWriter(str(folder / "tensorboard")), 0
        if run is None:
            self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()), 0)
        return "tensorboard"

    def log(self, row: Row) -> None:
        """Write every number of the row as a scalar."""
        self._step = row.get("step", self._step + 1)
        self._write({name: value for name, value in row.items() if name != "step"})

    def finish(self, result: Row | None, pictures: Sequence[Path]) -> None:
        """Write the numbers of the result and the pictures."""
        if result is not None:
            numbers = {**result.get("metrics", {}), "best_outer_loss": result.get("outer_loss")}
            self._write({f"result/{name}": value for name, value in numbers.items()})
            for path in pictures:
                import matplotlib.image

                pixels = matplotlib.image.imread(path)
                self._writer.add_image(path.stem, pixels[..., :3], self._step, dataformats="HWC")
        self._writer.close()

    def _write(self, values: Row) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, self._step)


def _values(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "step" and value is not None}


def _flat(result: Row) -> list[tuple[str, Any]]:
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
    server = os.environ.get("WANDB_BASE_URL", "")
    try:
        hosts = netrc.netrc(Path(os.environ.get("NETRC", "~/.netrc")).expanduser()).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host or (host in server and host) for host in hosts)
