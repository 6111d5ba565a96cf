"""Any function as a linear solver."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear._base import Attempt, LinearSolver, Operator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrapped(LinearSolver):
    """A function `solve(matvec, b)` of your own as a linear solver; its answer is judged by its residual.

    `custom_root` wraps a function that it is given as `solve` this way.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); 1e-3 by default, `None` is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      function: `solve(matvec, b) -> x`, with x of the structure and shapes of b.

    Statuses: `CONVERGED`, `STAGNATED` (the residual is too large), `NON_FINITE`. `steps` is 0: the function does not report it.

    Raises:
      ValueError: the answer has another structure or other shapes than b.

    Example:
      >>> import jax, jax.numpy as jnp, bilevel as bl
      >>> solver = bl.linear.Wrapped(function=lambda matvec, b: jax.scipy.sparse.linalg.cg(matvec, b)[0])
      >>> print(solver.solve(lambda v: 2 * v, jnp.ones(2)).value)
      [0.5 0.5]
    """

    function: Callable[..., Any]
    rtol: float | None = 1e-3

    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Call the function, which chooses its own start."""
        x = self.function(operator.matvec, b)
        _tree.check_like("the answer of solve(matvec, b)", x, "b", b)
        return Attempt(_tree.cast_like(x, b), Status.STAGNATED, 0, 0)


def as_solver(solve: LinearSolver | Callable[..., Any] | None, default: LinearSolver) -> LinearSolver:
    """`solve` as a `LinearSolver`: itself, a function that is `Wrapped`, or the default for None.

    Raises:
      TypeError: `solve` is none of these.

    Example:
      >>> import bilevel as bl
      >>> print(type(bl.linear.as_solver(lambda matvec, b: b, default=bl.linear.Auto())).__name__)
      Wrapped
    """
    if solve is None:
        return default
    if isinstance(solve, LinearSolver):
        return solve
    if callable(solve):
        return Wrapped(function=solve)
    raise TypeError(
        f"solve must be a solver of bilevel.linear, such as linear.CG(), or a function solve(matvec, b); got {solve!r}"
    )
