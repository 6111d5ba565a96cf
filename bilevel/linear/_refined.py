"""Iterative refinement: solve in a lower precision, correct in the higher one."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _iteration
from bilevel.linear._base import Attempt, LinearSolver, Operator, Prepared, PreparedSolver
from bilevel.linear._direct import Direct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refined(PreparedSolver):
    """Iterative refinement x ← x + Â⁻¹ (b − A x), with Â⁻¹ a solver that runs in a lower precision.

    Reaches the accuracy of b's precision at the speed of the lower precision, while cond(A) is below 1/ε of the lower one.
    `Direct` factors once, in the lower precision. If `dtype` is no lower than b's own, this is plain residual correction.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      solver: solver of the systems in low precision, `Direct()` by default; its tolerances apply to each correction.
      dtype: precision in which the solver runs, `"float32"` by default; leaves of b that are no wider keep theirs.
      max_steps: limit on corrections; 10 by default.

    Statuses besides `CONVERGED`: `STAGNATED` (a correction did not halve the residual), `MAX_STEPS`, and the solver's own if
    its answer was unusable.

    References: Wilkinson, Rounding errors in algebraic processes, 1963; Carson & Higham, Accelerating the solution of linear
    systems by iterative refinement in three precisions, 2018.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.Refined().solve(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    solver: LinearSolver = dataclasses.field(default_factory=Direct)
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    max_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.solver, LinearSolver):
            raise TypeError(f"linear.Refined: solver must be a solver of bilevel.linear, got {self.solver!r}")
        if self.dtype not in ("float64", "float32", "bfloat16", "float16"):
            raise ValueError(f"linear.Refined: dtype must be float64, float32, bfloat16 or float16, got {self.dtype!r}")
        _checks.require_positive("linear.Refined", max_steps=self.max_steps)

    def effective_operator(self, operator: Operator) -> Operator:
        """The system that the solver solves."""
        return self.solver.effective_operator(operator)

    def prepare(self, operator: Operator, like: PyTree) -> Prepared:
        """Prepare the solver for the operator in low precision."""
        low_like = jax.tree.map(self._lower, like)

        def low_matvec(v: PyTree) -> PyTree:
            return _tree.cast_like(operator(_tree.cast_like(v, like)), low_like)

        solver = self.solver.prepare(dataclasses.replace(operator, matvec=low_matvec), low_like)

        def correct(r: PyTree, goal: jax.Array, left: jax.Array) -> Attempt:
            low = jax.tree.map(self._lower, r)
            accuracy = jnp.maximum(goal.astype(_tree.dtype(low)), self.solver.tolerance(low))
            found = solver.attempt(low, _tree.zeros_like(low), accuracy)
            reason = jnp.where(left <= 1, Status.MAX_STEPS, found.reason)
            return Attempt(_tree.cast_like(found.value, r), reason, 1, found.matvecs)

        run = functools.partial(_iteration.run, operator, limit=self.max_steps, correct=correct)
        return Prepared(run, solver.matvecs)

    def _lower(self, leaf: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        lower = jnp.dtype(self.dtype)
        return leaf.astype(lower) if lower.itemsize < leaf.dtype.itemsize else leaf
