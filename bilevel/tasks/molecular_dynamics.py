"""Molecular dynamics: a packing of soft particles of two sizes, and how particles move as the small ones grow."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel import implicit, optimality
from bilevel.datasets import require_shape
from bilevel.problem import Problem
from bilevel.tasks._base import Setup, Task
from bilevel.tasks.pictures import panels

_ARROW = 0.5  # length of the longest arrow, in units of the large diameter


def pairs(params: jax.Array, hparams: jax.Array, data: Any) -> tuple[jax.Array, jax.Array]:
    """(r, σ): distances of all pairs by their nearest images, and sums of their radii, both (particles, particles).

    The distance of a particle from itself is the side of the box, too large to touch.
    """
    size, count = data["box"], len(params)
    apart = params[:, None] - params[None, :]
    apart -= size * jnp.round(apart / size)
    square = jnp.sum(apart**2, axis=-1)
    itself = jnp.eye(count, dtype=bool)
    distances = jnp.where(itself, size, jnp.sqrt(jnp.where(itself | (square == 0), 1, square)))
    radii = jnp.where(data["small"], jnp.exp(hparams), 1) / 2
    return distances, radii[:, None] + radii[None, :]


def inner_loss(params: jax.Array, hparams: jax.Array, data: Any) -> jax.Array:
    """The energy, Σ over pairs with r < σ of ½(1 − r/σ)²."""
    distances, reach = pairs(params, hparams, data)
    return jnp.sum(jnp.maximum(1 - distances / reach, 0) ** 2) / 4


def pressure(params: jax.Array, hparams: jax.Array, data: Any) -> jax.Array:
    """The pressure by the virial, Σ over pairs with r < σ of r(1 − r/σ)/σ divided by twice the area, in energy per area."""
    distances, reach = pairs(params, hparams, data)
    ratio = distances / reach
    return jnp.sum(jnp.where(ratio < 1, ratio * (1 - ratio), 0)) / (4 * data["box"] ** 2)


def outer_loss(params: jax.Array, hparams: jax.Array, data: Any) -> jax.Array:
    """(pressure − target)²."""
    return (pressure(params, hparams, data) - data["target"]) ** 2


# Singular: moving all particles together, or a particle that touches no other, does not change the energy.
problem = Problem(inner_loss, outer_loss, optimality=optimality.Stationary(singular=True))


class Packing(NamedTuple):
    """Particles in a periodic square.

    Attributes:
      positions: as shares of the side of the box, shape (particles, 2).
      small: which particles are small, booleans of shape (particles,); the diameter of the others is 1.
      side: of the box.
    """

    positions: np.ndarray
    small: np.ndarray
    side: float


def box_side(particles: int, diameter: float, packing: float) -> float:
    """The side at which particles, half of diameter 1 and half of the other, fill this share of the area."""
    return float(np.sqrt(particles / 2 * np.pi * (diameter**2 + 1) / 4 / packing))


@jax.jit
def sensitivities(params: jax.Array, hparams: jax.Array, data: Any) -> jax.Array:
    """∂x*/∂θ with θ the diameter of the small particles, shape (particles, 2); NaN if its linear system is not solved.

    The solution of least norm: the packing as a whole does not drift, nor does a particle that touches no other.
    """
    tangents = jnp.ones_like(hparams), jax.tree.map(_no_tangent, data)
    along_log = implicit.root_jvp(optimality.bind(problem), params, (hparams, data), tangents)
    return along_log / jnp.exp(hparams)


def _no_tangent(leaf: jax.Array) -> Any:
    return np.zeros(leaf.shape, jax.dtypes.float0) if leaf.dtype == bool else jnp.zeros_like(leaf)


def touching(params: jax.Array, hparams: jax.Array, data: Any) -> np.ndarray:
    """The number of particles that each particle overlaps with."""
    distances, reach = pairs(params, hparams, data)
    return np.sum(np.asarray(distances < reach), axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MolecularDynamics(Task[Packing]):
    """A packing of soft particles in a periodic square, relaxed to the least energy and driven to a target pressure.

    min over positions x of Σ over pairs with r < σ of ½(1 − r/σ)², σ the mean of the two diameters. Half of the particles have
    diameter 1 and half have diameter θ. Inner variable: x, shape (particles, 2). The outer loss is (p − target)², with p the
    pressure at x* by the virial, in energy per area. hparams: log θ, a scalar. The metrics include the sensitivities ∂x*/∂θ.

    Args:
      particles: number of particles, half of each size (if it is odd, there is one more large particle).
      diameter: θ at the start.
      packing: total area of the particles divided by the area of the box, at the start.
      target: the target pressure.

    Reference: Schoenholz & Cubuk 2020; Blondel et al. 2022, section 4.4 (the packing and its sensitivities).
    """

    particles: int = 128
    diameter: float = 0.6
    packing: float = 0.98
    target: float = 0.08

    def __post_init__(self) -> None:
        self.check("particles", self.particles >= 2, "be at least 2")
        for name in ("diameter", "packing", "target"):
            self.check(name, getattr(self, name) > 0, "be positive")
        _require_room(self.diameter, box_side(self.particles, self.diameter, self.packing))

    def tables(self, seed: int) -> Packing:
        """Place the particles at random, uniformly in the box."""
        positions = np.random.default_rng(seed).uniform(size=(self.particles, 2))
        small = np.arange(self.particles) >= self.particles - self.particles // 2
        return Packing(positions, small, box_side(self.particles, self.diameter, self.packing))

    def state(self, tables: Packing, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem, with these positions as the start."""
        positions, small = (np.asarray(array) for array in tables[:2])
        require_shape("positions", positions, ("particles", 2))
        require_shape("small", small, (len(positions),), "bool")
        _require_room(self.diameter, tables.side)
        box, target = jnp.asarray(tables.side, dtype), jnp.asarray(self.target, dtype)
        data = {"small": jnp.asarray(small), "box": box, "target": target}

        def metrics(hparams: Any, params: Any) -> dict[str, float]:
            moved = np.asarray(sensitivities(params, hparams, data))
            met = touching(params, hparams, data)
            return {
                "pressure": float(pressure(params, hparams, data)),
                "energy": float(inner_loss(params, hparams, data)),
                "sensitivity_l1": float(np.abs(moved).sum()),
                "mean_contacts": float(met.mean()),
                "loose_particles": int(np.sum(met == 0)),
            }

        def pictures(hparams: Any, params: Any) -> dict[str, Any]:
            moved = np.asarray(sensitivities(params, hparams, data))
            radii = np.where(data["small"], np.exp(float(hparams)), 1) / 2
            return {"sensitivities": picture(np.asarray(params), radii, moved, float(data["box"]))}

        return Setup(
            problem=problem,
            hparams=jnp.asarray(np.log(self.diameter), dtype),
            params=jnp.asarray(positions * float(data["box"]), dtype),
            data=data,
            title=f"a packing of soft particles at a pressure of {self.target}",
            sizes={"particles": len(positions)},
            metrics=metrics,
            physical=lambda hparams: {"diameter": float(np.exp(hparams))},
            pictures=pictures,
        )


