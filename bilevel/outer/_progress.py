"""The progress of a run: its rows, the best step so far, and the pytree of a checkpoint."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from bilevel._status import INTENDED, Status, describe
from bilevel._tree import PyTree
from bilevel.hypergrad import Level, Reason
from bilevel.outer._report import Algorithm, Point, Report

Row = dict[str, Any]


def read(report: Report, step: int, seconds: float) -> tuple[Row, str | None]:
    """The row of a step, and a message about what failed in it, or None.

    The status in the row is `converged` if all solves converged, `intended` if they stopped where their settings told them to (or
    there are none), else the name of the first that failed and how it ended: `inner stagnated`. The verdict is the report's; a
    report without one is doubtful where a solve failed. A row that is not trusted has a `reason`.
    """
    report = jax.device_get(report)
    verdict = report.verdict
    failed = next((name for name, solve in report.solves.items() if solve.failed), None)
    numbers = {name: np.asarray(value).item() for name, value in report.numbers().items()}
    codes = {name: numbers.pop(f"{name}_status") for name in report.solves}
    head = {name: numbers.pop(name) for name in ("outer_loss", "outer_error", "grad_norm")}
    status = Status.CONVERGED.word if set(codes.values()) == {Status.CONVERGED} else INTENDED
    if failed is not None:
        status = f"{failed} {Status(codes[failed]).word}"
    row = {"step": step, **head, "verdict": "", "status": status, **numbers, "seconds": seconds}
    level = Level.DOUBTFUL if failed else Level.TRUSTED
    reason = Reason.SOLVES if failed else Reason.NONE
    if verdict is not None:
        level, reason = Level(int(verdict.level)), Reason(int(verdict.reason))
    if not finite(row):
        level, reason = Level.FAILED, Reason.NOT_FINITE
    row["verdict"] = level.word
    if level is not Level.TRUSTED:
        row["reason"] = reason.sentence
    return row, _trouble(row, level, failed, codes)


def _trouble(row: Row, level: Level, failed: str | None, codes: dict[str, int]) -> str | None:
    step = f"outer step {row['step']}"
    if failed is not None:
        residual = row[f"{failed}_residual"]
        return f"{step}: the {failed} solve did not converge (residual {residual:.2g}). {describe(codes[failed])}."
    if not math.isfinite(row["outer_loss"] + row["grad_norm"]):
        return f"{step}: the hypergradient is not finite though no solve failed."
    if not finite(row):
        return f"{step}: the optimizer's update is not finite, and was not applied: lower its learning rate."
    if level is Level.FAILED:
        return f"{step}: the hypergradient is off by an estimated {row['error_estimate']:.0%}: {row['reason']}."
    return None


def finite(row: Row) -> bool:
    """Whether the outer loss, the hypergradient and its update are finite in a row."""
    return all(math.isfinite(row.get(name, 0.0)) for name in ("outer_loss", "grad_norm", "update_norm"))


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
