"""What the pictures of tasks share. Figures are made without pyplot, so that no global state or display is involved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def panels(rows: int, columns: int, width: float = 3.4, height: float = 3.0) -> tuple[Any, np.ndarray]:
    """A figure, and its axes as an array (rows, columns); sizes in inches per panel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def images(pixels: np.ndarray, titles: Sequence[str], columns: int = 10) -> Any:
    """A grid of images, shape (count, height, width); each is scaled by itself, symmetric about zero where it has both signs."""
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
