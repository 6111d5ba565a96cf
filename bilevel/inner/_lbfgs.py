"""Limited-memory BFGS."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _checks
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, Progress
from bilevel.inner._judge import curvature_along_gradient
from bilevel.inner._needs import LOSS, SMOOTH, Need

_ARMIJO, _CURVATURE, _MAX_TRIALS = 1e-4, 0.9, 30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    params: PyTree
    value: jax.Array
    gradient: jax.Array  # raveled, like all below
    moves: jax.Array  # (memory, n), newest last
    changes: jax.Array  # (memory, n): of the gradient
    weights: jax.Array  # (memory,): 1/⟨move, change⟩, 0 where empty
    scale: jax.Array  # of the initial inverse Hessian
    lipschitz: jax.Array  # the largest curvature seen
    progress: Progress


class _Trial(NamedTuple):
    step: jax.Array  # the last one tried, to which value and gradient belong
    following: jax.Array
    low: jax.Array
    high: jax.Array
    value: jax.Array
    gradient: jax.Array
    accepted: jax.Array
    trials: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class LBFGS(InnerSolver):
    """L-BFGS: two-loop recursion and a bisection line search for the weak Wolfe conditions.

    For smooth unconstrained problems. Near the precision of the loss, where decrease drowns in rounding, the search goes
    by slopes alone (the approximate Wolfe condition). Unrolled, the lengths of the steps count as constants.

    Args:
      memory: pairs kept.

    References: Liu & Nocedal 1989; Lewis & Overton 2013 (bisection); Hager & Zhang 2005 (approximate Wolfe).
    """

    needs: ClassVar[tuple[Need, ...]] = (LOSS, SMOOTH)

    rtol: float = 1e-8
    memory: int = 10

    def __post_init__(self):
        super().__post_init__()
        _checks.require_positive("inner.LBFGS", memory=self.memory)

    def init(self, problem, params, hparams, data):
        """Evaluate the start, and the curvature along its gradient for the first scale."""
        value = problem.inner_loss(params, hparams, data)
        gradient, curvature = curvature_along_gradient(problem, params, hparams, data)
        flat = ravel_pytree(gradient)[0]
        curvature = jax.lax.stop_gradient(curvature.astype(flat.dtype))
        empty = jnp.zeros((self.memory, flat.size), flat.dtype)
        return _State(
            params,
            value,
            flat,
            empty,
            empty,
            jnp.zeros(self.memory, flat.dtype),
            1 / curvature,
            curvature,
            Progress.start(flat.dtype, grad_evals=1, hvps=1),
        )

    def step(self, problem, state, hparams, data):
        """One quasi-Newton step."""
        flat, unravel = ravel_pytree(state.params)
        direction = -_two_loop(*_curvature(state), state.gradient)
        slope = direction @ state.gradient
        steepest = ~(slope < 0)
        direction = jnp.where(steepest, -state.scale * state.gradient, direction)
        slope = direction @ state.gradient

        def evaluate(x, hparams):
            value, gradient = jax.value_and_grad(problem.inner_loss)(unravel(x), hparams, data)
            return value, ravel_pytree(gradient)[0]

        trial = _line_search(
            lambda x: evaluate(x, jax.lax.stop_gradient(hparams)),
            *jax.lax.stop_gradient((flat, state.value, direction, slope)),
        )
        x = flat + trial.step * direction
        value, gradient = _already_evaluated(evaluate)(x, hparams, trial.value, trial.gradient)
        move, change = x - flat, gradient - state.gradient
        product, squared = move @ change, change @ change
        eps = jnp.finfo(flat.dtype).eps
        useful = (product > eps * squared * state.scale) & (move @ move > (1e-3 * jnp.sqrt(eps)) ** 2 * (x @ x))
        inverse = jnp.where(useful, 1 / jnp.where(useful, product, 1), 0)

        def push(history, new):
            return jnp.where(useful, jnp.concatenate([history[1:], new[None]]), history)

        length = jnp.linalg.norm(jax.lax.stop_gradient(move))
        seen = jnp.linalg.norm(jax.lax.stop_gradient(change)) / jnp.where(length > 0, length, 1)
        lipschitz = jnp.maximum(state.lipschitz, jnp.where(length > 0, seen, 0))
        params = unravel(x)
        return _State(
            params=params,
            value=value,
            gradient=gradient,
            moves=push(state.moves, move),
            changes=push(state.changes, change),
            weights=push(state.weights, inverse),
            scale=jnp.where(useful, product / jnp.where(squared > 0, squared, 1), state.scale),
            lipschitz=lipschitz,
            progress=self.advance(
                state.progress,
                params,
                jnp.linalg.norm(gradient) / lipschitz,
                grad_evals=trial.trials,
                failed=~trial.accepted,
                failure=Status.STAGNATED,
            ),
        )

    def inverse(self, state):
        """The two-loop recursion over the pairs kept."""
        return jax.tree_util.Partial(_inverse, *_curvature(state))


def _curvature(state: _State) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What the inverse-Hessian estimate is made of."""
    return state.moves, state.changes, state.weights, state.scale


