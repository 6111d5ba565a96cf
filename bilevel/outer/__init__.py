"""Outer algorithms and the loop that runs them."""

from bilevel.outer._loop import Result, SolveError, minimize, run_loop
from bilevel.outer._memory import OutOfMemoryError
from bilevel.outer._nested import Nested, NestedState
from bilevel.outer._optimizers import from_optax
from bilevel.outer._progress import Progress
from bilevel.outer._report import Algorithm, Point, Report

__all__ = [
    "Algorithm",
    "Nested",
    "NestedState",
    "OutOfMemoryError",
    "Point",
    "Progress",
    "Report",
    "Result",
    "SolveError",
    "from_optax",
    "minimize",
    "run_loop",
]
