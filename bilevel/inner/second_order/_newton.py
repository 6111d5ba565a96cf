"""Newton's method with a line search, and its single step for a quadratic loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import _tree, linear
from bilevel._curvature import gain
from bilevel._needs import LOSS, QUADRATIC, SMOOTH
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, PlainState, hold
from bilevel.problem import At

_ARMIJO, _MAX_HALVINGS = 1e-4, 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Newton(InnerSolver):
    """x⁺ = x + t d with H d = −∇f, t halved from 1 until f falls by Armijo's rule.

    Where d does not point downhill, for example because the Hessian is not positive definite, it is a gradient step of length
    1/L. Converges in a few steps; for few unknowns, so that H can be factored, or for cheap products with H.

    Args:
      rtol, atol, max_steps: as for `InnerSolver`.
      linear: solver of the Newton systems; `linear.Auto()` factors a small one and runs CG on a large one.

    Reference: Nocedal & Wright, Numerical Optimization, 2006, chapter 3.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> print(bl.inner.Newton().solve(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).params.round(3))
      [1. 2.]
    """

    needs = (LOSS, SMOOTH)

    rtol: float = 1e-8
    max_steps: int = 100
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)

    def step(self, at: At, state: PlainState) -> PlainState:
        """One Newton step; a point that passes the stopping test is kept, with the step's derivative."""
        x = state.params
        (value, gradient), hvp = jax.linearize(jax.value_and_grad(at.inner_loss), x)
        operator = linear.Operator(lambda v: hvp(v)[1], "positive_definite")
        norm = _tree.norm(gradient)
        curvature = jax.lax.stop_gradient(gain(operator.matvec, gradient))
        found = linear.differentiable_solve(self.linear, operator, _tree.scale(-1, gradient))
        loss = jax.lax.stop_gradient(at).inner_loss
        direction, length = descend(loss, x, value, gradient, found.value, 1 / curvature)
        spent = {"grad_evals": 1, "hvps": found.matvecs + 1}
        progress = self.advance(state.progress, x, norm / curvature, **spent, failed=length == 0)
        full, moved = (_tree.add_scaled(x, t, direction) for t in (1, length))
        return PlainState(hold(progress, x, full, moved), progress)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadratic(InnerSolver):
    """Solve H x = −∇f(0) once, for an inner loss that is a positive definite quadratic in x (least squares, ridge, …).

    The answer is checked by ‖∇f(x)‖/‖∇f(0)‖: a loss that is not quadratic ends as `STAGNATED`, unless a `Problem.linear_model`
    shows it at once; an indefinite one ends as `NEGATIVE_CURVATURE`.

    Args:
      rtol, atol: bounds on that relative residual.
      max_steps: 1; the start serves only iterative linear solvers.
      linear: solver of the system; `linear.Auto()` factors a small one and runs CG on a large one. If its rtol is None, it
        gets half of this rtol.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> print(bl.inner.Quadratic().solve(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).params.round(3))
      [1. 2.]
    """

    needs = (LOSS, SMOOTH, QUADRATIC)

    max_steps: int = 1
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)

    def step(self, at: At, state: PlainState) -> PlainState:
        """Solve, then evaluate the gradient at the answer."""
        at_zero, hvp = jax.linearize(at.gradient, _tree.zeros_like(state.params))
        operator = linear.Operator(hvp, "positive_definite")
        rtol = max(self.rtol, 4 * _tree.eps(state.params))
        solver = self.linear if self.linear.rtol is not None else dataclasses.replace(self.linear, rtol=rtol / 2)
        found = linear.differentiable_solve(solver, operator, _tree.scale(-1, at_zero), state.params)
        residual = _tree.norm(at.gradient(found.value)) / _tree.positive(_tree.norm(at_zero))
        spent = {"grad_evals": 2, "hvps": found.matvecs}
        progress = self.advance(state.progress, found.value, residual, jnp.ones_like(residual), **spent, failed=True)
        concave = (found.status == Status.NEGATIVE_CURVATURE) & jnp.isfinite(residual)
        return PlainState(found.value, progress.ending(jnp.where(concave, found.status, progress.status)))


def descend(
    loss: Callable[[PyTree], jax.Array], x: PyTree, value: jax.Array, gradient: PyTree, step: PyTree, length: jax.Array
) -> tuple[PyTree, jax.Array]:
    """A direction, the step or −length · gradient if that is not downhill, and how much of it to take.

    The latter is not differentiated; it is 0 if no multiple is found, and 1 near rounding, where no decrease is visible.
    """
    usable = (_tree.vdot(step, gradient) < 0) | (_tree.norm(gradient) == 0)
    chosen = _tree.where(usable, step, _tree.scale(-length, gradient))
    x, value, gradient, direction = jax.lax.stop_gradient((x, value, gradient, chosen))
    slope = _tree.vdot(gradient, direction)
    slack = 10 * _tree.eps(x) * jnp.abs(value)

    def too_long(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        length, halvings = carry
        after = loss(_tree.add_scaled(x, length, direction))
        return ~(after <= value + _ARMIJO * length * slope + slack) & (halvings < _MAX_HALVINGS)

    start = (jnp.ones((), value.dtype), jnp.int32(0))
    length, halvings = jax.lax.while_loop(too_long, lambda carry: (carry[0] / 2, carry[1] + 1), start)
    return chosen, jnp.where(halvings < _MAX_HALVINGS, length, 0)
