"""Reports, and derivatives against differences with their own error estimate, along random directions."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._tree import PyTree

_LEVELS = 7


class Difference(NamedTuple):
    """A derivative by differences, flat, and an estimate of its error (Euclidean norm)."""

    value: np.ndarray
    error: float


def richardson(function: Callable[[float], Any], step: float) -> Difference:
    """The derivative at 0 of a function of one number, by extrapolated central differences.

    Steps are halved from `step`; the extrapolation with the least estimated error is kept (Ridders 1982), so that neither
    curvature nor the function's own noise spoils the result. `error` is the error that remains, at least that of rounding.
    """
    table: list[list[np.ndarray]] = []
    best = Difference(np.zeros(0), np.inf)
    for level in range(_LEVELS):
        h = step / 2**level
        ahead, behind = function(h), function(-h)
        rounding = _tree.eps(ahead) * float(np.linalg.norm(_flat(ahead))) / h
        row = [(_flat(ahead) - _flat(behind)) / (2 * h)]
        for order in range(1, level + 1):
            row.append(row[-1] + (row[-1] - table[-1][order - 1]) / (4**order - 1))
            error = max(np.linalg.norm(row[-1] - row[-2]), np.linalg.norm(row[-1] - table[-1][order - 1]), rounding)
            if error < best.error:
                best = Difference(row[-1], float(error))
        table.append(row)
    return best if np.isfinite(best.error) else Difference(table[-1][0], np.inf)


def differences(function: Callable[[PyTree], Any], tree: PyTree, directions: Sequence[PyTree]) -> list[Difference]:
    """The derivatives of a function at a tree along each direction."""
    return [richardson(lambda t, d=d: function(_moved(tree, t, d)), _first_step(tree)) for d in directions]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """The outcome of a check: `problems` has a sentence for each thing that is wrong."""

    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def _printed(self, check: str, lines: Iterable[str]) -> str:
        verdict = "fine" if self.ok else f"{len(self.problems)} problem(s)"
        return "\n".join([f"{check}: {verdict}", *lines, *(f"  ✗ {problem}" for problem in self.problems)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Derivatives against differences, per direction. The fields are described in `DerivativeReport`."""

    gaps: tuple[float, ...]
    errors: tuple[float, ...]
    tolerance: float

    @property
    def too_large(self) -> bool:
        """Whether a gap is too large to pass."""
        return any(not g <= max(self.tolerance, 10 * e) for g, e in zip(self.gaps, self.errors, strict=True))

    def lines(self) -> list[str]:
        """A printed line for each direction."""
        pairs = enumerate(zip(self.gaps, self.errors, strict=True))
        return [f"    direction {k}: off by {g:.1e}, differences good to {e:.1e}" for k, (g, e) in pairs]

    def complaints(self, what: str) -> list[str]:
        """A sentence for each thing that is wrong."""
        found, worst = [], max(self.errors)
        if not np.all(np.isfinite(self.gaps)):
            found.append(f"{what} is not finite")
        elif self.too_large:
            found.append(f"{what} is off by {max(self.gaps):.1e}, and differences are good to {worst:.1e}")
        if not worst <= max(self.tolerance, 1e-2):
            found.append(
                f"differences do not settle (error {worst:.1e}): the function is not smooth along this direction, or is "
                "computed too loosely to judge its derivative"
            )
        return found


def compare(derivatives: Sequence[PyTree], differences: Sequence[Difference], tolerance: float) -> Comparison:
    """Compare one derivative and one difference for each direction."""
    gaps, errors = [], []
    for derivative, (value, error) in zip(derivatives, differences, strict=True):
        found, norm = _flat(derivative), float(np.linalg.norm(value))
        scale = max(float(np.linalg.norm(found)), norm)
        gaps.append(float(np.linalg.norm(found - value)) / scale if scale > 0 else 0.0)
        errors.append(error / norm if norm > 0 else error)
    return Comparison(gaps=tuple(gaps), errors=tuple(errors), tolerance=tolerance)


def each_direction(tree: PyTree, count: int, seed: int) -> list[PyTree]:
    """Directions as `directions_like` draws them, one by one, and no more than there are unknowns."""
    count = min(count, _tree.size(_tree.split(tree)[0]))
    drawn = directions_like(tree, count, seed)
    return [jax.tree.map(lambda leaf, k=k: leaf[k], drawn) for k in range(count)]


def directions_like(tree: PyTree, count: int, seed: int) -> PyTree:
    """Seeded random directions of unit norm, stacked along a new first axis; None for leaves that are not differentiable."""
    rng = np.random.default_rng(seed)
    moving, _ = _tree.split(tree)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(count, *jnp.shape(x))), jnp.result_type(x)), moving)
    return jax.vmap(unit)(drawn) if jax.tree.leaves(drawn) else drawn


def unit(tree: PyTree) -> PyTree:
    """tree/‖tree‖, or zero."""
    return _tree.normalized(tree)[1]


def _moved(tree: PyTree, amount: float, direction: PyTree) -> PyTree:
    """tree + amount · direction; leaves that are not differentiable stay."""
    moving, fixed = _tree.split(tree)
    return _tree.merge(_tree.add_scaled(moving, amount, direction), fixed)


def _first_step(tree: PyTree) -> float:
    """The first step of the halving: a tenth of the tree's root mean square, at least a hundredth."""
    flat = _flat(_tree.split(tree)[0])
    return float(0.1 * max(np.sqrt(np.mean(flat**2)) if flat.size else 1.0, 0.1))


def _flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], np.float64)
