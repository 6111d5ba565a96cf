"""Limited-memory BFGS."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _checks
from bilevel._needs import LOSS, SMOOTH, Need
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner.first_order._wolfe import wolfe_search
from bilevel.inner.linear_models import _gram
from bilevel.problem import At


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    params: PyTree
    value: jax.Array
    gradient: jax.Array  # raveled, like all below
    moves: jax.Array  # (memory, n), newest last
    changes: jax.Array  # (memory, n): of the gradient
    weights: jax.Array  # (memory,): 1/⟨move, change⟩, 0 where empty
    base: jax.Array | None  # the initial inverse Hessian, (features, features), if not the identity
    scale: jax.Array  # of it
    lipschitz: jax.Array  # the largest curvature seen
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class LBFGS(InnerSolver):
    """L-BFGS: two-loop recursion and a bisection line search for the weak Wolfe conditions.

    For smooth unconstrained problems. It starts from γI as inverse Hessian, or for a `Problem.linear_model` of up to 512
    features from γ(cXᵀX + diag l2)⁻¹ (a half to a third of the steps). Near the precision of the loss, where decrease
    drowns in rounding, the search goes by slopes alone (the approximate Wolfe condition). Unrolled, c and the lengths of
    the steps count as constants.

    Args:
      memory: pairs kept.

    References: Liu & Nocedal 1989; Lewis & Overton 2013 (bisection); Hager & Zhang 2005 (approximate Wolfe).
    """

    needs: ClassVar[tuple[Need, ...]] = (LOSS, SMOOTH)
    estimates_inverse: ClassVar[bool] = True

    rtol: float = 1e-8
    memory: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive("inner.LBFGS", memory=self.memory)

    def prepare(self, at: At) -> PyTree:
        """The Gram matrix of a linear model."""
        return _gram.prepare(at)

    def init(self, at: At, params: PyTree) -> _State:
        """Evaluate the start, and the curvature along its gradient for the first inverse Hessian."""
        (value, gradient), push = jax.linearize(jax.value_and_grad(at.inner_loss), params)
        bent = ravel_pytree(jax.lax.stop_gradient(push(gradient)[1]))[0]
        flat = ravel_pytree(gradient)[0]
        size = jnp.linalg.norm(jax.lax.stop_gradient(flat))
        curvature = jnp.linalg.norm(bent) / jnp.where(size > 0, size, 1)
        curvature = jnp.where(curvature > 0, curvature, 1)
        base = None if at.prepared is None else _gram.inverse(at, flat, bent)
        empty = jnp.zeros((self.memory, flat.size), flat.dtype)
        return _State(
            params=params,
            value=value,
            gradient=flat,
            moves=empty,
            changes=empty,
            weights=jnp.zeros(self.memory, flat.dtype),
            base=base,
            scale=1 / curvature if base is None else jnp.ones_like(curvature),
            lipschitz=curvature,
            progress=SolveProgress.start(flat.dtype, grad_evals=1, hvps=1),
        )

    def step(self, at: At, state: _State) -> _State:
        """One quasi-Newton step."""
        flat, unravel = ravel_pytree(state.params)
        direction = -_two_loop(*_curvature(state), state.gradient)
        slope = direction @ state.gradient
        steepest = ~(slope < 0)
        direction = jnp.where(steepest, -state.scale * _apply(state.base, state.gradient), direction)
        slope = direction @ state.gradient

        def evaluate(x: jax.Array, hparams: PyTree) -> tuple[jax.Array, jax.Array]:
            value, gradient = jax.value_and_grad(at.replace(hparams=hparams).inner_loss)(unravel(x))
            return value, ravel_pytree(gradient)[0]

        trial = wolfe_search(
            lambda x: evaluate(x, jax.lax.stop_gradient(at.hparams)),
            *jax.lax.stop_gradient((flat, state.value, direction, slope)),
        )
        x = flat + trial.step * direction
        value, gradient = _already_evaluated(evaluate)(x, at.hparams, trial.value, trial.gradient)
        move, change = x - flat, gradient - state.gradient
        product, squared = move @ change, change @ _apply(state.base, change)
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
            base=state.base,
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


def _curvature(state: _State) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """What the inverse-Hessian estimate is made of."""
    return state.moves, state.changes, state.weights, state.base, state.scale


def _apply(base: jax.Array | None, v: jax.Array) -> jax.Array:
    """The initial inverse Hessian, unscaled, times a raveled vector: the same matrix for each column of params."""
    return v if base is None else jnp.ravel(base @ v.reshape(len(base), -1))


def _two_loop(moves, changes, weights, base, scale, q: jax.Array) -> jax.Array:
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
    r, _ = jax.lax.scan(oldest_first, scale * _apply(base, q), (pairs, alphas))
    return r


def _inverse(moves, changes, weights, base, scale, v: PyTree) -> PyTree:
    flat, unravel = ravel_pytree(v)
    return unravel(_two_loop(moves, changes, weights, base, scale, flat))


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
