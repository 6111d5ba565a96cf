"""What the tasks with flax networks share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


@functools.cache
def perceptron(widths: Sequence[int]) -> Any:
    """A flax module: dense layers of these widths with tanh between them."""
    from flax import linen

    layers: list[Any] = []
    for width in widths:
        layers += [linen.Dense(width), linen.tanh]
    return linen.Sequential(layers[:-1])


def draw(module: Any, key: jax.Array, *inputs: jax.Array) -> Any:
    """Random weights of a flax module in the precision of the inputs, the same numbers in every precision."""
    weights = module.init(key, *inputs)["params"]
    return jax.tree.map(lambda leaf: leaf.astype(inputs[0].dtype), weights)


def apply(module: Any, weights: Any, *inputs: jax.Array) -> jax.Array:
    """The output of the module."""
    return module.apply({"params": weights}, *inputs)


def flat(weights: Any) -> np.ndarray:
    """All weights in one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(weights)])


def count(weights: Any) -> int:
    """Number of weights."""
    return sum(leaf.size for leaf in jax.tree.leaves(weights))
