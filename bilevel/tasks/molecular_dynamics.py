"""Molecular dynamics: a packing of soft particles of two sizes, and how its particles move with the size of the small ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import implicit, optimality
from bilevel.problem import Problem
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._pictures import panels

_ARROW = 0.5  # length of the longest one, in units of the large diameter


def pairs(params, hparams, data):
    """(r, σ): distances of all pairs by their nearest images, and the sums of their radii, both (particles, particles).

    A particle counts as too far from itself to touch.
    """
    size, count = data["box"], len(params)
    apart = params[:, None] - params[None, :]
    apart -= size * jnp.round(apart / size)
    square = jnp.sum(apart**2, axis=-1)
    itself = jnp.eye(count, dtype=bool)
    distances = jnp.where(itself, size, jnp.sqrt(jnp.where(itself | (square == 0), 1, square)))
    radii = jnp.where(data["small"], jnp.exp(hparams), 1) / 2
    return distances, radii[:, None] + radii[None, :]


def inner_loss(params, hparams, data):
    """The energy Σ over pairs of ½(1 − r/σ)² where r < σ."""
    distances, reach = pairs(params, hparams, data)
    return jnp.sum(jnp.maximum(1 - distances / reach, 0) ** 2) / 4


def pressure(params, hparams, data):
    """By the virial: Σ over pairs of r(1 − r/σ)/σ where r < σ, over twice the area, in units of energy over area."""
    distances, reach = pairs(params, hparams, data)
    ratio = distances / reach
    return jnp.sum(jnp.where(ratio < 1, ratio * (1 - ratio), 0)) / (4 * data["box"] ** 2)


def outer_loss(params, hparams, data):
    """(pressure − target)²."""
    return (pressure(params, hparams, data) - data["target"]) ** 2


# Translations of all particles, and each particle that touches no other, leave the energy as it is.
problem = Problem(inner_loss, outer_loss, optimality=optimality.Stationary(singular=True))


def box_side(particles: int, diameter: float, packing: float) -> float:
    """ℓ at which half of the particles with diameter 1 and half with the other one fill this share of the area."""
    return float(np.sqrt(particles / 2 * np.pi * (diameter**2 + 1) / 4 / packing))


def make_data(particles: int, diameter: float, packing: float, target: float, dtype: Any) -> dict[str, jax.Array]:
    """The data pytree: which particles are small, the side of the box, the target pressure."""
    return {
        "small": jnp.arange(particles) >= particles - particles // 2,
        "box": jnp.asarray(box_side(particles, diameter, packing), dtype),
        "target": jnp.asarray(target, dtype),
    }


def start(seed: int, particles: int, side: float, dtype: Any) -> jax.Array:
    """Positions, uniform in the box, the same in every precision."""
    return jnp.asarray(np.random.default_rng(seed).uniform(0, side, size=(particles, 2)), dtype)


@jax.jit
def sensitivities(params, hparams, data):
    """∂x*/∂θ with θ the diameter of the small particles, shape (particles, 2); NaN where its linear system is not solved.

    Of all the answers the least one: no drift of the whole, and none of particles that touch nothing.
    """
    tangents = jnp.ones_like(hparams), jax.tree.map(_no_tangent, data)
    along_log = implicit.root_jvp(optimality.bind(problem), params, (hparams, data), tangents)
    return along_log / jnp.exp(hparams)


def _no_tangent(leaf):
    return np.zeros(leaf.shape, jax.dtypes.float0) if leaf.dtype == bool else jnp.zeros_like(leaf)


def touching(params, hparams, data) -> np.ndarray:
    """How many others each particle overlaps with."""
    distances, reach = pairs(params, hparams, data)
    return np.sum(np.asarray(distances < reach), axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MolecularDynamics(Task):
    """A packing of soft particles in a periodic square, relaxed to the least energy, driven to a target pressure.

    min over positions x of Σ over pairs of ½(1 − r/σ)² where r < σ, the mean of the two diameters. Half of the particles
    have diameter 1, half θ; the box is that in which they fill `packing` of the area at the start. Inner variable: x, shape
    (particles, 2). The outer loss is (p − target)², p the pressure at x*, by the virial, in units of energy over area.
    hparams: log θ, a scalar. Reported beside it: the sensitivities ∂x*/∂θ.

    Args:
      particles: how many, half of each size (the large ones are one more where that is odd).
      diameter: θ at the start.
      packing: total area of the particles over that of the box, at the start.
      target: the pressure.

    Reference: Schoenholz & Cubuk 2020; Blondel et al. 2022, section 4.4 (the packing and its sensitivities).
    """

    particles: int = 128
    diameter: float = 0.6
    packing: float = 0.98
    target: float = 0.08

    def __post_init__(self):
        if self.particles < 2:
            raise ValueError(f"task.particles must be at least 2, got {self.particles}")
        for name in ("diameter", "packing", "target"):
            if not getattr(self, name) > 0:
                raise ValueError(f"task.{name} must be positive, got {getattr(self, name)}")
        if box_side(self.particles, self.diameter, self.packing) < 2 * max(1.0, self.diameter):
            raise ValueError(
                "task: the box must be at least two diameters wide, so that no particle meets another one twice: take more "
                "particles or a smaller packing"
            )

    def setup(self, seed, dtype):
        """Throw the particles in at random, and state the problem."""
        data = make_data(self.particles, self.diameter, self.packing, self.target, dtype)

        def metrics(hparams, params):
            moved = np.asarray(sensitivities(params, hparams, data))
            met = touching(params, hparams, data)
            return {
                "pressure": float(pressure(params, hparams, data)),
                "energy": float(inner_loss(params, hparams, data)),
                "sensitivity_l1": float(np.abs(moved).sum()),
                "mean_contacts": float(met.mean()),
                "loose_particles": int(np.sum(met == 0)),
            }

        def pictures(hparams, params):
            moved = np.asarray(sensitivities(params, hparams, data))
            radii = np.where(data["small"], np.exp(float(hparams)), 1) / 2
            return {"sensitivities": picture(np.asarray(params), radii, moved, float(data["box"]))}

        return Setup(
            problem=problem,
            hparams=jnp.asarray(np.log(self.diameter), dtype),
            params=start(seed, self.particles, float(data["box"]), dtype),
            data=data,
            title=f"a packing of soft particles, to a pressure of {self.target}",
            sizes={"particles": self.particles},
            metrics=metrics,
            physical=lambda hparams: {"diameter": float(np.exp(hparams))},
            pictures=pictures,
        )


def picture(positions: np.ndarray, radii: np.ndarray, moved: np.ndarray, side: float) -> Any:
    """The particles, the small ones darker, with an arrow each along ∂x*/∂θ, its length in one scale for all."""
    from matplotlib.collections import EllipseCollection

    figure, axes = panels(1, 1, 5, 5)
    axis = axes[0, 0]
    inside = np.mod(positions, side)
    axis.add_collection(
        EllipseCollection(
            2 * radii,
            2 * radii,
            np.zeros(len(radii)),
            units="x",
            offsets=inside,
            offset_transform=axis.transData,
            facecolors=np.where(radii < radii.max(), "#9ecae1", "#deebf7").tolist(),
            edgecolors="#4a6a8a",
            linewidths=0.6,
        )
    )
    longest = np.linalg.norm(moved, axis=1).max()
    scale = _ARROW * 2 * radii.max() / longest if longest > 0 else 1.0
    axis.quiver(*inside.T, *(scale * moved).T, angles="xy", scale_units="xy", scale=1, color="#c0392b", width=0.004)
    axis.set(xlim=(0, side), ylim=(0, side), aspect="equal", xticks=[], yticks=[])
    axis.set_title(f"∂x*/∂θ, the longest {longest:.3g}", fontsize=10)
    axis.spines[:].set_visible(True)
    return figure
