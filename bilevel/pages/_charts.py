"""The charts of the pages, as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bilevel._status import FINE

_BLUE, _ORANGE, _RED = "#2f6db3", "#d9822b", "#c23b2e"
Rows = Sequence[Mapping[str, Any]]


def column(rows: Rows, name: str) -> np.ndarray:
    """A key of the rows as numbers; NaN where it is missing or null."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)


def progress(rows: Rows, best_step: int | None) -> bytes:
    """Outer loss, norm of the hypergradient and residuals against outer steps; crosses mark solves that failed."""
    residuals = [name for name in rows[0] if name.endswith("_residual")]
    figure, axes = _figure(3 if residuals else 2)
    steps = column(rows, "step")
    loss = column(rows, "outer_loss")
    _line(axes[0], steps, loss, _BLUE)
    if best_step is not None and best_step < len(rows):
        axes[0].plot(best_step, loss[best_step], "o", color=_RED, label=f"best, step {best_step}")
        axes[0].legend(frameon=False)
    axes[0].set_title("outer loss")
    _line(axes[1], steps, column(rows, "grad_norm"), _BLUE)
    axes[1].set_title("norm of the hypergradient")
    if residuals:
        _residuals(axes[2], steps, rows, residuals)
    for axis in axes[1:]:
        _log(axis)
    return _svg(figure, axes, "outer step")


def _residuals(axis: Any, steps: np.ndarray, rows: Rows, names: list[str]) -> None:
    values = [column(rows, name) for name in names]
    for place, (name, each) in enumerate(zip(names, values, strict=True)):
        _line(axis, steps, each, (_BLUE, _ORANGE)[place % 2], label=name.removesuffix("_residual"))
    failed = np.array([row.get("status") not in FINE for row in rows])
    if failed.any():
        axis.plot(steps[failed], np.fmax.reduce(values)[failed], "x", color=_RED, label="not converged")
    axis.set_title("relative residuals")
    axis.legend(frameon=False)


def hyperparameter(name: str, before: np.ndarray, after: np.ndarray) -> bytes:
    """The values of an array before and after."""
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
    """Outer loss against outer steps, a line for each run."""
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
    """The outer loss against what a key was given: a point for each run, and the median at each value."""
    figure, (axis,) = _figure(1, width=4.4)
    numbers = np.array([as_number(value) for value in values])
    names: list[str] = []
    if not np.isfinite(numbers).all():
        names = sorted(set(values))
        numbers = np.array([names.index(value) for value in values], float)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.set_xticks(range(len(names)), map(_literal, names), rotation=30 if max(map(len, names)) > 8 else 0)
    elif (numbers > 0).all() and numbers.max() > 30 * numbers.min():
        axis.set_xscale("log")
    axis.plot(numbers, losses, "o", color=_BLUE, alpha=0.55)
    middle = sorted(set(numbers))
    axis.plot(
        middle, [np.median(np.array(losses)[numbers == x]) for x in middle], "_", color=_RED, ms=22, label="median"
    )
    axis.legend(frameon=False)
    axis.set_ylabel("outer loss")
    return _svg(figure, [axis], _literal(key))


def _figure(columns: int, width: float = 3.6, height: float = 3.1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _literal(text: str) -> str:
    """A text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _line(axis: Any, x: np.ndarray, y: np.ndarray, color: Any, label: str | None = None) -> None:
    axis.plot(x, y, "o-" if len(x) == 1 else "-", color=color, label=label, linewidth=1.5)


def _log(axis: Any) -> None:
    """A logarithmic scale, where there is something positive to show on it."""
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
