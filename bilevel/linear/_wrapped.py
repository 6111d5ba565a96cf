"""Any function as a linear solver."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bilevel import _tree
from bilevel._status import Status
from bilevel.linear._base import Attempt, LinearSolver


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrapped(LinearSolver):
    """A user's `solve(matvec, b)` under the contract: its answer is judged by the residual that it leaves.

    Args:
      function: `solve(matvec, b) -> x`.
      rtol: the residual, relative to ‖b‖, above which the answer counts as a failure.
    """

    function: Callable[..., Any]
    rtol: float | None = 1e-3

    def attempt(self, operator, b, init, tolerance):
        """Call the function; the start is its own."""
        x = self.function(operator.matvec, b)
        _tree.check_like("the answer of solve(matvec, b)", x, "b", b)
        return Attempt(_tree.cast_like(x, b), Status.STAGNATED, 0, 0)


def as_solver(solve: LinearSolver | Callable[..., Any] | None, default: LinearSolver) -> LinearSolver:
    """`solve` as a `LinearSolver`: itself, a wrapped function, or the default for None."""
    if solve is None:
        return default
    if isinstance(solve, LinearSolver):
        return solve
    if callable(solve):
        return Wrapped(function=solve)
    raise TypeError(
        f"solve must be a solver of bilevel.linear, such as linear.CG(), or a function solve(matvec, b); got {solve!r}"
    )