def _require_room(diameter: float, side: float) -> None:
    """Refuse a box in which a particle could meet another one twice, through two sides."""
    if side < 2 * max(1.0, diameter):
        raise ValueError(
            "task: the box must be at least two diameters wide, so that no particle meets another one twice: use more "
            f"particles or a smaller packing; its side is {side:.3g}"
        )


def picture(positions: np.ndarray, radii: np.ndarray, moved: np.ndarray, side: float) -> Any:
    """The particles, the small ones darker, with arrows along ∂x*/∂θ on a common scale."""
    from matplotlib.patches import Circle

    figure, axes = panels(1, 1, 5, 5)
    axis = axes[0, 0]
    inside = np.mod(positions, side)
    for center, radius in zip(inside, radii, strict=True):
        color = "#9ecae1" if radius < radii.max() else "#deebf7"
        axis.add_patch(Circle(center, radius, facecolor=color, edgecolor="#4a6a8a", linewidth=0.6))
    longest = np.linalg.norm(moved, axis=1).max()
    scale = _ARROW * 2 * radii.max() / longest if longest > 0 else 1.0
    axis.quiver(*inside.T, *(scale * moved).T, angles="xy", scale_units="xy", scale=1, color="#c0392b", width=0.004)
    axis.set(xlim=(0, side), ylim=(0, side), aspect="equal", xticks=[], yticks=[])
    axis.set_title(f"∂x*/∂θ, longest arrow {longest:.3g}", fontsize=10)
    axis.spines[:].set_visible(True)
    return figure
