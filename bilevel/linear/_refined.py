"""Iterative refinement: solve in a lower precision, correct in the higher one."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel.linear import _sweeps
from bilevel.linear._base import LinearSolver, Prepared
from bilevel.linear._direct import Direct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refined(LinearSolver):
    """x ← x + Â⁻¹ (b − A x), with Â⁻¹ a solver in a lower precision (Wilkinson 1963; Carson & Higham 2018).

    Reaches the accuracy of b's precision at the speed of the lower one, while cond(A) is below 1/ε of the latter. `Direct`
    factors once, in the lower precision. Where that is no lower than b's own, it is plain residual correction.

    Args:
      solver: of the systems in low precision; its rtol and atol are not those of the answer, but of each correction.
      dtype: precision in which the solver runs; leaves of b that are no wider keep theirs.
      max_steps: limit on corrections.

    Statuses besides `CONVERGED`: `STAGNATED` (a correction did not halve the residual), `MAX_STEPS`, and those of the
    solver where its answer was of no use.
    """

    solver: LinearSolver = dataclasses.field(default_factory=Direct)
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    max_steps: int = 10

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.solver, LinearSolver):
            raise TypeError(f"linear.Refined: solver must be a solver of bilevel.linear, got {self.solver!r}")
        if self.dtype not in ("float64", "float32", "bfloat16", "float16"):
            raise ValueError(f"linear.Refined: dtype must be float64, float32, bfloat16 or float16, got {self.dtype!r}")
        _checks.require_positive("linear.Refined", max_steps=self.max_steps)

    def posed(self, operator):
        """The system that the solver poses."""
        return self.solver.posed(operator)

    def attempt(self, operator, b, init, tolerance):
        """Factor once, correct until the residual is within the tolerance."""
        prepared = self.prepare(operator, b)
        found = prepared(b, init, tolerance)
        return dataclasses.replace(found, matvecs=found.matvecs + prepared.matvecs)

    def prepare(self, operator, like):
        """Prepare the solver on the operator in low precision."""
        low_like = jax.tree.map(self._lower, like)

        def low_matvec(v):
            return _tree.cast_like(operator.matvec(_tree.cast_like(v, like)), low_like)

        solver = self.solver.prepare(dataclasses.replace(operator, matvec=low_matvec), low_like)
        rtol = _tree.eps(low_like) ** (2 / 3) if self.solver.rtol is None else self.solver.rtol

        def sweep(r, goal, left):
            low = jax.tree.map(self._lower, r)
            accuracy = jnp.maximum(jnp.maximum(goal, rtol), self.solver.atol).astype(_tree.dtype(low))
            found = solver(low, _tree.zeros_like(low), accuracy)
            reason = jnp.where(left <= 1, Status.MAX_STEPS, found.reason)
            return _sweeps.Sweep(_tree.cast_like(found.value, r), reason, 1, found.matvecs)

        def attempt(b, init, tolerance):
            return _sweeps.run(operator, b, init, tolerance, self.max_steps, sweep)

        return Prepared(attempt, solver.matvecs)

    def _lower(self, leaf):
        leaf = jnp.asarray(leaf)
        lower = jnp.dtype(self.dtype)
        return leaf.astype(lower) if lower.itemsize < leaf.dtype.itemsize else leaf
