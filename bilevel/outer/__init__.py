"""Outer algorithms and the loop that runs them."""

from bilevel.outer._loop import Result, SolveError, minimize, run_loop
from bilevel.outer._nested import Nested, NestedState

__all__ = ["Nested", "NestedState", "Result", "SolveError", "minimize", "run_loop"]
