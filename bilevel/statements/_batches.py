"""Minibatches, stated once for the inner and the outer loss."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Batches:
    """Which parts of `data` are rows, so that losses can be taken on some of them.

    data is a dict (or a tuple); the entry `inner` holds the rows of the inner loss and the entry `outer` those of the outer
    loss: pytrees of arrays that share their first axis. A loss on a minibatch is the same function on data with fewer rows, so
    it must be a mean over rows, plus terms without rows. This is checked for the inner loss when an algorithm is set up.

    Args:
      inner: key of the rows of the inner loss.
      outer: key of the rows of the outer loss; None if it is always taken on all rows.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> data = {"train": (jnp.ones((6, 2)), jnp.arange(6.0)), "validation": (jnp.ones((4, 2)), jnp.arange(4.0))}
      >>> batches = bl.Batches("train", "validation")
      >>> batches.rows(data, "inner"), batches.take(data, "outer", jnp.array([1, 3]))["validation"][1].tolist()
      (6, [1.0, 3.0])
    """

    inner: Any
    outer: Any = None

    def rows(self, data: Any, level: str = "inner") -> int:
        """How many rows a loss has. Raises ValueError if the entry is missing, or its leaves differ in their first axis."""
        lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(self._part(data, level))}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"Batches: every array in data[{getattr(self, level)!r}] needs the same first axis, one entry per row, got "
                f"lengths {sorted(lengths)}"
            )
        return lengths.pop()

    def take(self, data: Any, level: str, index: Any) -> Any:
        """data with the rows at `index` alone, shape (size,), in the entry of this level."""
        some = jax.tree.map(lambda leaf: leaf[index], self._part(data, level))
        key = getattr(self, level)
        if isinstance(data, dict):
            return {**data, key: some}
        return type(data)(some if place == key else part for place, part in enumerate(data))

    def _part(self, data: Any, level: str) -> Any:
        key = getattr(self, level)
        if key is None:
            raise ValueError(f"Batches: no entry of data is named for the {level} loss: give Batches({level}=KEY)")
        try:
            return data[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"Batches: data has no entry {key!r}, which {level}={key!r} names") from None
