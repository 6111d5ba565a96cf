"""Accelerated proximal gradient."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._curvature import ITERATIONS, choose_step, unit_step
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner._judge import gradient_step
from bilevel.problem import At

_SAFETY = 0.7  # step times curvature; momentum is stable below 4/3
_OVERSHOT = 4.0  # step times curvature beyond which a step is taken back
_FIRST_GROWTH, _GROWTH, _PATIENCE = 2.0, 0.1, 10


class _State(NamedTuple):
    params: PyTree
    extrapolated: PyTree
    base: PyTree  # where the last step began
    slope: PyTree  # the gradient there
    momentum: jax.Array
    step_size: jax.Array
    test_step: jax.Array  # 1/L, the step of the stopping test
    cuts: jax.Array  # how often curvature has shortened the step
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class FISTA(InnerSolver):
    """Accelerated proximal gradient with adaptive restart and adaptive steps, one gradient per iteration.

    x⁺ = prox_{ηg}(y − η∇f(y)),  y⁺ = x⁺ + β(x⁺ − x). Momentum restarts whenever it points uphill. For every problem with a
    differentiable loss: with a projection it is accelerated projected gradient, with neither prox nor projection accelerated
    gradient descent; `acceleration=False` gives the plain methods.

    η follows the curvature c = ‖∇f(y⁺) − ∇f(y)‖/‖y⁺ − y‖ along the path, which is often far below L: it grows, by less
    the more often it had to be cut, up to 0.7/c, and never falls below 1/L if `Problem.lipschitz` gives L. Where
    ηc > 4, or the loss is not finite, the step is taken back and repeated with a shorter one. Unrolled, η is 1/L, since a
    longer one need not suit the derivative, and restarts count as constants.

    Args:
      rtol, atol, max_steps: as for `InnerSolver`.
      step_size: a fixed η, instead.
      acceleration: use momentum.
      adaptive: follow the curvature; False keeps η at 1/L, L from `Problem.lipschitz` or a power iteration.

    References: Beck & Teboulle 2009; O'Donoghue & Candès 2015 (gradient restart); Malitsky & Mishchenko 2020 (steps from
    local curvature, without momentum).

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(lambda x, h, data: jnp.sum((x - h) ** 2), projection=lambda x, h, data: jnp.maximum(x, 0))
      >>> print(bl.inner.FISTA().solve(problem, jnp.ones(2), jnp.array([1.0, -2.0])).params.round(3))
      [1. 0.]
    """

    positive = ("step_size",)

    max_steps: int = 5000
    step_size: float | None = None
    acceleration: bool = True
    adaptive: bool = True

    def unrollable(self) -> "FISTA":
        """With steps of length 1/L."""
        return dataclasses.replace(self, adaptive=False)

    @property
    def _fixed(self) -> bool:
        """Whether the step stays as it is at the start."""
        return self.step_size is not None or not self.adaptive

    def init(self, at: At, params: PyTree) -> _State:
        """Choose the first step size."""
        dtype, stated = _tree.dtype(params), at.parts.lipschitz is not None
        if stated or self._fixed:
            step_size = choose_step(self.step_size, at, params)
            progress = SolveProgress.start(dtype, hvps=0 if stated or self.step_size is not None else ITERATIONS)
        else:
            step_size = unit_step(at, params)
            progress = SolveProgress.start(dtype, 1, 1)
        zero = _tree.zeros_like(params)
        return _State(params, params, params, zero, jnp.ones((), dtype), step_size, step_size, jnp.int32(0), progress)

    def step(self, at: At, state: _State) -> _State:
        """One proximal gradient step from the extrapolated point, or once more from the last one if it overshot."""
        y = state.extrapolated
        value, gradient = jax.value_and_grad(at.inner_loss)(y)
        overshot = jnp.array(False)
        if not self._fixed:
            state, overshot = self._adapted(at, state, value, gradient)
        y, gradient = _tree.where(overshot, (state.base, state.slope), (y, gradient))
        params = gradient_step(at, y, state.step_size, gradient)
        moved, forward = _tree.sub(params, y), _tree.sub(params, state.params)

        restart = (_tree.vdot(moved, forward) < 0) | overshot
        momentum = jnp.where(restart, 1, (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2)
        beta = jnp.where(restart, 0, (state.momentum - 1) / momentum) if self.acceleration else 0.0
        progress = self.advance(
            state.progress,
            params,
            self._distance(at, state, y, gradient, moved),
            grad_evals=1,
            failed=state.step_size < _tree.eps(params) ** 0.75 * state.test_step,
            failure=Status.BREAKDOWN,
        )
        return state._replace(
            params=params,
            extrapolated=_tree.add_scaled(params, jax.lax.stop_gradient(beta), forward),
            base=y,
            slope=gradient,
            momentum=jax.lax.stop_gradient(momentum.astype(state.momentum.dtype)),
            progress=progress,
        )

    def _distance(self, at: At, state: _State, y: PyTree, gradient: PyTree, moved: PyTree) -> jax.Array:
        """How far a step of at least 1/L moves y: after a step that was cut to almost nothing, a small move proves nothing."""
        if self._fixed:
            return _tree.norm(moved)

        def longer() -> jax.Array:
            return _tree.norm(_tree.sub(gradient_step(at, y, state.test_step, gradient), y))

        return jax.lax.cond(state.step_size < state.test_step, longer, lambda: _tree.norm(moved))

    def _adapted(self, at: At, state: _State, value: jax.Array, gradient: PyTree) -> tuple[_State, jax.Array]:
        """The next step, from the curvature between the last two gradients if this is visible, and whether the last overshot."""
        y, base, slope, gradient = jax.lax.stop_gradient((state.extrapolated, state.base, state.slope, gradient))
        length, bend = _tree.norm(_tree.sub(y, base)), _tree.norm(_tree.sub(gradient, slope))
        later = state.progress.steps > 0
        finite = jnp.isfinite(bend) & jnp.isfinite(jax.lax.stop_gradient(value))
        visible = length > 1e-3 * jnp.sqrt(jnp.asarray(_tree.eps(y), length.dtype)) * _tree.norm(y)
        curvature = jnp.where(length > 0, bend / _tree.positive(length), 0)
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
        return state._replace(step_size=step_size, test_step=test_step, cuts=cuts), overshot
