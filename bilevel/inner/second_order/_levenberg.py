"""Levenberg–Marquardt and Gauss–Newton."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree, linear
from bilevel._needs import RESIDUALS, SMOOTH
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress, hold
from bilevel.inner._judge import judge
from bilevel.inner.second_order._newton import descend
from bilevel.problem import At

_ACCEPT = 1e-4


class _State(NamedTuple):
    params: PyTree
    damping: jax.Array  # μ/‖r‖
    growth: jax.Array  # of the damping, after the next step that is refused
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt(InnerSolver):
    """x⁺ = x + d with (JᵀJ + μI) d = −Jᵀr, for an inner loss ½‖r(x)‖² that is stated by `Problem.residuals`; J = ∂r.

    A step is taken if the loss falls; its decrease relative to that of the linear model steers μ/‖r‖ by Nielsen's rule. So μ
    vanishes with the residuals, and the convergence is then quadratic. The systems are solved from products with J and
    Jᵀ. Unrolled, μ counts as a constant.

    Args:
      rtol, atol, max_steps: as for `InnerSolver`.
      damping: μ at the start, relative to the curvature along the first gradient. 0: Gauss–Newton, each step halved until
        the loss falls by Armijo's rule, and a gradient step of length 1/L where JᵀJ is singular.
      linear: solver of the systems; `linear.Auto()` factors a small one and runs CG on a large one.

    References: Marquardt 1963; Nielsen 1999 (damping); Fan & Yuan 2005 (μ in proportion to ‖r‖).

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(residuals=lambda x, hparams, data: jnp.array([1 - x[0], 10 * (x[1] - x[0] ** 2)]))
      >>> print(bl.inner.LevenbergMarquardt().solve(problem, jnp.zeros(2), None).params.round(3))
      [1. 1.]
    """

    needs = (RESIDUALS, SMOOTH)

    rtol: float = 1e-8
    max_steps: int = 200
    damping: float = 1e-3
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.damping >= 0:
            raise ValueError(f"{self.name}: damping must not be negative, got {self.damping}")

    def init(self, at: At, params: PyTree) -> _State:
        """The first damping, from the curvature along the gradient."""
        dtype = _tree.dtype(params)
        r, pull = jax.vjp(at.residuals, params)
        distance, _ = judge(at, params)
        curvature = _tree.norm(pull(r)[0]) / _tree.positive(distance)
        damping = jax.lax.stop_gradient(self.damping * curvature / _tree.positive(_tree.norm(r)))
        return _State(params, damping.astype(dtype), jnp.full((), 2, dtype), SolveProgress.start(dtype, 2, 1))

    def step(self, at: At, state: _State) -> _State:
        """One step, taken or not; a point that passes the stopping test is kept, with the step's derivative."""
        x = state.params
        r, push = jax.linearize(at.residuals, x)
        pull = jax.linear_transpose(push, x)
        gradient = pull(r)[0]
        distance, _ = judge(at, x)
        mu = jax.lax.stop_gradient(state.damping * _tree.norm(r))
        operator = linear.Operator(lambda v: _tree.add_scaled(pull(push(v))[0], mu, v), "positive_definite")
        found = linear.differentiable_solve(self.linear, operator, _tree.scale(-1, gradient))

        follow = self._damp if self.damping else self._halve
        moved, damping, growth, failed = follow(at, state, (r, gradient, push), found.value, distance)
        progress = self.advance(state.progress, x, distance, grad_evals=2, hvps=found.matvecs + 2, failed=failed)
        return _State(hold(progress, x, _tree.add_scaled(x, 1, found.value), moved), damping, growth, progress)

    def _damp(
        self, at: At, state: _State, linearized: tuple[PyTree, PyTree, Any], step: PyTree, distance: jax.Array
    ) -> tuple[PyTree, jax.Array, jax.Array, jax.Array]:
        """Take the step if the loss falls, and steer the damping by the decrease: x⁺, the damping, its growth, a failure."""
        x, (r, gradient, push) = state.params, linearized
        ahead, eps = _tree.add_scaled(x, 1, step), _tree.eps(x)
        before, after = _half_square(r), _half_square(at.residuals(ahead))
        predicted = -_tree.vdot(gradient, step) - _half_square(push(step))
        # Near rounding, where no decrease is visible, the ratio tends to 1.
        slack = 10 * eps * before
        ratio = (before - after + slack) / _tree.positive(predicted + slack)
        accepted = (predicted > 0) & (ratio > _ACCEPT) & jnp.isfinite(after)
        curvature, size = _tree.norm(gradient) / _tree.positive(distance), _tree.positive(_tree.norm(r))
        least = eps * curvature / size
        shrunk = state.damping * jnp.maximum(1 / 3, 1 - (2 * ratio - 1) ** 3)
        damping = jnp.where(accepted, shrunk, jnp.maximum(state.damping, least) * state.growth)
        growth = jnp.where(accepted, 2, 2 * state.growth)
        moved = _tree.where(accepted, ahead, x)
        damping, growth = jax.lax.stop_gradient((damping, growth))
        return moved, damping, growth, ~accepted & (eps * damping * size > curvature)

    def _halve(
        self, at: At, state: _State, linearized: tuple[PyTree, PyTree, Any], step: PyTree, distance: jax.Array
    ) -> tuple[PyTree, jax.Array, jax.Array, jax.Array]:
        """Halve the step until the loss falls."""
        x, (r, gradient, _) = state.params, linearized
        length = jax.lax.stop_gradient(distance / _tree.positive(_tree.norm(gradient)))
        frozen = jax.lax.stop_gradient(at)
        direction, length = descend(
            lambda x: _half_square(frozen.residuals(x)), x, _half_square(r), gradient, step, length
        )
        return _tree.add_scaled(x, length, direction), state.damping, state.growth, length == 0


def _half_square(r: PyTree) -> jax.Array:
    return _tree.vdot(r, r) / 2
