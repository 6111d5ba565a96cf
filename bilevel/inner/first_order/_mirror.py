"""Mirror descent on rows of simplices."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._curvature import unit_step
from bilevel._needs import LOSS, NO_CONSTRAINTS, PROJECTION
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner._judge import gradient_step
from bilevel.problem import At

_SAFETY = 0.7


class _State(NamedTuple):
    params: PyTree
    logs: PyTree  # log x, −∞ where x is zero
    gradient: PyTree
    step_size: jax.Array
    test_step: jax.Array  # 1/L, the step of the stopping test
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class MirrorDescent(InnerSolver):
    """x⁺ ∝ x·exp(−η∇f(x)) on rows of simplices: mirror descent with the negative entropy (exponentiated gradient).

    Each leaf of params has shape (…, n), and its rows along the last axis sum to one. Start inside: entries that are exactly
    zero stay zero. The logarithms are carried, so that small entries lose no precision. Needs `Problem.projection`, by which
    the answer is judged: a set that is not rows of simplices ends as `MAX_STEPS`, not as converged.

    Args:
      rtol, atol, max_steps: as for `InnerSolver`; the test is on the projected gradient step.
      step_size: η for the first `decay_after` steps, then η/√(steps beyond it). None: a step is taken back where
        ⟨∇f(x⁺) − ∇f(x), d⟩ > ⟨log x⁺ − log x, d⟩/η with d = x⁺ − x, so that a convex loss never grows; the next one
        aims at 0.7 of the longest that this allows. One gradient per step.
      decay_after: None keeps a given step.

    References: Beck & Teboulle 2003; Bauschke, Bolte & Teboulle 2017 (relative smoothness).

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> from bilevel.operators.projection import projection_simplex
      >>> problem = bl.Problem(lambda x, h, data: jnp.sum((x - h) ** 2), projection=lambda x, h, data: projection_simplex(x))
      >>> print(bl.inner.MirrorDescent().solve(problem, jnp.ones(2) / 2, jnp.array([1.0, 0.5])).params.round(2))
      [0.75 0.25]
    """

    needs = (LOSS, NO_CONSTRAINTS, PROJECTION)
    positive = ("step_size", "decay_after")

    max_steps: int = 20_000
    step_size: float | None = None
    decay_after: int | None = None

    def init(self, at: At, params: PyTree) -> _State:
        """Take logarithms, and a first step from the curvature along the gradient."""
        logs = jax.tree.map(lambda x: jnp.log(jnp.maximum(x, 0)), params)
        params = _softmax(logs)
        test_step = unit_step(at, params)
        step_size = test_step if self.step_size is None else jnp.asarray(self.step_size, test_step.dtype)
        progress = SolveProgress.start(test_step.dtype, 1, int(at.parts.lipschitz is None))
        return _State(params, logs, at.gradient(params), step_size, test_step, progress)

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
        pushed = gradient_step(at, params, state.test_step, gradient)
        progress = self.advance(state.progress, params, _tree.norm(_tree.sub(pushed, params)), grad_evals=1)
        return _State(params, logs, gradient, step_size, state.test_step, progress)

    def _judged(
        self, state: _State, logs: PyTree, params: PyTree, value: jax.Array, gradient: PyTree
    ) -> tuple[jax.Array, jax.Array]:
        """The next step size, and whether to take this step back, by the curvature relative to that of the entropy."""
        old, (logs, params, gradient) = jax.lax.stop_gradient((state, (logs, params, gradient)))
        d = _tree.sub(params, old.params)
        bend = _tree.vdot(_tree.sub(gradient, old.gradient), d)
        divergence = _symmetric_divergence(d, logs, old.logs)
        finite = jnp.isfinite(bend) & jnp.isfinite(divergence) & jnp.isfinite(jax.lax.stop_gradient(value))
        eps = jnp.asarray(_tree.eps(d), divergence.dtype)
        visible = _tree.norm(d) > 1e-3 * jnp.sqrt(eps) * _tree.norm(old.params)
        share = old.step_size * bend / _tree.positive(divergence)  # of the longest safe step
        room = _SAFETY / jnp.maximum(share, _SAFETY / 16)
        room = jnp.where(visible, jnp.where(room > 1, room**0.25, room), 1)
        return old.step_size * jnp.where(finite, room, 1 / 16), ~finite | (visible & (share > 1))

    def _scheduled(self, state: _State, given: float) -> jax.Array:
        """A given step, decaying after its first `decay_after` times."""
        if self.decay_after is None:
            return state.step_size
        beyond = jnp.maximum(state.progress.steps + 2 - self.decay_after, 1).astype(state.step_size.dtype)
        return given / jnp.sqrt(beyond)


def _softmax(logs: PyTree) -> PyTree:
    """exp(logs), rows summing to one; what would underflow becomes the least normal number, so that it can grow again."""

    def inside(y: jax.Array) -> jax.Array:
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
    """KL(x⁺‖x) + KL(x‖x⁺) = ⟨log x⁺ − log x, d⟩, without the entries that stay zero."""
    return _tree.vdot(jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(b), a - b, 0), logs_after, logs), d)
