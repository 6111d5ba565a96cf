"""Mirror descent on rows of simplices."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._curvature import curvature_along_gradient
from bilevel._needs import LOSS, NO_CONSTRAINTS, PROJECTION, Need
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.problem import At

_SAFETY = 0.7


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    params: PyTree
    logs: PyTree  # log x, −∞ where x is zero
    gradient: PyTree
    step_size: jax.Array
    test_step: jax.Array  # 1/L, the step by which the stopping test is taken
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class MirrorDescent(InnerSolver):
    """x⁺ ∝ x·exp(−η∇f(x)) on rows of simplices: mirror descent with the negative entropy (exponentiated gradient).

    A row lies along the last axis of each leaf and sums to one; start inside, as entries that are exactly zero stay zero. The
    logarithms are carried, so that small entries lose no precision. Needs `Problem.projection`, by which the answer is
    judged: a set that is not rows of simplices ends as `MAX_STEPS`, not as converged.

    Args:
      step_size: η for the first `decay_after` steps, then η/√(steps beyond it). None: a step is taken back where
        ⟨∇f(x⁺) − ∇f(x), d⟩ > ⟨log x⁺ − log x, d⟩/η with d = x⁺ − x, so that a convex loss never grows; the next one
        aims at 0.7 of the longest that this allows. One gradient per step.
      decay_after: None keeps a given step as it is.

    References: Beck & Teboulle 2003; Bauschke, Bolte & Teboulle 2017 (relative smoothness).
    """

    needs: ClassVar[tuple[Need, ...]] = (LOSS, NO_CONSTRAINTS, PROJECTION)

    max_steps: int = 20_000
    step_size: float | None = None
    decay_after: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive("inner.MirrorDescent", step_size=self.step_size, decay_after=self.decay_after)

    def init(self, at: At, params: PyTree) -> _State:
        """Take logarithms, and a first step from the curvature along the gradient."""
        dtype = _tree.dtype(params)
        logs = jax.tree.map(lambda x: jnp.log(jnp.maximum(x, 0)), params)
        params = _softmax(logs)
        gradient, curvature = curvature_along_gradient(at, params)
        lipschitz = at.lipschitz()
        test_step = 1 / (curvature if lipschitz is None else lipschitz)
        test_step = jax.lax.stop_gradient(test_step.astype(dtype))
        step_size = test_step if self.step_size is None else jnp.asarray(self.step_size, dtype)
        return _State(params, logs, gradient, step_size, test_step, SolveProgress.start(dtype, 1, 1))

    def step(self, at: At, state: _State) -> _State:
        """One exponentiated-gradient step, taken back if it is too long."""
        logs = _moved(state.logs, state.gradient, state.step_size)
        params = _softmax(logs)
        value, gradient = jax.value_and_grad(at.inner_loss)(params)
        if self.step_size is None:
            step_size, back = self._judged(state, logs, params, value, gradient)
            logs, params, gradient = _tree.where(
                back, (state.logs, state.params, state.gradient), (logs, params, gradient)
            )
        else:
            step_size = self._scheduled(state, self.step_size)
        pushed = at.proximal_step(_tree.add_scaled(params, -state.test_step, gradient), state.test_step)
        distance = _tree.norm(_tree.sub(pushed, params))
        progress = self.advance(state.progress, params, distance, grad_evals=1)
        return _State(params, logs, gradient, step_size, state.test_step, progress)

    def _judged(self, state, logs, params, value, gradient):
        """The next step size, and whether this step is to be taken back, by the curvature relative to the entropy's."""
        old, (logs, params, gradient) = jax.lax.stop_gradient((state, (logs, params, gradient)))
        d = _tree.sub(params, old.params)
        bend = _tree.vdot(_tree.sub(gradient, old.gradient), d)
        divergence = _symmetric_divergence(d, logs, old.logs)
        finite = jnp.isfinite(bend) & jnp.isfinite(divergence) & jnp.isfinite(jax.lax.stop_gradient(value))
        eps = jnp.asarray(_tree.eps(d), divergence.dtype)
        visible = _tree.norm(d) > 1e-3 * jnp.sqrt(eps) * _tree.norm(old.params)
        share = old.step_size * bend / jnp.where(divergence > 0, divergence, 1)  # of the longest step that is safe
        room = _SAFETY / jnp.maximum(share, _SAFETY / 16)
        room = jnp.where(visible, jnp.where(room > 1, room**0.25, room), 1)
        return old.step_size * jnp.where(finite, room, 1 / 16), ~finite | (visible & (share > 1))

    def _scheduled(self, state, given):
        """A given step, decaying after its first `decay_after` times."""
        if self.decay_after is None:
            return state.step_size
        beyond = jnp.maximum(state.progress.steps + 2 - self.decay_after, 1).astype(state.step_size.dtype)
        return given / jnp.sqrt(beyond)


def _softmax(logs: PyTree) -> PyTree:
    """exp(logs) with rows that sum to one; what would underflow is the least normal number, so that it can come back."""

    def inside(y):
        x = jax.nn.softmax(y, axis=-1)
        return jnp.where(jnp.isfinite(y), jnp.maximum(x, jnp.finfo(x.dtype).tiny), x)

    return jax.tree.map(inside, logs)


def _moved(logs: PyTree, gradient: PyTree, step_size: jax.Array) -> PyTree:
    """log x⁺, each row normalized; −∞ stays −∞."""
    return jax.tree.map(
        lambda y, g: jax.nn.log_softmax(y - step_size.astype(y.dtype) * jnp.where(jnp.isfinite(y), g, 0), axis=-1),
        logs,
        gradient,
    )


def _symmetric_divergence(d: PyTree, logs_after: PyTree, logs: PyTree) -> jax.Array:
    """KL(x⁺‖x) + KL(x‖x⁺) = ⟨log x⁺ − log x, d⟩, with nothing from entries that stay zero."""
    return _tree.vdot(jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(b), a - b, 0), logs_after, logs), d)
