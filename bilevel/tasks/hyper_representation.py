"""Hyper-representation: a network's features, learned so that a linear classifier of them generalizes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike

from bilevel import _tree
from bilevel.datasets import Split
from bilevel.problem import Problem
from bilevel.tasks._base import Setup
from bilevel.tasks._networks import Perceptron
from bilevel.tasks._tables import ClassTask, cross_entropy, held_out, sizes
from bilevel.tasks.pictures import panels
from bilevel.tasks.scores import accuracies


class Representation(Perceptron):
    """h(x) = tanh of the network's output."""

    @property
    def problem(self) -> Problem:
        """A linear classifier of h inside and its loss on other rows outside."""
        return Problem(self._inner_loss, self._outer_loss)

    @functools.partial(jax.jit, static_argnames="self")
    def __call__(self, hparams: Any, features: jax.Array) -> jax.Array:
        """h of rows, shape (rows, widths[-1])."""
        return jnp.tanh(self.outputs(hparams, features))

    def _inner_loss(self, params: jax.Array, hparams: Any, data: Any) -> jax.Array:
        features, targets = data["train"]
        return cross_entropy(self(hparams, features) @ params, targets) + data["l2"] * jnp.vdot(params, params) / 2

    def _outer_loss(self, params: jax.Array, hparams: Any, data: Any) -> jax.Array:
        features, targets = data["validation"]
        decay = data["decay"] * _tree.vdot(hparams, hparams) / 2
        return cross_entropy(self(hparams, features) @ params, targets) + decay


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyperRepresentation(ClassTask):
    """The features of a network, chosen so that a linear classifier that is trained on some rows works well on others.

    min over W of the mean cross-entropy of h(X)W on the training rows + ½l2‖W‖², h = tanh of the network's output. Inner
    variable: W, shape (widths[-1], classes). The outer loss is the mean cross-entropy on the validation rows +
    ½decay‖hparams‖². hparams: the flax parameters of the network, drawn at random.

    Args:
      data: a table of scikit-learn by its name, or another one by its path (see `datasets.load_table`).
      validation, test: shares of the rows, or their numbers; the outer loss uses the validation rows.
      widths: widths of the network's layers.
      l2: ℓ2 penalty of W.
      decay: ℓ2 penalty of the network's weights.

    Reference: Franceschi et al. 2018.
    """

    validation: float = 0.4
    widths: list[int] = dataclasses.field(default_factory=lambda: [64, 32])
    l2: float = 0.001
    decay: float = 0.0001

    def __post_init__(self) -> None:
        self.check("widths", min(self.widths, default=0) >= 1, "be numbers of at least 1, one for each layer")
        self.check("l2", self.l2 > 0, "be positive")
        self.check("decay", self.decay >= 0, "not be negative")

    def state(self, tables: Split, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem; validation rows are needed, and `seed` draws the network."""
        tables.require("classification", "validation")
        represent = Representation(tuple(self.widths))
        data = held_out(tables, dtype, l2=self.l2, decay=self.decay)
        start = represent.init(jax.random.key(seed), data["train"][0])

        def represented(features: np.ndarray, hparams: Any) -> np.ndarray:
            return np.asarray(represent(hparams, jnp.asarray(features, dtype)), np.float64)

        def metrics(hparams: Any, params: Any) -> dict[str, float]:
            return accuracies(tables, lambda features: represented(features, hparams) @ np.asarray(params))

        def pictures(hparams: Any, params: Any) -> dict[str, Any]:
            part = tables.parts.get("test", tables.validation)
            stages = {"at the start": start, "learned": hparams}
            learned = {name: represented(part.features, weights) for name, weights in stages.items()}
            return {"features": picture(learned, part.targets)}

        return Setup(
            problem=represent.problem,
            hparams=start,
            params=jnp.zeros((self.widths[-1], tables.train.classes), dtype),
            data=data,
            title=f"features of {tables.train.name} for a linear classifier",
            sizes=sizes(tables.parts, weights=_tree.size(start)),
            metrics=metrics,
            physical=lambda hparams: {"network": np.asarray(ravel_pytree(hparams)[0])},
            pictures=pictures,
        )


def picture(features: dict[str, np.ndarray], targets: np.ndarray) -> Any:
    """The first two principal components of the features, colored by class."""
    from sklearn.decomposition import PCA

    figure, axes = panels(1, len(features), 4.2, 3.8)
    for axis, (name, rows) in zip(axes[0], features.items(), strict=True):
        plane = PCA(min(2, rows.shape[1])).fit_transform(rows)
        for label in np.unique(targets):
            axis.plot(*plane[targets == label].T, ".", color=f"C{label % 10}", markersize=5, label=str(label))
        axis.set_title(name, fontsize=10)
        axis.set(xticks=[], yticks=[])
    axes[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
