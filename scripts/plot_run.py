"""Draw a run: python scripts/plot_run.py RUN_FOLDER [picture.png]

Outer loss, gradient norm and residuals against outer steps, from `metrics.jsonl` alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import bilevel as bl


def column(run: bl.io.Run, name: str) -> np.ndarray:
    """A metric over the steps; NaN where it was null."""
    return np.array([np.nan if row[name] is None else row[name] for row in run.metrics], float)


def draw(run: bl.io.Run, picture: Path) -> None:
    """Three panels in a row."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    steps = column(run, "step")
    best = run.result["best_step"] if run.result else None
    axes[0].plot(steps, column(run, "outer_loss"), color="tab:blue")
    if best is not None:
        axes[0].plot(best, column(run, "outer_loss")[best], "o", color="tab:red", label=f"best, step {best}")
        axes[0].legend(frameon=False)
    axes[0].set_title("outer loss")
    axes[1].semilogy(steps, column(run, "grad_norm"), color="tab:blue")
    axes[1].set_title("norm of the hypergradient")
    axes[2].semilogy(steps, column(run, "inner_residual"), label="inner", color="tab:blue")
    axes[2].semilogy(steps, column(run, "adjoint_residual"), label="adjoint", color="tab:orange")
    axes[2].set_title("relative residuals")
    axes[2].legend(frameon=False)
    for axis in axes:
        axis.set_xlabel("outer step")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    draw(bl.load(folder), Path(sys.argv[2]) if len(sys.argv) == 3 else folder / "run.png")
