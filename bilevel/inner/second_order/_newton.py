"""Newton's method with a line search."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from bilevel import _tree, linear
from bilevel._curvature import gain
from bilevel._needs import LOSS, SMOOTH, Need
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, PlainState, SolveProgress
from bilevel.problem import At

_ARMIJO, _MAX_HALVINGS = 1e-4, 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Newton(InnerSolver):
    """x⁺ = x + t d with H d = −∇f, t halved from 1 until f falls by Armijo's rule.

    Where the answer does not point downhill, as where the Hessian is not positive definite, d is a gradient step of length 1/L.
    Converges in a handful of steps where n is small enough to factor H, or products with it are cheap.

    Args:
      linear: solver of the Newton systems; `linear.Auto()` factors a small one and runs CG on a large one.

    Reference: Nocedal & Wright, Numerical Optimization, 2006, chapter 3.
    """

    needs: ClassVar[tuple[Need, ...]] = (LOSS, SMOOTH)

    rtol: float = 1e-8
    max_steps: int = 100
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)

    def init(self, at: At, params: PyTree) -> PlainState:
        """Nothing to prepare."""
        return PlainState(params, SolveProgress.start(_tree.dtype(params)))

    def step(self, at: At, state: PlainState) -> PlainState:
        """One Newton step; a point that passes the stopping test is kept as it is, with the step's derivative."""
        x = state.params
        (value, gradient), hvp = jax.linearize(jax.value_and_grad(at.inner_loss), x)
        operator = linear.Operator(lambda v: hvp(v)[1], "positive_definite")
        norm = _tree.norm(gradient)
        curvature = jax.lax.stop_gradient(gain(operator.matvec, gradient))
        found = linear.differentiable_solve(self.linear, operator, _tree.scale(-1, gradient))
        fallback = _tree.scale(-1 / curvature, gradient)
        usable = (_tree.vdot(found.value, gradient) < 0) | (norm == 0)
        direction = _tree.where(usable, found.value, fallback)
        length = backtrack(jax.lax.stop_gradient(at).inner_loss, x, value, gradient, direction)
        progress = self.advance(
            state.progress,
            x,
            norm / curvature,
            grad_evals=1,
            hvps=found.matvecs + 1,
            failed=length == 0,
        )
        done = progress.status == Status.CONVERGED
        moved = _tree.add_scaled(x, jnp.where(done, 1, length), direction)
        return PlainState(_tree.where(done, _tree.with_derivative_of(moved, x), moved), progress)


def backtrack(
    loss: Callable[[PyTree], jax.Array],
    x: PyTree,
    value: jax.Array,
    gradient: PyTree,
    direction: PyTree,
) -> jax.Array:
    """The step length, 0 if none is found; near rounding, where decrease does not show, 1. Not differentiated, nor is `loss`."""
    x, value, gradient, direction = jax.lax.stop_gradient((x, value, gradient, direction))
    slope = _tree.vdot(gradient, direction)
    slack = 10 * _tree.eps(x) * jnp.abs(value)

    def too_long(carry):
        length, halvings = carry
        after = loss(_tree.add_scaled(x, length, direction))
        return ~(after <= value + _ARMIJO * length * slope + slack) & (halvings < _MAX_HALVINGS)

    start = (jnp.ones((), value.dtype), jnp.int32(0))
    length, halvings = jax.lax.while_loop(too_long, lambda carry: (carry[0] / 2, carry[1] + 1), start)
    return jnp.where(halvings < _MAX_HALVINGS, length, 0)
