"""Levenberg–Marquardt and Gauss–Newton."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bilevel import _tree, linear
from bilevel._needs import RESIDUALS, SMOOTH, Need
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner._judge import judge
from bilevel.inner.second_order._newton import backtrack
from bilevel.problem import At

_ACCEPT = 1e-4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    params: PyTree
    damping: jax.Array  # μ/‖r‖
    growth: jax.Array  # factor of the damping after the next step that is refused
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt(InnerSolver):
    """x⁺ = x + d with (JᵀJ + μI) d = −Jᵀr, for an inner loss ½‖r(x)‖² that is stated by `Problem.residuals`; J = ∂r.

    A step is taken if the loss falls; its gain against that of the linear model steers μ/‖r‖ by Nielsen's rule. So μ
    vanishes with the residuals, and the convergence is then quadratic. The systems are solved from products with J and
    Jᵀ. Unrolled, μ counts as a constant.

    Args:
      damping: μ at the start, relative to the curvature along the first gradient. 0: Gauss–Newton, each step halved until
        the loss falls by Armijo's rule, and a gradient step of length 1/L where JᵀJ is singular.
      linear: solver of the systems; `linear.Auto()` factors a small one and runs CG on a large one.

    References: Marquardt 1963; Nielsen 1999 (damping); Fan & Yuan 2005 (μ in proportion to ‖r‖).
    """

    needs: ClassVar[tuple[Need, ...]] = (RESIDUALS, SMOOTH)

    rtol: float = 1e-8
    max_steps: int = 200
    damping: float = 1e-3
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.damping >= 0:
            raise ValueError(f"inner.LevenbergMarquardt: damping must not be negative, got {self.damping}")

    def init(self, at: At, params: PyTree) -> _State:
        """The first damping, from the curvature along the gradient."""
        dtype = _tree.dtype(params)
        r, pull = jax.vjp(at.residuals, params)
        distance, _ = judge(at, params)
        curvature = _tree.norm(pull(r)[0]) / _positive(distance)
        damping = jax.lax.stop_gradient(self.damping * curvature / _positive(_tree.norm(r)))
        return _State(params, damping.astype(dtype), jnp.full((), 2, dtype), SolveProgress.start(dtype, 2, 1))

    def step(self, at: At, state: _State) -> _State:
        """One step, taken or not; a point that passes the stopping test is kept as it is, with the step's derivative."""
        x = state.params
        r, push = jax.linearize(at.residuals, x)
        pull = jax.linear_transpose(push, x)
        gradient = pull(r)[0]
        distance, _ = judge(at, x)
        mu = jax.lax.stop_gradient(state.damping * _tree.norm(r))
        operator = linear.Operator(lambda v: _tree.add_scaled(pull(push(v))[0], mu, v), "positive_definite")
        found = linear.differentiable_solve(self.linear, operator, _tree.scale(-1, gradient))

        follow = self._damp if self.damping else self._halve
        moved, damping, growth, failed = follow(at, state, (r, gradient, push), found, distance)
        progress = self.advance(
            state.progress, x, distance, grad_evals=2, hvps=found.matvecs + 2, failed=failed, failure=Status.STAGNATED
        )
        done = progress.status == Status.CONVERGED
        params = _tree.where(done, _tree.with_derivative_of(_tree.add_scaled(x, 1, found.value), x), moved)
        return _State(params, damping, growth, progress)

    def _damp(self, at, state, linearized, found, distance):
        """Take the step if the loss falls, and steer the damping by how much it does."""
        x, (r, gradient, push) = state.params, linearized
        ahead = _tree.add_scaled(x, 1, found.value)
        eps = _tree.eps(x)
        before, after = _half_square(r), _half_square(at.residuals(ahead))
        predicted = -_tree.vdot(gradient, found.value) - _half_square(push(found.value))
        # Near rounding, where decrease does not show, the ratio tends to 1.
        slack = 10 * eps * before
        ratio = (before - after + slack) / _positive(predicted + slack)
        accepted = (predicted > 0) & (ratio > _ACCEPT) & jnp.isfinite(after)
        curvature, size = _tree.norm(gradient) / _positive(distance), _positive(_tree.norm(r))
        least = eps * curvature / size
        shrunk = state.damping * jnp.maximum(1 / 3, 1 - (2 * ratio - 1) ** 3)
        damping = jnp.where(accepted, shrunk, jnp.maximum(state.damping, least) * state.growth)
        growth = jnp.where(accepted, 2, 2 * state.growth)
        moved = _tree.where(accepted, ahead, x)
        damping, growth = jax.lax.stop_gradient((damping, growth))
        return moved, damping, growth, ~accepted & (eps * damping * size > curvature)

    def _halve(self, at, state, linearized, found, distance):
        """Halve the step until the loss falls."""
        x, (r, gradient, _) = state.params, linearized
        usable = (_tree.vdot(found.value, gradient) < 0) | (_tree.norm(gradient) == 0)
        length = jax.lax.stop_gradient(distance / _positive(_tree.norm(gradient)))
        direction = _tree.where(usable, found.value, _tree.scale(-length, gradient))
        frozen = jax.lax.stop_gradient(at)
        length = backtrack(lambda x: _half_square(frozen.residuals(x)), x, _half_square(r), gradient, direction)
        return _tree.add_scaled(x, length, direction), state.damping, state.growth, length == 0


def _half_square(r: PyTree) -> jax.Array:
    return _tree.vdot(r, r) / 2


def _positive(x: jax.Array) -> jax.Array:
    """x, or 1 where dividing by it would fail."""
    return jnp.where(x > 0, x, 1)
