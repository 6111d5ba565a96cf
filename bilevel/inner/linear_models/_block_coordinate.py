"""Block coordinate descent on working sets."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._curvature import unit_step
from bilevel._needs import LOSS, NO_CONSTRAINTS
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner.linear_models._blocks import BLOCKS, SEPARATE, Blocks, blocks_of, prepare
from bilevel.problem import At

_WINDOW = 5  # sweeps between extrapolations
_LEAST = 100  # blocks in a working set


class _State(NamedTuple):
    params: jax.Array
    image: jax.Array
    test_step: jax.Array  # 1/L, the step of the stopping test
    progress: SolveProgress


class _Sweep(NamedTuple):
    x: jax.Array
    image: jax.Array
    blocks: jax.Array  # the working set, in its first `size` places
    size: jax.Array
    moved: jax.Array  # Σ (L_j‖Δ_j‖)² of the last sweep


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCoordinateDescent(InnerSolver):
    """x_j⁺ = prox_j(x_j − ∇_j f(x)/L_j) for one block j after the other, on working sets of the blocks that matter.

    params is one array, shape (n,) or (n, k), and its rows are the blocks: the coordinates of a lasso, with L_j = ‖X_j‖²; the
    rows of the SVM's dual, with L_i = ‖X_i‖²/θ. One step evaluates the whole gradient, takes the blocks that are furthest from
    their prox together with those that are not zero, and sweeps over these, leaving out the ones that stand still, until their
    distance is `inner_ratio` of that at the start. Every five sweeps are extrapolated (Anderson), which is kept if the
    next sweep then moves less.

    Needs a loss whose blocks are cheap: a `linear_model`; `datafit`, `design` and `block_lipschitz`; or
    a quadratic program, also beside an inner loss. The prox acts on each block by itself, as stated by `block_prox` or
    `separable`. Unrolled, a step is differentiated as the proximal gradient step from its point, whose derivative has the same
    limit.

    Args:
      rtol, atol: as for `InnerSolver`.
      max_steps: limit on working sets.
      max_sweeps: limit on sweeps over each.
      inner_ratio: accuracy to which a working set is solved, in (0, 1).
      acceleration: extrapolate.

    Raises:
      ValueError: a setting out of its range.
      TypeError: in a solve, params that is not one array, or a quadratic program whose Q is a function.

    References: Tseng & Yun 2009; Massias, Gramfort & Salmon 2018 (working sets); Bertrand & Massias 2021 (extrapolation);
    Blondel, Seki & Uehara 2013 (the SVM's blocks).

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> lasso = bl.LinearModel(loss="squared", rows=lambda data: data, l1=lambda hparams: hparams)
      >>> data = jnp.eye(2), jnp.array([2.0, 0.5])
      >>> print(bl.inner.BlockCoordinateDescent().solve(bl.Problem(inner=lasso), jnp.zeros(2), 1.0, data).params.round(3))
      [1. 0.]
    """

    needs = (LOSS, NO_CONSTRAINTS, BLOCKS, SEPARATE)

    max_steps: int = 1000
    max_sweeps: int = 50
    inner_ratio: float = 0.1
    acceleration: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sweeps < 1 or not 0 < self.inner_ratio < 1:
            raise ValueError(
                "inner.BlockCoordinateDescent: max_sweeps must be at least 1 and inner_ratio between 0 and 1, got "
                f"{self.max_sweeps}, {self.inner_ratio}"
            )

    def prepare(self, at: At) -> PyTree:
        """The columns of a linear model, contiguous."""
        return prepare(at)

    def init(self, at: At, params: PyTree) -> _State:
        """The image of the start."""
        if not isinstance(params, jax.Array):
            raise TypeError(
                "inner.BlockCoordinateDescent: params must be one array, whose rows are the blocks, got "
                f"{_tree.shapes(params)}"
            )
        blocks = blocks_of(at, params)
        evals = int(at.parts.lipschitz is None)
        step = unit_step(at, params)
        return _State(params, blocks.image(params), step, SolveProgress.start(params.dtype, evals, evals))

    def step(self, at: At, state: _State) -> _State:
        """One working set, swept until it is nearly solved; after the stopping test just the proximal gradient step."""
        x = state.params
        blocks = blocks_of(at, x)
        pushed = blocks.prox_all(x - state.test_step * blocks.gradient(blocks.image(x)), state.test_step)
        progress = self.advance(state.progress, x, _tree.norm(pushed - x), grad_evals=1)

        still = jax.lax.stop_gradient
        constant = blocks_of(still(at), x)
        new, image = jax.lax.cond(
            progress.status == Status.CONVERGED,
            lambda: still((pushed, state.image)),
            lambda: self._swept(constant, still(state), still(pushed)),
        )
        return _State(pushed + still(new - pushed), still(image), state.test_step, progress)

    def _swept(self, blocks: Blocks, state: _State, pushed: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Choose the working set at a point, from the proximal gradient step there, and sweep: the new point, its image."""
        x = state.params
        rows = x.reshape(x.shape[0], -1)
        away = jnp.linalg.norm(rows - pushed.reshape(rows.shape), axis=1) / state.test_step
        occupied = jnp.any(rows != 0, axis=1)
        key = jnp.where(occupied, jnp.inf, away)
        size = jnp.minimum(jnp.sum(key > 0), jnp.maximum(2 * jnp.sum(occupied), _LEAST))
        order = jnp.argsort(-key)
        chosen = jnp.where(jnp.arange(key.size) < size, away[order], 0)
        goal = self.inner_ratio**2 * jnp.sum(chosen**2)

        start = _Sweep(x, state.image, order, size, jnp.array(jnp.inf, x.dtype))
        end, _ = jax.lax.while_loop(
            lambda carry: (carry[0].moved > goal) & (carry[1] < self.max_sweeps),
            lambda carry: (self._window(blocks, carry[0]), carry[1] + _WINDOW),
            (start, 0),
        )
        return end.x, end.image

    def _window(self, blocks: Blocks, start: _Sweep) -> _Sweep:
        """A few sweeps, and one from their extrapolation if it then moves less."""

        def record(sweep: _Sweep, _: None) -> tuple[_Sweep, tuple[jax.Array, jax.Array]]:
            sweep = _swept_once(blocks, sweep)
            return sweep, (sweep.x, sweep.image)

        last, past = jax.lax.scan(record, start, length=_WINDOW)
        if not self.acceleration:
            return last
        points = jnp.concatenate([start.x[None], past[0]]).reshape(_WINDOW + 1, -1)
        weights = _extrapolation(jnp.diff(points, axis=0))
        x, image = (jnp.tensordot(weights, each, 1) for each in past)
        trial = _swept_once(blocks, last._replace(x=x, image=image))
        return _tree.where(trial.moved < last.moved, trial, last)


def _swept_once(blocks: Blocks, sweep: _Sweep) -> _Sweep:
    """Every block of the working set once; those that stood still leave it."""
    floor = jnp.finfo(sweep.x.dtype).eps * jnp.max(blocks.lipschitz)

    def visit(i: jax.Array, s: _Sweep) -> _Sweep:
        j = s.blocks[i]
        lipschitz = jnp.maximum(blocks.lipschitz[j], floor)
        old = s.x[j]
        new = blocks.prox(old - blocks.gradient_of(s.image, j) / lipschitz, j, 1 / lipschitz)
        delta = new - old
        square = jnp.sum(delta**2)
        return _Sweep(
            s.x.at[j].set(new),
            blocks.pushed(s.image, j, delta),
            s.blocks.at[s.size].set(j),  # those that moved gather at the front
            s.size + (square > 0).astype(s.size.dtype),
            s.moved + lipschitz**2 * square,
        )

    none = sweep._replace(size=jnp.zeros_like(sweep.size), moved=jnp.zeros_like(sweep.moved))
    return jax.lax.fori_loop(0, sweep.size, visit, none)


def _extrapolation(moves: jax.Array) -> jax.Array:
    """Weights of the points after these moves, which add up to one and make the weighted moves small."""
    gram = moves @ moves.T
    size = jnp.trace(gram)
    eye = jnp.eye(len(gram), dtype=gram.dtype)
    weights = jnp.linalg.solve(gram / size + 10 * jnp.finfo(gram.dtype).eps * eye, jnp.ones(len(gram), gram.dtype))
    return weights / jnp.sum(weights)
