"""Sensitivities of a packing against the number of steps of its relaxation, implicit and unrolled."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel import inner
from bilevel.study import Findings, Reporter, Study
from bilevel.tasks import molecular_dynamics

Pair = tuple[Any, Any]  # a state of FIRE, and its derivative by the diameter's logarithm
WAYS: tuple[str, ...] = ("implicit", "unrolled", "unrolled_constant_steering")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivities(Study):
    """‖∂x*/∂θ‖₁ of a packing of soft particles during its relaxation by FIRE, from random starts.

    `implicit` differentiates the condition at the current point; `unrolled` differentiates FIRE in forward mode;
    `unrolled_constant_steering` does the same with ‖v‖/‖F‖ held constant. A method has settled once all later readings are
    within `settled` of the reference, the implicit sensitivities after four times as many steps.

    Args:
      particles, diameter, packing: as in `tasks.MolecularDynamics`.
      starts: number of random starts, with the seeds seed, seed + 1, …
      steps: steps of FIRE.
      every: steps between readings, a divisor of `steps`.
      settled: tolerance, relative to the reference.
      dt, dt_max: time steps of FIRE.

    Reference: Blondel et al. 2022, section 4.4.
    """

    particles: int = 128
    diameter: float = 0.6
    packing: float = 0.98
    starts: int = 40
    steps: int = 2000
    every: int = 50
    settled: float = 0.01
    dt: float = 0.1
    dt_max: float = 0.4

    def __post_init__(self) -> None:
        self.require_positive("starts", "steps", "every", "settled")
        if self.steps % self.every:
            raise ValueError(f"study.steps must be a multiple of study.every, got {self.steps} and {self.every}")

    @property
    def count(self) -> int:
        return self.starts

    @property
    def title(self) -> str:
        return f"sensitivities of a packing of {self.particles} particles, implicit and unrolled, {self.starts} starts"

    def run(self, seed: int, dtype: str, report: Reporter) -> Findings:
        """A row per start: the reference, and the step by which each way has settled (None where it has not)."""
        task = molecular_dynamics.MolecularDynamics(
            particles=self.particles, diameter=self.diameter, packing=self.packing
        )
        at = self.every * np.arange(1, self.steps // self.every + 1)
        curves, rows = [], []
        for start in range(seed, seed + self.starts):
            setup = task.setup(start, dtype)
            readings, force, reference = jax.device_get(self._relax(setup.params, setup.data))
            curves.append(readings)
            by = {way: _settled_by(at, readings[way], reference, self.settled) for way in WAYS}
            rows.append({"seed": start, "reference": float(reference), "force": float(force), **by})
            report(rows[-1])
        summary: dict[str, Any] = {"share_settled": {}, "median_steps": {}}
        for way in WAYS:
            by_step = np.array([row[way] or np.inf for row in rows])
            summary["share_settled"][way] = {
                str(t): float(np.mean(by_step <= t)) for t in (self.steps // 4, self.steps // 2, self.steps)
            }
            summary["median_steps"][way] = float(np.median(by_step)) if np.isfinite(np.median(by_step)) else None
        stacked = {way: np.stack([curve[way] for curve in curves]) for way in WAYS}
        return Findings(
            summary, {"steps": at, "sensitivity": stacked, "reference": np.array([r["reference"] for r in rows])}
        )

    @functools.partial(jax.jit, static_argnames="self")
    def _relax(self, positions: jax.Array, data: Any) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
        """The readings of each way, the norm of the last force, and the reference."""
        hparams = jnp.log(jnp.asarray(self.diameter, positions.dtype))

        def at(h: jax.Array) -> bl.At:
            return bl.At(molecular_dynamics.problem, h, data)

        def norm(sensitivities: jax.Array) -> jax.Array:
            return jnp.sum(jnp.abs(sensitivities))

        def implicit(params: jax.Array) -> jax.Array:
            return norm(molecular_dynamics.sensitivities(params, hparams, data))

        def begin(solver: inner.FIRE) -> Pair:
            return jax.jvp(lambda h: solver.init(at(h), positions), (hparams,), (jnp.ones_like(hparams),))

        def advance(solver: inner.FIRE, pair: Pair, count: int) -> Pair:
            def step(pair: Pair, _: None) -> tuple[Pair, None]:
                following = jax.jvp(
                    lambda state, h: solver.step(at(h), state), (pair[0], hparams), (pair[1], jnp.ones_like(hparams))
                )
                return following, None

            return jax.lax.scan(step, pair, length=count)[0]

        def read(pairs: list[Pair], _: None) -> tuple[list[Pair], dict[str, jax.Array]]:
            pairs = [advance(solver, pair, self.every) for solver, pair in zip(solvers, pairs, strict=True)]
            # Over θ, and without the drift of the whole packing, as the implicit ones are.
            moved = [tangent.params / jnp.exp(hparams) for _, tangent in pairs]
            unrolled = [norm(each - each.mean(axis=0)) for each in moved]
            return pairs, dict(zip(WAYS, (implicit(pairs[0][0].params), *unrolled), strict=True))

        solvers = [self._fire(differentiate_steering) for differentiate_steering in (True, False)]
        pairs, readings = jax.lax.scan(read, [begin(s) for s in solvers], length=self.steps // self.every)
        last = advance(solvers[1], pairs[1], 3 * self.steps)[0].params
        force = jnp.linalg.norm(jax.grad(molecular_dynamics.inner_loss)(pairs[0][0].params, hparams, data))
        return readings, force, implicit(last)

    def _fire(self, differentiate_steering: bool) -> inner.FIRE:
        return inner.FIRE(dt=self.dt, dt_max=self.dt_max, differentiate_steering=differentiate_steering)


def _settled_by(at: np.ndarray, readings: np.ndarray, reference: float, share: float) -> int | None:
    """The first step from which on all readings are this close to the reference; None if there is none."""
    away = ~(np.abs(readings - reference) <= share * abs(reference))
    if away[-1]:
        return None
    return int(at[np.flatnonzero(away)[-1] + 1]) if away.any() else int(at[0])
