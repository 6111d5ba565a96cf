"""Semismooth Newton on the (proximal) gradient mapping, with bursts of FISTA while a Newton step does not help."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree, linear, optimality
from bilevel._curvature import ITERATIONS, choose_step
from bilevel._needs import LOSS, NO_CONSTRAINTS, SEPARABLE_OR_POLYHEDRAL
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner._judge import gradient_step
from bilevel.inner.first_order._fista import FISTA
from bilevel.problem import At

_DECREASE = 0.5  # of the residual, at which a Newton step is taken
_SHORT, _LONG = 16, 512  # iterations of a burst


class _State(NamedTuple):
    params: PyTree
    eta: jax.Array
    burst: jax.Array  # iterations of FISTA before the next Newton step
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemismoothNewton(InnerSolver):
    """x⁺ = T(x − A⁻¹F(x)) with F(x) = (x − T(x))/η, T the (proximal or projected) gradient step and A = ∂F.

    The Newton system is that of `optimality.ProximalGradient` and `optimality.ProjectedGradient`: symmetric, on the support or
    the active face. Once this is found, a handful of steps reach any accuracy, where first-order methods take thousands:
    the SVM's dual, box- and sign-constrained least squares, lasso-like problems. It begins with a burst of `FISTA`, and a
    Newton step that does not halve ‖F‖ is dropped and followed by another burst, twice as long. On a smooth problem it is
    Newton's method for ∇f = 0. Unrolled, a step is differentiated as T, whose derivative has the same limit.

    Args:
      rtol, atol: as for `InnerSolver`.
      max_steps: limit on Newton steps tried.
      linear: solver of the Newton systems; a loose tolerance is enough, and an answer that missed it is still tried.

    References: Xiao, Li, Wen & Zhang 2018; Li, Sun & Toh 2018.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(
      ...     lambda x, h, data: jnp.sum((x - h) ** 2), projection=lambda x, h, data: jnp.maximum(x, 0), polyhedral=True
      ... )
      >>> print(bl.inner.SemismoothNewton().solve(problem, jnp.ones(2), jnp.array([1.0, -2.0])).params.round(3))
      [1. 0.]
    """

    needs = (LOSS, NO_CONSTRAINTS, SEPARABLE_OR_POLYHEDRAL)

    rtol: float = 1e-8
    max_steps: int = 200
    linear: linear.LinearSolver = dataclasses.field(default_factory=lambda: linear.CG(rtol=1e-2, max_steps=100))

    def init(self, at: At, params: PyTree) -> _State:
        """Choose the step of the gradient mapping."""
        eta = choose_step(None, at, params)
        hvps = 0 if at.parts.lipschitz else ITERATIONS
        return _State(params, eta, jnp.int32(_SHORT), SolveProgress.start(_tree.dtype(params), hvps=hvps))

    def step(self, at: At, state: _State) -> _State:
        """A burst, if one is due, and a Newton step; after the stopping test just T."""
        x = state.params
        pushed = gradient_step(at, x, state.eta)
        progress = self.advance(state.progress, x, _tree.norm(_tree.sub(pushed, x)), grad_evals=1)
        done = progress.status == Status.CONVERGED
        frozen, *constants = jax.lax.stop_gradient((at, state, pushed))
        none = jnp.int32(0)
        new, burst, grad_evals, hvps = jax.lax.cond(
            done, lambda: (constants[1], state.burst, none, none), lambda: self._move(frozen, *constants)
        )
        moved = _tree.add_scaled(pushed, 1, jax.lax.stop_gradient(_tree.sub(new, pushed)))
        progress = dataclasses.replace(progress, grad_evals=progress.grad_evals + grad_evals, hvps=progress.hvps + hvps)
        return _State(moved, state.eta, burst, progress)

    def _move(self, at: At, state: _State, pushed: PyTree) -> tuple[PyTree, jax.Array, jax.Array, jax.Array]:
        """The point after a burst and a Newton step, the next burst, and the gradients and products spent."""
        first_order = FISTA()
        start = first_order.init(at, pushed)
        burst = jax.lax.fori_loop(0, state.burst, lambda _, s: first_order.step(at, s), start)
        x = burst.params
        pushed = gradient_step(at, x, state.eta)
        residual = _tree.sub(x, pushed)
        found = self._system(at, x).solve(self.linear, _tree.scale(1 / state.eta, residual))
        candidate = _tree.sub(x, found.value)
        newton = gradient_step(at, candidate, state.eta)
        good = _tree.norm(_tree.sub(newton, candidate)) <= _DECREASE * _tree.norm(residual)
        following = jnp.where(good, 0, jnp.clip(2 * state.burst, _SHORT, _LONG))
        spent = burst.progress.grad_evals + 2, burst.progress.hvps + found.matvecs
        return _tree.where(good, newton, pushed), following, *spent

    def _system(self, at: At, x: PyTree) -> linear.System:
        """The system of F at x, with the same η as in T."""
        if at.parts.smooth:
            return optimality.Stationary(structure="symmetric").system(at, x)
        mapping = optimality.ProximalGradient if at.parts.projection is None else optimality.ProjectedGradient
        return mapping().system(at, x)
