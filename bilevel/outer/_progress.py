"""Where a run stands: its rows, the best step so far, and what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax

from bilevel._status import INTENDED, Status, describe
from bilevel._tree import PyTree
from bilevel.outer._report import Algorithm, Point, Report

Row = dict[str, Any]
CONVERGED = Status.CONVERGED.word


def read(report: Report, step: int, seconds: float) -> tuple[Row, str | None]:
    """The row of a step, and a sentence or two on what failed in it, or None.

    The status in the row is `converged` if all solves converged, `intended` if they stopped where their settings told them to (or
    there are none), else the name of the first that failed and how it ended: `inner stagnated`.
    """
    numbers = report.numbers()
    fetched = jax.device_get(list(numbers.values()))  # a list, since a dict comes back sorted
    numbers = {
        name: value.item() if hasattr(value, "item") else value for name, value in zip(numbers, fetched, strict=True)
    }
    codes = {name: numbers.pop(f"{name}_status") for name in report.solves}
    failed = [name for name, code in codes.items() if _failed(code, report.solves[name].intended)]
    status = CONVERGED if codes and all(code == Status.CONVERGED for code in codes.values()) else INTENDED
    if failed:
        status = f"{failed[0]} {Status(codes[failed[0]]).word}"
    head = ("outer_loss", "outer_error", "grad_norm")
    rest = {name: value for name, value in numbers.items() if name not in head}
    row = {"step": step, **{name: numbers[name] for name in head}, "status": status, **rest, "seconds": seconds}
    if failed:
        trouble = (
            f"outer step {step}: the {failed[0]} solve did not converge (residual {numbers[f'{failed[0]}_residual']:.2g}). "
            f"{describe(codes[failed[0]])}."
        )
    else:
        trouble = None if finite(row) else f"outer step {step}: the hypergradient is not finite though no solve failed."
    return row, trouble


def finite(row: Row) -> bool:
    """Whether the outer loss and the hypergradient of a row are finite."""
    return math.isfinite(row["outer_loss"]) and math.isfinite(row["grad_norm"])


def _failed(code: int, intended: bool) -> bool:
    return code != Status.CONVERGED and not (intended and code == Status.MAX_STEPS)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best:
    """The best step so far.

    Attributes:
      hparams, params: its hyperparameters and inner solution.
      outer_loss: its outer loss.
      bound: that plus the size of its estimated error, by which steps are compared.
      step: its number.
      trusted: whether its error is known: by an estimate, or since no solve failed.
    """

    hparams: PyTree
    params: PyTree
    outer_loss: float = math.inf
    bound: float = math.inf
    step: int = 0
    trusted: bool = False

    def updated(self, row: Row, point: Point, failed: bool, exact: bool) -> Best:
        """The better of the two; the later one where the outer loss is of a minibatch, which tells nothing."""
        loss, error = row["outer_loss"], row["outer_error"]
        if not math.isfinite(loss):
            return self
        known = math.isfinite(error)
        trusted = known or not failed
        bound = loss + (abs(error) if known else 0.0)
        if exact and (self.trusted, -self.bound) >= (trusted, -bound):
            return self
        return Best(*point, loss, bound, row["step"], trusted)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["state", "best", "failures", "seconds", "steps"],
    meta_fields=["history"],
)
@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after a step: a pytree, from which `run_loop` goes on as if it had not stopped.

    Attributes:
      state: the algorithm's state.
      best: the best step so far.
      failures: steps with a solve that failed.
      seconds: spent so far.
      steps: done so far.
      history: the rows, of which the first `steps` count; no part of the pytree.
    """

    state: Any
    best: Best
    failures: int
    seconds: float
    steps: int
    history: list[Row]

    @classmethod
    def start(cls, algorithm: Algorithm[Any], state: Any) -> Progress:
        """Before the first step, from an algorithm's first state."""
        return cls(state, Best(*algorithm.point(state, state)), 0, 0.0, 0, [])
