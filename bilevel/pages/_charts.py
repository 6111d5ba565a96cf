"""The charts of the pages, as SVG."""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bilevel._status import FINE

_BLUE, _ORANGE, _RED = "#2f6db3", "#d9822b", "#c23b2e"
Rows = Sequence[Mapping[str, Any]]


def column(rows: Rows, name: str) -> np.ndarray:
    """The values of a key in the rows, NaN where the key is missing or null."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)


def progress(rows: Rows, best_step: int | None) -> bytes:
    """Outer loss, norm of the hypergradient and residuals against outer steps; crosses mark failed solves."""
    residuals = {name.removesuffix("_residual"): column(rows, name) for name in rows[0] if name.endswith("_residual")}
    figure, axes = _figure(3 if residuals else 2)
    steps, loss = column(rows, "step"), column(rows, "outer_loss")
    _line(axes[0], steps, loss, _BLUE)
    if best_step is not None and best_step < len(rows):
        axes[0].plot(best_step, loss[best_step], "o", color=_RED, label=f"best, step {best_step}")
        axes[0].legend(frameon=False)
    _line(axes[1], steps, column(rows, "grad_norm"), _BLUE)
    for (name, values), color in zip(residuals.items(), itertools.cycle((_BLUE, _ORANGE))):
        _line(axes[2], steps, values, color, label=name)
    failed = np.array([row.get("status") not in FINE for row in rows])
    if residuals and failed.any():
        worst = np.fmax.reduce(list(residuals.values()))
        axes[2].plot(steps[failed], worst[failed], "x", color=_RED, label="not converged")
    for axis, title in zip(axes, ("outer loss", "norm of the hypergradient", "relative residuals"), strict=False):
        axis.set_title(title)
    for axis in axes[1:]:
        _log(axis)
    for axis in axes[2:]:
        axis.legend(frameon=False)
    return _svg(figure, axes, "outer step")


def hyperparameter(name: str, before: np.ndarray, after: np.ndarray) -> bytes:
    """The values of an array before and after the run."""
    figure, (axis,) = _figure(1, width=6.5)
    places = np.arange(after.size)
    if before.size == after.size:
        axis.plot(places, before.ravel(), color="#9aa4b2", label="before", drawstyle="steps-mid")
    axis.plot(places, after.ravel(), color=_BLUE, label="after", drawstyle="steps-mid")
    if (after > 0).all() and after.max() > 30 * after.min():
        axis.set_yscale("log")
    axis.set_title(_literal(name))
    axis.legend(frameon=False)
    return _svg(figure, [axis], "index")


def curves(runs: Mapping[str, Rows]) -> bytes:
    """Outer loss against outer steps, one line per run."""
    figure, (axis,) = _figure(1, width=9.0, height=4.2)
    from matplotlib import colormaps

    colors = colormaps["viridis"](np.linspace(0, 0.9, max(len(runs), 2)))
    for (name, rows), color in zip(runs.items(), colors, strict=False):
        _line(axis, column(rows, "step"), column(rows, "outer_loss"), color, label=_literal(name))
    if len(runs) <= 12:
        axis.legend(frameon=False, fontsize=8)
    axis.set_title("outer loss")
    return _svg(figure, [axis], "outer step")


def response(key: str, values: Sequence[str], losses: Sequence[float], as_number: Callable[[str], float]) -> bytes:
    """The outer loss against the value of a key: one point per run, and the median at each value."""
    figure, (axis,) = _figure(1, width=4.4)
    places = np.array([as_number(value) for value in values])
    if not np.isfinite(places).all():
        places = np.array([_literal(value) for value in values])
        axis.tick_params("x", rotation=30 if max(map(len, values)) > 8 else 0)
    elif (places > 0).all() and places.max() > 30 * places.min():
        axis.set_xscale("log")
    medians = {place: np.median(np.array(losses)[places == place]) for place in np.unique(places)}
    axis.plot(list(medians), list(medians.values()), "_", color=_RED, ms=22, label="median")
    axis.plot(places, losses, "o", color=_BLUE, alpha=0.55)
    axis.legend(frameon=False)
    axis.set_ylabel("outer loss")
    return _svg(figure, [axis], _literal(key))


def _figure(columns: int, width: float = 3.6, height: float = 3.1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _literal(text: str) -> str:
    """A text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def _line(axis: Any, x: np.ndarray, y: np.ndarray, color: Any, label: str | None = None) -> None:
    axis.plot(x, y, "o-" if len(x) == 1 else "-", color=color, label=label, linewidth=1.5)


def _log(axis: Any) -> None:
    """A logarithmic scale, if there is a positive value to show on it."""
    if any((np.asarray(line.get_ydata()) > 0).any() for line in axis.lines):
        axis.set_yscale("log")


def _svg(figure: Any, axes: Sequence[Any], xlabel: str) -> bytes:
    import matplotlib

    for axis in axes:
        axis.set_xlabel(xlabel)
        if xlabel in ("outer step", "index"):
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "bilevel"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
