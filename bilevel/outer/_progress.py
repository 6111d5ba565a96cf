"""The progress of a run: its rows, the best step so far, and the pytree of a checkpoint."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from bilevel._status import INTENDED, Status, describe
from bilevel._tree import PyTree
from bilevel.outer._report import Algorithm, Point, Report

Row = dict[str, Any]


def read(report: Report, step: int, seconds: float) -> tuple[Row, str | None]:
    """The row of a step, and a message about what failed in it, or None.

    The status in the row is `converged` if all solves converged, `intended` if they stopped where their settings told them to (or
    there are none), else the name of the first that failed and how it ended: `inner stagnated`.
    """
    report = jax.device_get(report)
    failed = next((name for name, solve in report.solves.items() if solve.failed), None)
    numbers = {name: np.asarray(value).item() for name, value in report.numbers().items()}
    codes = {name: numbers.pop(f"{name}_status") for name in report.solves}
    head = {name: numbers.pop(name) for name in ("outer_loss", "outer_error", "grad_norm")}
    status = Status.CONVERGED.word if set(codes.values()) == {Status.CONVERGED} else INTENDED
    if failed is not None:
        status = f"{failed} {Status(codes[failed]).word}"
    row = {"step": step, **head, "status": status, **numbers, "seconds": seconds}
    trouble = None if finite(row) else f"outer step {step}: the hypergradient is not finite though no solve failed."
    if failed is not None:
        trouble = (
            f"outer step {step}: the {failed} solve did not converge (residual {numbers[f'{failed}_residual']:.2g}). "
            f"{describe(codes[failed])}."
        )
    return row, trouble


def finite(row: Row) -> bool:
    """Whether the outer loss and the hypergradient of a row are finite."""
    return math.isfinite(row["outer_loss"]) and math.isfinite(row["grad_norm"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best:
    """The best step so far.

    Attributes:
      hparams, params: its hyperparameters and inner solution.
      outer_loss: its outer loss.
      bound: outer_loss plus the size of its estimated error; steps are compared by it.
      step: its number.
      trusted: whether its error is known, by an estimate or because no solve failed.
    """

    hparams: PyTree
    params: PyTree
    outer_loss: float = math.inf
    bound: float = math.inf
    step: int = 0
    trusted: bool = False

    def updated(self, row: Row, point: Point, failed: bool, exact: bool) -> "Best":
        """The better of the two; the later one where the outer loss is that of a minibatch, and tells nothing."""
        loss, error = row["outer_loss"], row["outer_error"]
        if not math.isfinite(loss):
            return self
        known = math.isfinite(error)
        trusted = known or not failed
        bound = loss + (abs(error) if known else 0.0)
        if exact and (self.trusted, -self.bound) >= (trusted, -bound):
            return self
        return Best(*point, loss, bound, row["step"], trusted)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after a step: a pytree from which `run_loop` resumes as if it had not stopped.

    Attributes:
      state: the algorithm's state.
      best: the best step so far.
      failures: steps with a solve that failed.
      seconds: spent so far.
      steps: done so far.
      history: the rows, of which the first `steps` count; not a leaf of the pytree.

    Example:
      >>> import jax, bilevel as bl
      >>> progress = bl.outer.Progress(state=0.5, best=None, failures=0, seconds=1.5, steps=1, history=[{"step": 0}])
      >>> jax.tree.leaves(progress)
      [0.5, 0, 1.5, 1]
    """

    state: Any
    best: Best
    failures: int
    seconds: float
    steps: int
    history: list[Row] = dataclasses.field(metadata={"static": True})

    @classmethod
    def start(cls, algorithm: Algorithm[Any], state: Any) -> "Progress":
        """The progress before the first step, from an algorithm's first state."""
        return cls(state, Best(*algorithm.point(state, state)), 0, 0.0, 0, [])
