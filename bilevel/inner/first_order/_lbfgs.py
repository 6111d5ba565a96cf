"""Limited-memory BFGS."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._curvature import curvature_along_gradient
from bilevel._needs import LOSS, SMOOTH
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner.linear_models import _gram
from bilevel.problem import At

_ARMIJO, _CURVATURE, _MAX_TRIALS = 1e-4, 0.9, 30
_STALE = 10.0  # ratio of curvatures


class _Inverse(NamedTuple):
    """The estimate of the inverse Hessian, on raveled vectors."""

    moves: jax.Array  # (memory, n), of unit length, newest last
    changes: jax.Array  # (memory, n): of the gradient, of unit length
    weights: jax.Array  # (memory,): 1/⟨move, change⟩, 0 if empty
    ratios: jax.Array  # (memory,): ‖move‖/‖change‖ before they were normalized
    base: jax.Array | None  # the initial inverse Hessian, (features, features), if not the identity
    scale: jax.Array  # of it

    def initial(self, v: jax.Array) -> jax.Array:
        """The initial inverse Hessian, unscaled, times a vector: the same matrix for each column of params."""
        return v if self.base is None else jnp.ravel(self.base @ v.reshape(len(self.base), -1))

    def times(self, q: jax.Array) -> jax.Array:
        """The two-loop recursion (Nocedal 1980) in units of the pairs. Empty slots have weight 0 and drop out."""

        def newest_first(q: jax.Array, pair: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            move, change, weight, _ = pair
            alpha = weight * (move @ q)
            return q - alpha * change, alpha

        def oldest_first(r: jax.Array, item: tuple[tuple[jax.Array, ...], jax.Array]) -> tuple[jax.Array, None]:
            (move, change, weight, ratio), alpha = item
            return r + (alpha * ratio - weight * (change @ r)) * move, None

        pairs = self[:4]
        q, alphas = jax.lax.scan(newest_first, q, pairs, reverse=True)
        return jax.lax.scan(oldest_first, self.scale * self.initial(q), (pairs, alphas))[0]


class _State(NamedTuple):
    params: PyTree
    value: jax.Array
    gradient: jax.Array  # raveled
    estimate: _Inverse
    lipschitz: jax.Array  # the largest curvature seen
    recent: jax.Array  # the last one seen
    progress: SolveProgress


class _Trial(NamedTuple):
    """The state of a line search."""

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

    For smooth unconstrained problems. The first inverse Hessian is γI, or for a `Problem.linear_model` of up to 512
    features γ(cXᵀX + diag l2)⁻¹ (a half to a third of the steps). Near the precision of the loss, where no decrease is
    visible, the search uses slopes alone (the approximate Wolfe condition). Unrolled, c and the lengths of the steps count as
    constants.

    Args:
      rtol, atol, max_steps: as for `InnerSolver`; L is the largest curvature seen along the steps.
      memory: number of pairs kept.

    References: Liu & Nocedal 1989; Lewis & Overton 2013 (bisection); Hager & Zhang 2005 (approximate Wolfe).

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> print(bl.inner.LBFGS().solve(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).params.round(3))
      [1. 2.]
    """

    needs = (LOSS, SMOOTH)
    estimates_inverse = True
    positive = ("memory",)

    rtol: float = 1e-8
    memory: int = 10

    def prepare(self, at: At) -> PyTree:
        """The Gram matrix of a linear model."""
        return _gram.prepare(at)

    def init(self, at: At, params: PyTree) -> _State:
        """Evaluate the start, and the curvature along its gradient for the first inverse Hessian."""
        (value, gradient), push = jax.linearize(jax.value_and_grad(at.inner_loss), params)
        _, unit = _tree.normalized(jax.lax.stop_gradient(gradient))
        bent = ravel_pytree(jax.lax.stop_gradient(push(unit)[1]))[0]
        flat = ravel_pytree(gradient)[0]
        curvature = _tree.positive(_tree.norm(bent) / _tree.positive(_tree.norm(unit)))
        base = None if at.prepared is None else _gram.inverse(at, ravel_pytree(unit)[0], bent)
        empty = jnp.zeros((self.memory, flat.size), flat.dtype)
        scale = 1 / curvature if base is None else jnp.ones_like(curvature)
        none = jnp.zeros(self.memory, flat.dtype)
        estimate = _Inverse(empty, empty, none, none, base, scale)
        progress = SolveProgress.start(flat.dtype, grad_evals=1, hvps=1)
        return _State(params, value, flat, estimate, curvature, curvature, progress)

    def step(self, at: At, state: _State) -> _State:
        """One quasi-Newton step."""
        flat, unravel = ravel_pytree(state.params)
        estimate = state.estimate
        direction = -estimate.times(state.gradient)
        downhill = direction @ state.gradient < 0
        direction = jnp.where(downhill, direction, -estimate.scale * estimate.initial(state.gradient))
        slope = direction @ state.gradient

        def evaluate(x: jax.Array, hparams: PyTree) -> tuple[jax.Array, jax.Array]:
            value, gradient = jax.value_and_grad(at.replace(hparams=hparams).inner_loss)(unravel(x))
            return value, ravel_pytree(gradient)[0]

        trial = _wolfe_search(
            lambda x: evaluate(x, jax.lax.stop_gradient(at.hparams)),
            *jax.lax.stop_gradient((flat, state.value, direction, slope)),
        )
        x = flat + trial.step * direction
        value, gradient = _already_evaluated(evaluate)(x, at.hparams, trial.value, trial.gradient)
        move, change = x - flat, gradient - state.gradient
        (length, move), (bend, change) = (
            _tree.normalized(move),
            _tree.normalized(change),
        )  # so that no product overflows
        product, spread, eps = move @ change, change @ estimate.initial(change), jnp.finfo(flat.dtype).eps
        ratio = length / _tree.positive(bend)
        useful = (product * ratio > eps * spread * estimate.scale) & (length > 1e-3 * eps**0.5 * _tree.norm(x))
        inverse = jnp.where(useful, 1 / jnp.where(useful, product, 1), 0)

        def push(history: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(useful, jnp.concatenate([history[1:], new[None]]), history)

        length, bend = jax.lax.stop_gradient((length, bend))
        seen = jnp.where(length > 0, bend / _tree.positive(length), state.recent)
        lipschitz = jnp.maximum(state.lipschitz, seen)
        params = unravel(x)
        distance = jnp.where(jnp.isfinite(lipschitz), _tree.norm(gradient) / lipschitz, jnp.nan)
        progress = self.advance(state.progress, params, distance, grad_evals=trial.trials, failed=~trial.accepted)
        moves, changes, weights, ratios = jax.tree.map(push, estimate[:4], (move, change, inverse, ratio))
        scale = jnp.where(useful, product * ratio / _tree.positive(spread), estimate.scale)
        estimate = _Inverse(moves, changes, weights, ratios, estimate.base, scale)
        return _State(params, value, gradient, estimate, lipschitz, seen, progress)

    def confirm(self, at: At, state: _State) -> _State:
        """Judge the point by the curvature there, if much larger ones were seen on the way."""
        converged = state.progress.status == Status.CONVERGED

        def fresh() -> jax.Array:
            return jnp.minimum(
                curvature_along_gradient(at, state.params)[1].astype(state.lipschitz.dtype), state.lipschitz
            )

        stale = converged & (state.lipschitz > _STALE * state.recent)
        lipschitz = jax.lax.cond(stale, fresh, lambda: state.lipschitz)
        distance = _tree.norm(state.gradient) / lipschitz
        judged = self.advance(
            state.progress, state.params, distance, grad_evals=0, hvps=stale.astype(jnp.int32), steps=0
        )
        progress = jax.tree.map(lambda a, b: jnp.where(stale, a, b), judged, state.progress)
        return state._replace(lipschitz=lipschitz, progress=progress)

    def inverse(self, state: _State) -> jax.tree_util.Partial:
        """The two-loop recursion over the pairs kept."""
        return jax.tree_util.Partial(_inverse, state.estimate)


def _inverse(estimate: _Inverse, v: PyTree) -> PyTree:
    flat, unravel = ravel_pytree(v)
    return unravel(estimate.times(flat))


def _wolfe_search(
    evaluate: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    x: jax.Array,
    value: jax.Array,
    direction: jax.Array,
    slope: jax.Array,
) -> _Trial:
    """Bracket and bisect for the weak Wolfe conditions from a unit step."""
    rounding = 10 * jnp.finfo(x.dtype).eps * jnp.abs(value)
    invisible = -slope <= rounding / 10  # the loss cannot show the decrease that is left: trust the quasi-Newton step

    def look(step: jax.Array, low: jax.Array, high: jax.Array, count: jax.Array) -> _Trial:
        new_value, gradient = evaluate(x + step * direction)
        new_slope = direction @ gradient
        decreased = new_value <= value + _ARMIJO * step * slope
        flat = (new_value <= value + rounding) & (new_slope <= (2 * _ARMIJO - 1) * slope)
        low_enough = decreased | flat | (invisible & (new_value <= value + rounding))
        steep = (new_slope < _CURVATURE * slope) & ~invisible
        high = jnp.where(low_enough, high, step)
        low = jnp.where(low_enough & steep, step, low)
        following = jnp.where(jnp.isinf(high), 2 * low, (low + high) / 2)
        return _Trial(step, following, low, high, new_value, gradient, low_enough & ~steep, count + 1)

    zero, infinity = jnp.zeros((), x.dtype), jnp.array(jnp.inf, x.dtype)
    return jax.lax.while_loop(
        lambda t: ~t.accepted & (t.trials < _MAX_TRIALS),
        lambda t: look(t.following, t.low, t.high, t.trials),
        look(jnp.ones((), x.dtype), zero, infinity, jnp.int32(0)),
    )


def _already_evaluated(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """`evaluate(x, hparams)` at a known value: only its derivative, if asked for, is computed."""

    @jax.custom_jvp
    def known(x: jax.Array, hparams: PyTree, value: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        return value, gradient

    @known.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        _, derivative = jax.jvp(evaluate, primals[:2], tangents[:2])
        return primals[2:], derivative

    return known
