"""What the tasks with flax networks share."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax


@functools.cache
def _perceptron(widths: Sequence[int]) -> Any:
    from flax import linen

    layers: list[Any] = []
    for width in widths:
        layers += [linen.Dense(width), linen.tanh]
    return linen.Sequential(layers[:-1])


def draw(module: Any, key: jax.Array, *inputs: jax.Array) -> Any:
    """Random weights of a flax module in the precision of the inputs, the same numbers in every precision."""
    weights = module.init(key, *inputs)["params"]
    return jax.tree.map(lambda leaf: leaf.astype(inputs[0].dtype), weights)


@dataclasses.dataclass(frozen=True)
class Perceptron:
    """Dense layers of these widths with tanh between them."""

    widths: tuple[int, ...]

    def init(self, key: jax.Array, features: jax.Array) -> Any:
        """Random weights, for features of shape (rows, features)."""
        return draw(_perceptron(self.widths), key, features)

    def outputs(self, weights: Any, features: jax.Array) -> jax.Array:
        """The outputs of the last layer, shape (rows, widths[-1])."""
        return _perceptron(self.widths).apply({"params": weights}, features)
