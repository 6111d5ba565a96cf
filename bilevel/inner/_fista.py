"""Accelerated proximal gradient."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, Progress
from bilevel.inner._judge import curvature_along_gradient

_MAX_HALVINGS = 60


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    params: PyTree
    extrapolated: PyTree
    momentum: jax.Array
    step_size: jax.Array
    progress: Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class FISTA(InnerSolver):
    """Accelerated proximal gradient with adaptive restart and backtracking.

    x⁺ = prox_{ηg}(y − η∇f(y)),  y⁺ = x⁺ + β(x⁺ − x). Momentum restarts whenever it points uphill. Serves every problem
    with a smooth loss: with a projection it is accelerated projected gradient, with neither prox nor projection
    accelerated gradient descent; `acceleration=False` gives the plain kinds.

    The step is 1/L where `Problem.lipschitz` gives L; else it starts from the curvature along the first gradient and is
    halved until the loss lies below its quadratic model. Unrolled, steps and restarts count as constants.

    Args:
      step_size: a fixed η, instead.
      acceleration: use momentum.

    References: Beck & Teboulle 2009; O'Donoghue & Candès 2015 (gradient restart).
    """

    max_steps: int = 5000
    step_size: float | None = None
    acceleration: bool = True

    def __post_init__(self):
        super().__post_init__()
        _checks.require_positive("inner.FISTA", step_size=self.step_size)

    def init(self, problem, params, hparams, data):
        """Choose the first step size."""
        dtype = _tree.dtype(params)
        grad_evals = hvps = 0
        if self.step_size is not None:
            step_size = jnp.asarray(self.step_size, dtype)
        elif problem.lipschitz is not None:
            step_size = 1 / jnp.asarray(problem.lipschitz(hparams, data), dtype)
        else:
            _, curvature = curvature_along_gradient(problem, params, hparams, data)
            step_size, grad_evals, hvps = 1 / curvature.astype(dtype), 1, 1
        step_size = jax.lax.stop_gradient(step_size)
        return _State(params, params, jnp.ones((), dtype), step_size, Progress.start(dtype, grad_evals, hvps))

    def step(self, problem, state, hparams, data):
        """One proximal-gradient step from the extrapolated point."""
        y = state.extrapolated
        value, gradient = jax.value_and_grad(problem.inner_loss)(y, hparams, data)
        backtracking = self.step_size is None and problem.lipschitz is None
        step_size = state.step_size
        if backtracking:
            step_size = self._backtrack(problem, y, value, gradient, step_size, hparams, data)
        params = problem.proximal_step(_tree.add_scaled(y, -step_size, gradient), hparams, data, step_size)
        moved = _tree.sub(params, y)

        forward = _tree.sub(params, state.params)
        uphill = _tree.vdot(moved, forward) < 0
        momentum = jnp.where(uphill, 1, (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2)
        beta = jnp.where(uphill, 0, (state.momentum - 1) / momentum) if self.acceleration else 0.0
        return _State(
            params=params,
            extrapolated=_tree.add_scaled(params, jax.lax.stop_gradient(beta), forward),
            momentum=jax.lax.stop_gradient(momentum.astype(state.momentum.dtype)),
            step_size=step_size,
            progress=self.advance(
                state.progress,
                params,
                _tree.norm(moved),
                grad_evals=1,
                failed=backtracking & (step_size < state.step_size * 2.0 ** (1 - _MAX_HALVINGS)),
                failure=Status.BREAKDOWN,
            ),
        )

    def _backtrack(self, problem, y, value, gradient, step_size, hparams, data):
        """Halve the step until f(x⁺) ≤ f(y) + ⟨∇f(y), d⟩ + ‖d‖²/(2η), up to rounding; the search is not differentiated."""
        y, value, gradient, hparams = jax.lax.stop_gradient((y, value, gradient, hparams))
        slack = 10 * _tree.eps(y) * jnp.abs(value)

        def too_long(carry):
            step_size, halvings = carry
            x = problem.proximal_step(_tree.add_scaled(y, -step_size, gradient), hparams, data, step_size)
            d = _tree.sub(x, y)
            model = value + _tree.vdot(gradient, d) + _tree.vdot(d, d) / (2 * step_size)
            above = ~(problem.inner_loss(x, hparams, data) <= model + slack)
            return above & (halvings < _MAX_HALVINGS) & jnp.isfinite(value)

        step_size, _ = jax.lax.while_loop(
            too_long, lambda carry: (carry[0] / 2, carry[1] + 1), (step_size, jnp.int32(0))
        )
        return step_size
