"""Outer algorithms and the loop that runs them."""

from bilevel.outer._loop import Progress, Result, SolveError, minimize, run_loop
from bilevel.outer._memory import OutOfMemoryError
from bilevel.outer._nested import Nested, NestedState
from bilevel.outer._optimizers import from_optax

__all__ = [
    "Nested",
    "NestedState",
    "OutOfMemoryError",
    "Progress",
    "Result",
    "SolveError",
    "from_optax",
    "minimize",
    "run_loop",
]
