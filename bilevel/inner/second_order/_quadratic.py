"""The closed-form solution of a quadratic."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bilevel import _tree, linear
from bilevel._needs import LOSS, QUADRATIC, SMOOTH, Need
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, PlainState, SolveProgress
from bilevel.problem import At


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadratic(InnerSolver):
    """Solve H x = −∇f(0) once, for an inner loss that is a positive definite quadratic in x (least squares, ridge, …).

    The answer is checked: its residual is ‖∇f(x)‖/‖∇f(0)‖, and a loss that is not quadratic ends as `STAGNATED`, unless a
    `Problem.linear_model` tells so at once.

    Args:
      rtol: bound on that residual.
      linear: solver of the system; `linear.Auto()` factors a small one and runs CG on a large one. Without an rtol of its
        own it is given half of this one's.
    """

    needs: ClassVar[tuple[Need, ...]] = (LOSS, SMOOTH, QUADRATIC)

    max_steps: int = 1
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)

    def init(self, at: At, params: PyTree) -> PlainState:
        """The start serves iterative linear solvers only."""
        return PlainState(params, SolveProgress.start(_tree.dtype(params)))

    def step(self, at: At, state: PlainState) -> PlainState:
        """Solve, then evaluate the gradient at the answer."""
        at_zero, hvp = jax.linearize(at.gradient, _tree.zeros_like(state.params))
        operator = linear.Operator(hvp, "positive_definite")
        rtol = max(self.rtol, 4 * _tree.eps(state.params))
        solver = self.linear if self.linear.rtol is not None else dataclasses.replace(self.linear, rtol=rtol / 2)
        found = linear.differentiable_solve(solver, operator, _tree.scale(-1, at_zero), state.params)
        scale = _tree.norm(at_zero)
        residual = _tree.norm(at.gradient(found.value)) / jnp.where(scale > 0, scale, 1)
        progress = state.progress
        status = jnp.where(residual <= rtol, Status.CONVERGED, Status.STAGNATED)
        status = jnp.where(found.status == Status.NEGATIVE_CURVATURE, Status.NEGATIVE_CURVATURE, status)
        status = jnp.where(jnp.isfinite(residual), status, Status.NON_FINITE)
        progress = SolveProgress(
            residual,
            status.astype(jnp.int32),
            progress.steps + 1,
            progress.grad_evals + 2,
            progress.hvps + found.matvecs,
        )
        return PlainState(found.value, progress)
