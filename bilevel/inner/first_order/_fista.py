"""Accelerated proximal gradient."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._curvature import ITERATIONS, choose_step, curvature_along_gradient
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.problem import At

_SAFETY = 0.7  # step times curvature; momentum is stable below 4/3
_OVERSHOT = 4.0  # step times curvature beyond which a step is taken back
_FIRST_GROWTH, _GROWTH, _PATIENCE = 2.0, 0.1, 10


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    params: PyTree
    extrapolated: PyTree
    base: PyTree  # where the last step began
    slope: PyTree  # the gradient there
    momentum: jax.Array
    step_size: jax.Array
    test_step: jax.Array  # 1/L, the step by which the stopping test is taken
    cuts: jax.Array  # how often curvature has shortened the step
    progress: SolveProgress


class _Choice(NamedTuple):
    step_size: jax.Array
    test_step: jax.Array
    cuts: jax.Array
    overshot: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class FISTA(InnerSolver):
    """Accelerated proximal gradient with adaptive restart and adaptive steps, one gradient per iteration.

    x⁺ = prox_{ηg}(y − η∇f(y)),  y⁺ = x⁺ + β(x⁺ − x). Momentum restarts whenever it points uphill. Serves every problem
    with a smooth loss: with a projection it is accelerated projected gradient, with neither prox nor projection
    accelerated gradient descent; `acceleration=False` gives the plain kinds.

    η follows the curvature c = ‖∇f(y⁺) − ∇f(y)‖/‖y⁺ − y‖ along the path, which is often far below L: it grows, by less
    the more often it had to be cut, up to 0.7/c, and never falls below 1/L where `Problem.lipschitz` gives L. Where
    ηc > 4, or the loss is not finite, the step is taken back and repeated with a shorter one. Unrolled, η is 1/L, since a longer
    one need not suit the derivative, and restarts count as constants.

    Args:
      step_size: a fixed η, instead.
      acceleration: use momentum.
      adaptive: follow the curvature; False keeps η at 1/L, L from `Problem.lipschitz` or a power iteration.

    References: Beck & Teboulle 2009; O'Donoghue & Candès 2015 (gradient restart); Malitsky & Mishchenko 2020 (steps from
    local curvature, without momentum).
    """

    max_steps: int = 5000
    step_size: float | None = None
    acceleration: bool = True
    adaptive: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive("inner.FISTA", step_size=self.step_size)

    def unrollable(self):
        """With steps of length 1/L."""
        return dataclasses.replace(self, adaptive=False)

    def init(self, at: At, params: PyTree) -> _State:
        """Choose the first step size."""
        dtype = _tree.dtype(params)
        grad_evals = hvps = 0
        if self.step_size is not None:
            step_size = jnp.asarray(self.step_size, dtype)
        elif at.parts.lipschitz is not None or not self.adaptive:
            step_size = choose_step(None, at, params)
            hvps = 0 if at.parts.lipschitz is not None else ITERATIONS
        else:
            _, curvature = curvature_along_gradient(at, params)
            step_size, grad_evals, hvps = 1 / curvature.astype(dtype), 1, 1
        step_size = jax.lax.stop_gradient(step_size)
        return _State(
            params=params,
            extrapolated=params,
            base=params,
            slope=_tree.zeros_like(params),
            momentum=jnp.ones((), dtype),
            step_size=step_size,
            test_step=step_size,
            cuts=jnp.zeros((), jnp.int32),
            progress=SolveProgress.start(dtype, grad_evals, hvps),
        )

    def step(self, at: At, state: _State) -> _State:
        """One proximal-gradient step from the extrapolated point, or again from the last one if that overshot."""
        y = state.extrapolated
        value, gradient = jax.value_and_grad(at.inner_loss)(y)
        chosen = self._choose(at, state, value, gradient)
        y = _tree.where(chosen.overshot, state.base, y)
        gradient = _tree.where(chosen.overshot, state.slope, gradient)
        step_size = chosen.step_size
        params = at.proximal_step(_tree.add_scaled(y, -step_size, gradient), step_size)
        moved = _tree.sub(params, y)

        forward = _tree.sub(params, state.params)
        restart = (_tree.vdot(moved, forward) < 0) | chosen.overshot
        momentum = jnp.where(restart, 1, (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2)
        beta = jnp.where(restart, 0, (state.momentum - 1) / momentum) if self.acceleration else 0.0
        return _State(
            params=params,
            extrapolated=_tree.add_scaled(params, jax.lax.stop_gradient(beta), forward),
            base=y,
            slope=gradient,
            momentum=jax.lax.stop_gradient(momentum.astype(state.momentum.dtype)),
            step_size=step_size,
            test_step=chosen.test_step,
            cuts=chosen.cuts,
            progress=self.advance(
                state.progress,
                params,
                self._distance(at, y, gradient, moved, chosen),
                grad_evals=1,
                failed=step_size < _tree.eps(params) ** 0.75 * chosen.test_step,
                failure=Status.BREAKDOWN,
            ),
        )

    def _distance(self, at, y, gradient, moved, chosen):
        """How far a step of at least 1/L moves y: a step that was taken back to almost nothing says little."""
        if self.step_size is not None or not self.adaptive:
            return _tree.norm(moved)

        def longer():
            pushed = _tree.add_scaled(y, -chosen.test_step, gradient)
            return _tree.norm(_tree.sub(at.proximal_step(pushed, chosen.test_step), y))

        return jax.lax.cond(chosen.step_size < chosen.test_step, longer, lambda: _tree.norm(moved))

    def _choose(self, at, state, value, gradient) -> _Choice:
        """The next step, from the curvature between the last two gradients where rounding does not drown it."""
        if self.step_size is not None or not self.adaptive:
            return _Choice(state.step_size, state.test_step, state.cuts, jnp.array(False))
        y, base, slope, gradient = jax.lax.stop_gradient((state.extrapolated, state.base, state.slope, gradient))
        length, bend = _tree.norm(_tree.sub(y, base)), _tree.norm(_tree.sub(gradient, slope))
        later = state.progress.steps > 0
        finite = jnp.isfinite(bend) & jnp.isfinite(jax.lax.stop_gradient(value))
        visible = length > 1e-3 * jnp.sqrt(jnp.asarray(_tree.eps(y), length.dtype)) * _tree.norm(y)
        curvature = jnp.where(length > 0, bend / jnp.where(length > 0, length, 1), 0)
        overshot = later & (~finite | (visible & (curvature * state.step_size > _OVERSHOT)))

        allowed = _SAFETY / jnp.maximum(curvature, jnp.finfo(length.dtype).tiny)
        test_step = state.test_step
        if at.parts.lipschitz is None:
            test_step = jnp.where(visible & finite & ~overshot, jnp.minimum(test_step, allowed), test_step)
        else:
            allowed = jnp.maximum(allowed, test_step)
        growth = 1 + _GROWTH * _PATIENCE / (_PATIENCE + state.cuts.astype(length.dtype))
        growth = jnp.where(state.cuts > 0, growth, _FIRST_GROWTH)
        following = jnp.minimum(state.step_size * growth, allowed)
        following = jnp.where(finite, following, state.step_size * (_SAFETY / _OVERSHOT**2))
        step_size = jnp.where(later & (visible | ~finite), following, state.step_size)
        cuts = state.cuts + (step_size < state.step_size).astype(jnp.int32)
        return _Choice(step_size, test_step, cuts, overshot)
