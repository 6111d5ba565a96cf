"""Drawing helpers for the pictures of tasks. Figures are made without pyplot, so no global state or display is involved."""

from __future__ import annotations

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


def images(pixels: np.ndarray, titles: Sequence[str], columns: int = 10) -> Any:
    """Draw a grid of images, shape (count, height, width), each on its own scale, which is symmetric if it has both signs."""
    rows = -(-len(pixels) // columns)
    figure, axes = panels(rows, min(columns, len(pixels)), 1.1, 1.25)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, pixels, titles, strict=False):
        largest = float(np.abs(image).max()) or 1.0
        signed = float(image.min()) < 0
        axis.imshow(image, cmap="RdBu_r" if signed else "gray", vmin=-largest if signed else 0, vmax=largest)
        axis.set_title(title, fontsize=9)
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
