"""Differences with their own error estimate, and random directions."""

from __future__ import annotations

from collections.abc import Callable
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

    Steps are halved from `step`; of all extrapolations the one with the least estimated error is kept (Ridders 1982), so
    that neither curvature nor the function's own noise spoils the result, and `error` says what remains; it is never
    less than what rounding does to the difference.
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


def directions_like(tree: PyTree, count: int, seed: int) -> PyTree:
    """Seeded random directions of unit norm, stacked along a new first axis; None for leaves that are not differentiable."""
    rng = np.random.default_rng(seed)
    moving, _ = _tree.split(tree)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(count, *jnp.shape(x))), jnp.result_type(x)), moving)
    return jax.vmap(unit)(drawn)


def unit(tree: PyTree) -> PyTree:
    """tree/‖tree‖, or zero."""
    return _tree.normalized(tree)[1]


def tangents_of(tree: PyTree, direction: PyTree) -> PyTree:
    """A direction as `jax.jvp` takes it, with zeros of its own kind for leaves that are not differentiable."""

    def fill(d, x):
        return np.zeros(jnp.shape(x), jax.dtypes.float0) if d is None else d

    leaves, structure = jax.tree.flatten(tree)
    gaps = structure.flatten_up_to(direction)
    return jax.tree.unflatten(structure, [fill(d, x) for d, x in zip(gaps, leaves, strict=True)])


def restricted(cotangents: PyTree, direction: PyTree) -> PyTree:
    """Cotangents of the leaves that a direction moves; None in the gaps."""
    leaves, structure = jax.tree.flatten(cotangents)
    gaps = structure.flatten_up_to(direction)
    return jax.tree.unflatten(structure, [None if d is None else c for d, c in zip(gaps, leaves, strict=True)])


def moved(tree: PyTree, amount: Any, direction: PyTree) -> PyTree:
    """tree + amount · direction; leaves that are not differentiable stay."""
    moving, fixed = _tree.split(tree)
    return _tree.merge(_tree.add_scaled(moving, amount, direction), fixed)


def first_step(tree: PyTree) -> float:
    """Where to start halving: a tenth of the tree's root mean square, at least a hundredth."""
    flat = _flat(_tree.split(tree)[0])
    return float(0.1 * max(np.sqrt(np.mean(flat**2)) if flat.size else 1.0, 0.1))


def gap(found: Any, expected: Any) -> float:
    """‖found − expected‖ / max(‖found‖, ‖expected‖), 0 where both vanish."""
    found, expected = _flat(found), _flat(expected)
    scale = max(np.linalg.norm(found), np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected) / scale) if scale > 0 else 0.0


def _flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], np.float64)
