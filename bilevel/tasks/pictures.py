"""Drawing helpers for the pictures of tasks. Figures are made without pyplot, so no global state or display is involved."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def panels(rows: int, columns: int, width: float = 3.4, height: float = 3.0) -> tuple[Any, np.ndarray]:
    """Make a figure.

    Args:
      rows, columns: of the grid of axes.
      width, height: of each axis, in inches.

    Returns:
      The figure, and its axes as an array of shape (rows, columns).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def grid(titles: Sequence[str], columns: int, width: float, height: float) -> tuple[Any, np.ndarray]:
    """Make a figure with an axis for each title, row by row, of this size in inches; the axes have shape (titles,)."""
    count = len(titles)
    figure, axes = panels(-(-count // columns), min(columns, count), width, height)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=9)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes.flat[:count]


def is_square(pixels: int) -> bool:
    """Whether this many pixels are a square image."""
    return math.isqrt(pixels) ** 2 == pixels


def images(pixels: ArrayLike, titles: Sequence[str], columns: int) -> Any:
    """Draw square images, shape (count, pixels), each on its own scale, which is symmetric if it has both signs."""
    figure, axes = grid(titles, columns, 1.1, 1.25)
    for axis, image in zip(axes, np.asarray(pixels), strict=True):
        largest = float(np.abs(image).max()) or 1.0
        signed = float(image.min()) < 0
        square = image.reshape(math.isqrt(len(image)), -1)
        axis.imshow(square, cmap="RdBu_r" if signed else "gray", vmin=-largest if signed else 0, vmax=largest)
        axis.axis("off")
    return figure


def histograms(values: Mapping[str, ArrayLike], label: str, counted: str, colors: Sequence[str], bins: int) -> Any:
    """Draw histograms of values between 0 and 1 over each other.

    Args:
      values: by their name in the legend.
      label: of the horizontal axis.
      counted: label of the vertical axis.
      colors: one for each name.
      bins: number of intervals.
    """
    figure, axes = panels(1, 1, 4.6, 3.2)
    axis = axes[0, 0]
    for (name, numbers), color in zip(values.items(), colors, strict=False):
        axis.hist(np.asarray(numbers), np.linspace(0, 1, bins + 1), alpha=0.6, color=color, label=name)
    axis.set(xlabel=label, ylabel=counted)
    axis.legend(frameon=False)
    return figure
