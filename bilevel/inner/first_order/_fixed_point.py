"""Fixed-point iteration and Anderson acceleration for a problem's own map or its (proximal) gradient step."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._curvature import ITERATIONS, choose_step
from bilevel._needs import MAP, NO_CONSTRAINTS
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner._judge import gradient_step
from bilevel.problem import At

_GROWTH = 2.0  # of the residual over the least so far, at which an extrapolation is undone
_RIDGE = 1e-12  # of the mixing weights' normal equations, relative to their trace


class _State(NamedTuple):
    params: PyTree
    eta: jax.Array  # of the gradient step; 0 if the problem has its own map
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedPointIteration(InnerSolver):
    """x⁺ = (1 − β)x + βT(x).

    T is `Problem.fixed_point`, or else the (proximal) gradient step of length 1/L. Converges if T is a contraction, or for
    β < 1 nonexpansive.

    Args:
      rtol, atol, max_steps: as for `InnerSolver`; the test is on ‖x − T(x)‖.
      damping: β, in (0, 1].

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(fixed_point=lambda x, hparams, data: jnp.cos(x))
      >>> print(bl.inner.FixedPointIteration().solve(problem, jnp.zeros(1), None).params.round(3))
      [0.739]
    """

    needs = (MAP, NO_CONSTRAINTS)

    max_steps: int = 50_000
    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping <= 1:
            raise ValueError(f"{self.name}: damping must be above 0 and at most 1, got {self.damping}")

    def init(self, at: At, params: PyTree) -> _State:
        """Choose the step of the gradient."""
        return _State(params, *_begin(at, params))

    def step(self, at: At, state: _State) -> _State:
        """One application of the map."""
        x = state.params
        moved = _apply(at, x, state.eta)
        distance = _tree.norm(_tree.sub(moved, x))
        x = moved if self.damping == 1 else _tree.add_scaled(x, self.damping, _tree.sub(moved, x))
        return _State(x, state.eta, self.advance(state.progress, x, distance, grad_evals=1))


class _AndersonState(NamedTuple):
    params: PyTree  # T of the last point
    point: jax.Array  # raveled, like all below: where T is taken next
    points: jax.Array  # (memory, n): the last ones, at number % memory
    moves: jax.Array  # (memory, n): T(x) − x of these
    filled: jax.Array
    least: jax.Array  # the smallest ‖T(x) − x‖ so far
    best: jax.Array  # T of the point that it belongs to
    eta: jax.Array
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anderson(InnerSolver):
    """x⁺ = Σᵢ αᵢ((1 − β)xᵢ + βT(xᵢ)) over the last points, with weights that add up to one and make Σᵢ αᵢ(T(xᵢ) − xᵢ) smallest.

    T is as for `FixedPointIteration`. Like a quasi-Newton method for roots: for maps that are expensive or contract slowly, such
    as an implicit layer. If ‖T(x) − x‖ grows to twice the least value seen, it starts over from the best point, so that it
    converges where the plain iteration does. The answer is T of a point, and so feasible. Unrolled, the weights count as
    constants.

    Args:
      rtol, atol, max_steps: as for `InnerSolver`; the test is on ‖x − T(x)‖.
      memory: number of points kept.
      damping: β.

    References: Anderson 1965; Walker & Ni 2011 (type II); Mai & Johansson 2020 (with a prox).

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(fixed_point=lambda x, hparams, data: jnp.cos(x))
      >>> print(bl.inner.Anderson().solve(problem, jnp.zeros(1), None).params.round(3))
      [0.739]
    """

    needs = (MAP, NO_CONSTRAINTS)
    positive = ("memory", "damping")

    max_steps: int = 5000
    memory: int = 5
    damping: float = 1.0

    def init(self, at: At, params: PyTree) -> _AndersonState:
        """An empty memory."""
        flat = ravel_pytree(params)[0]
        empty = jnp.zeros((self.memory, flat.size), flat.dtype)
        infinity = jnp.array(jnp.inf, flat.dtype)
        return _AndersonState(params, flat, empty, empty, jnp.int32(0), infinity, flat, *_begin(at, params))

    def step(self, at: At, state: _AndersonState) -> _AndersonState:
        """One application of the map, and a mix of the points kept."""
        unravel = ravel_pytree(state.params)[1]
        moved = ravel_pytree(_apply(at, unravel(state.point), state.eta))[0]
        move = moved - state.point
        size = jnp.linalg.norm(jax.lax.stop_gradient(move))
        astray = (size > _GROWTH * state.least) | ~jnp.isfinite(size)
        better = size < state.least
        slot = state.progress.steps % self.memory
        points, moves = state.points.at[slot].set(state.point), state.moves.at[slot].set(move)
        filled = jnp.minimum(state.filled + 1, self.memory)
        place = (slot - jnp.arange(self.memory, dtype=slot.dtype)) % self.memory  # newest first
        weights = jax.lax.stop_gradient(_mixing(moves[place], filled))
        mixed = weights @ points[place] + self.damping * (weights @ moves[place])
        usable = jnp.isfinite(jax.lax.stop_gradient(mixed)).all()
        best = jnp.where(better, moved, state.best)
        restart = astray & (state.filled > 0)
        params = unravel(jnp.where(restart, state.best, moved))
        return _AndersonState(
            params=params,
            point=jnp.where(restart, best, jnp.where(usable, mixed, moved)),
            points=points,
            moves=moves,
            filled=jnp.where(restart, 0, filled),
            least=jnp.minimum(size, state.least),
            best=best,
            eta=state.eta,
            progress=self.advance(state.progress, params, jnp.where(restart, state.least, size), grad_evals=1),
        )


def _mixing(moves: jax.Array, filled: jax.Array) -> jax.Array:
    """α of the first `filled` moves, newest first: least ‖Σ αᵢ movesᵢ‖ with Σ αᵢ = 1."""
    known = jnp.arange(len(moves), dtype=filled.dtype) < filled
    changes = jnp.where(known[1:, None], moves[1:] - moves[0], 0)
    gram = changes @ changes.T
    ridge = _RIDGE * jnp.trace(gram) + jnp.where(known[1:], jnp.finfo(gram.dtype).tiny, 1).astype(gram.dtype)
    others = jnp.linalg.solve(gram + jnp.diag(ridge), -changes @ moves[0])
    return jnp.concatenate([1 - jnp.sum(others, keepdims=True), others])


def _begin(at: At, params: PyTree) -> tuple[jax.Array, SolveProgress]:
    """The step of the gradient, and a progress that counts the products it needed."""
    dtype = _tree.dtype(params)
    if at.parts.fixed_point is not None:
        return jnp.zeros((), dtype), SolveProgress.start(dtype)
    eta = choose_step(None, at, params)
    return eta, SolveProgress.start(dtype, hvps=0 if at.parts.lipschitz else ITERATIONS)


def _apply(at: At, params: PyTree, eta: jax.Array) -> PyTree:
    """T."""
    if at.parts.fixed_point is not None:
        return _tree.cast_like(at.fixed_point(params), params)
    return gradient_step(at, params, eta)
