"""What a run prints: a header, a progress bar and the result."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

console = Console(soft_wrap=True, highlight=False)


@contextlib.contextmanager
def logging_to(log_file: Path) -> Iterator[None]:
    """Send the library's log to a file, and its warnings to the console, during a run."""
    logger = logging.getLogger("bilevel")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # at INFO, it logs its search for fonts
    written = logging.FileHandler(log_file, encoding="utf-8")
    written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    shown = RichHandler(console=console, show_path=False, show_time=False, level=logging.WARNING)
    for handler in (written, shown):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in (written, shown):
            logger.removeHandler(handler)
        written.close()


def say(text: str) -> None:
    """Print a line, and log it."""
    console.print(text, markup=False)
    logging.getLogger("bilevel").info(text)


class Bar:
    """A progress bar with the loss and the residuals of the last row; shown on a terminal alone."""

    def __init__(self, steps: int, done: int = 0):
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[row]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("outer", total=steps, completed=done, row="compiling")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """Advance by one step."""
        residuals = ", ".join(f"{value:.0e}" for name, value in row.items() if name.endswith("_residual"))
        text = f"outer loss {row['outer_loss']:.6g}  gradient {row['grad_norm']:.1e}"
        text += f"  residuals {residuals}" if residuals else ""
        self._progress.update(self._task, advance=1, row=text)

    def advance(self, row: Mapping[str, Any]) -> None:
        """Advance by one row of a study, and print the row."""
        say("  " + "  ".join(f"{name} {_short(value)}" for name, value in row.items()))
        self._progress.update(self._task, advance=1, row="")


def show_result(result: Mapping[str, Any], first_loss: float, folder: Path) -> None:
    """Print the loss, the failures, the metrics, the hyperparameters in physical units, and the path of the run folder."""
    say(
        f"outer loss {first_loss:.6g} → {result['outer_loss']:.6g} at step {result['best_step']} of {result['steps']} "
        f"({result['status']}, {result['seconds']:.1f} s)"
    )
    if result["failures"]:
        say(
            f"a solve missed its tolerance in {result['failures']} of {result['steps']} steps; the best step was chosen by "
            "its outer loss and the estimated error of that loss"
        )
    if set(result["verdicts"]) != {"trusted"}:
        counts = ", ".join(f"{count} {level}" for level, count in result["verdicts"].items())
        say(f"hypergradients: {counts}; the reasons are in metrics.jsonl")
    if result["metrics"]:
        say("  ".join(f"{name} {value:.5g}" for name, value in result["metrics"].items()))
    for name, value in result["hparams"].items():
        say(f"{name} {brief(value)}  (start: {brief(result['start'][name])})")
    say(f"run folder: {folder}")
    if result["status"] == "interrupted":
        say(f"to resume: python -m bilevel.run resume={folder}")
    elif result["status"] != "non_finite":
        say(f"report: python -m bilevel.report {folder}")


def brief(value: Any) -> str:
    """A number, or the range and size of an array."""
    array = np.asarray(value, float)
    if array.size == 1:
        return f"{array.item():.5g}"
    low, high = array.min(), array.max()
    return f"{low:.3g}" if low == high else f"{low:.3g} … {high:.3g} ({array.size} values)"


def show_findings(summary: Mapping[str, Any], seconds: float, folder: Path) -> None:
    """Print the scalar results of a study, and the path of the run folder."""
    for name, value in summary.items():
        if not isinstance(value, Mapping | list):
            say(f"{name} {_short(value)}")
    say(f"{seconds:.1f} s, run folder: {folder}")
    say(f"report: python -m bilevel.report {folder}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