def _two_loop(moves, changes, weights, scale, q: jax.Array) -> jax.Array:
    """The inverse-Hessian estimate times a vector (Nocedal 1980). Empty slots have weight 0 and drop out."""
    pairs = (moves, changes, weights)

    def newest_first(q, pair):
        move, change, weight = pair
        alpha = weight * (move @ q)
        return q - alpha * change, alpha

    def oldest_first(r, item):
        (move, change, weight), alpha = item
        return r + (alpha - weight * (change @ r)) * move, None

    q, alphas = jax.lax.scan(newest_first, q, pairs, reverse=True)
    r, _ = jax.lax.scan(oldest_first, scale * q, (pairs, alphas))
    return r


def _inverse(moves, changes, weights, scale, v: PyTree) -> PyTree:
    flat, unravel = ravel_pytree(v)
    return unravel(_two_loop(moves, changes, weights, scale, flat))


def _already_evaluated(evaluate):
    """`evaluate(x, hparams)` where its value is known: only its derivative, if asked for, is computed."""

    @jax.custom_jvp
    def known(x, hparams, value, gradient):
        return value, gradient

    @known.defjvp
    def _(primals, tangents):
        _, derivative = jax.jvp(evaluate, primals[:2], tangents[:2])
        return primals[2:], derivative

    return known


def _line_search(evaluate, x, value, direction, slope) -> _Trial:
    """Bracket and bisect for the weak Wolfe conditions from a unit step."""
    rounding = 10 * jnp.finfo(x.dtype).eps * jnp.abs(value)
    invisible = -slope <= rounding / 10  # the loss cannot show what is left to gain: trust the quasi-Newton step

    def look(step, low, high, count):
        new_value, gradient = evaluate(x + step * direction)
        new_slope = direction @ gradient
        decreased = new_value <= value + _ARMIJO * step * slope
        flat = (new_value <= value + rounding) & (new_slope <= (2 * _ARMIJO - 1) * slope)
        low_enough = decreased | flat | (invisible & (new_value <= value + rounding))
        steep = (new_slope < _CURVATURE * slope) & ~invisible
        accepted = low_enough & ~steep
        high = jnp.where(low_enough, high, step)
        low = jnp.where(low_enough & steep, step, low)
        following = jnp.where(jnp.isinf(high), 2 * low, (low + high) / 2)
        return _Trial(step, following, low, high, new_value, gradient, accepted, count + 1)

    zero, infinity = jnp.zeros((), x.dtype), jnp.array(jnp.inf, x.dtype)
    return jax.lax.while_loop(
        lambda t: ~t.accepted & (t.trials < _MAX_TRIALS),
        lambda t: look(t.following, t.low, t.high, t.trials),
        look(jnp.ones((), x.dtype), zero, infinity, jnp.int32(0)),
    )
