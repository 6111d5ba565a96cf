"""FIRE, the fast inertial relaxation engine."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._curvature import curvature_along_gradient
from bilevel._needs import LOSS, SMOOTH
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.problem import At


class _State(NamedTuple):
    params: PyTree
    velocity: PyTree
    force: PyTree
    dt: jax.Array
    alpha: jax.Array
    downhill: jax.Array  # steps since the power was last zero or negative
    lipschitz: jax.Array  # the largest curvature seen
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class FIRE(InnerSolver):
    """Molecular dynamics of unit masses with force F = −∇f that steers itself downhill, for energies and smooth losses.

    Each step is one of velocity Verlet, v ← (1 − α)v + α‖v‖F/‖F‖, and then, by the power P = F·v: while P > 0 for more
    than `n_min` steps, dt ← min(f_inc·dt, dt_max) and α ← f_alpha·α; where P ≤ 0, v ← 0, dt ← f_dec·dt and α starts anew.
    One gradient per step. Unrolled, dt, α and ‖v‖/‖F‖ count as constants, with which the derivative converges soon after the
    point.

    Args:
      rtol, atol, max_steps: as for `InnerSolver`; L is the largest curvature ‖ΔF‖/‖Δx‖ seen.
      dt: first time step, in units of the problem. None: 1/(4√L), and no step is longer than 1/√L.
      dt_max: longest time step; None is 4 dt.
      n_min, f_inc, f_dec, alpha, f_alpha: as above; the defaults are those of the paper.
      differentiate_steering: differentiate ‖v‖/‖F‖ too, as automatic differentiation of the algorithm as written does.

    Raises:
      ValueError: a setting out of its range; dt above dt_max.

    Reference: Bitzek, Koskinen, Gähler, Moseler & Gumbsch 2006.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> print(bl.inner.FIRE().solve(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).params.round(3))
      [1. 2.]
    """

    needs = (LOSS, SMOOTH)
    positive = ("dt", "dt_max", "f_dec", "f_alpha")

    max_steps: int = 20_000
    dt: float | None = None
    dt_max: float | None = None
    n_min: int = 5
    f_inc: float = 1.1
    f_dec: float = 0.5
    alpha: float = 0.1
    f_alpha: float = 0.99
    differentiate_steering: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.f_inc >= 1 and self.f_dec < 1 and self.f_alpha <= 1 and 0 <= self.alpha <= 1 and self.n_min >= 0):
            raise ValueError(
                "inner.FIRE needs f_inc ≥ 1, f_dec < 1, f_alpha ≤ 1, 0 ≤ alpha ≤ 1 and n_min ≥ 0, got "
                f"f_inc={self.f_inc}, f_dec={self.f_dec}, f_alpha={self.f_alpha}, alpha={self.alpha}, n_min={self.n_min}"
            )
        if self.dt is not None and self.dt_max is not None and self.dt > self.dt_max:
            raise ValueError(f"inner.FIRE: dt must not exceed dt_max, got {self.dt} > {self.dt_max}")

    def init(self, at: At, params: PyTree) -> _State:
        """At rest."""
        dtype = _tree.dtype(params)
        gradient, curvature = curvature_along_gradient(at, params)
        lipschitz = jax.lax.stop_gradient(curvature).astype(dtype)
        dt = 1 / (4 * jnp.sqrt(lipschitz)) if self.dt is None else jnp.asarray(self.dt, dtype)
        return _State(
            params,
            _tree.zeros_like(params),
            _tree.scale(-1, gradient),
            jnp.minimum(dt, self._longest(lipschitz)),
            jnp.asarray(self.alpha, dtype),
            jnp.int32(0),
            lipschitz,
            SolveProgress.start(dtype, 1, 1),
        )

    def step(self, at: At, state: _State) -> _State:
        """One step of dynamics, then of steering."""
        x, v, force, dt = state.params, state.velocity, state.force, state.dt
        move = _tree.scale(dt, _tree.add_scaled(v, dt / 2, force))
        params = _tree.add_scaled(x, 1, move)
        ahead = _tree.scale(-1, at.gradient(params))
        v = _tree.add_scaled(_tree.add_scaled(v, dt / 2, force), dt / 2, ahead)

        # The paper's F1 to F4.
        steer_v, steer_f = (v, ahead) if self.differentiate_steering else jax.lax.stop_gradient((v, ahead))
        power, size = _tree.vdot(steer_f, steer_v), _tree.norm(steer_f)
        pull = state.alpha * _tree.norm(steer_v) / _tree.positive(size)
        v = _tree.add_scaled(_tree.scale(1 - state.alpha, v), pull, ahead)
        uphill = ~(power > 0)
        faster = ~uphill & (state.downhill > self.n_min)
        lipschitz = self._curvature(state, params, force, ahead, move)
        dt = jnp.where(faster, self.f_inc * dt, jnp.where(uphill, self.f_dec * dt, dt))
        alpha = jnp.where(faster, self.f_alpha * state.alpha, jnp.where(uphill, self.alpha, state.alpha))
        return _State(
            params,
            _tree.where(uphill, _tree.zeros_like(v), v),
            ahead,
            jnp.minimum(dt, self._longest(lipschitz)),
            alpha.astype(state.alpha.dtype),
            jnp.where(uphill, 0, state.downhill + 1),
            lipschitz,
            self.advance(state.progress, params, size / lipschitz, grad_evals=1),
        )

    def _longest(self, lipschitz: jax.Array) -> jax.Array:
        """The longest time step: as given, or half the limit up to which Verlet's method is stable."""
        stable = 1 / jnp.sqrt(lipschitz)
        given = 4 * self.dt if self.dt is not None and self.dt_max is None else self.dt_max
        if given is None:
            return stable
        given = jnp.asarray(given, lipschitz.dtype)
        return given if self.dt is not None else jnp.minimum(given, stable)

    def _curvature(self, state: _State, params: PyTree, force: PyTree, ahead: PyTree, move: PyTree) -> jax.Array:
        """The largest curvature seen, without moves that are short enough to drown in rounding."""
        force, ahead, move, params = jax.lax.stop_gradient((force, ahead, move, params))
        length = _tree.norm(move)
        visible = length > 1e-2 * _tree.eps(params) ** 0.5 * _tree.norm(params)
        seen = _tree.norm(_tree.sub(ahead, force)) / _tree.positive(length)
        return jnp.where(visible, jnp.maximum(state.lipschitz, seen), state.lipschitz)
