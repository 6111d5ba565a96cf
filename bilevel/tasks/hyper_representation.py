"""Hyper-representation: a network's features, learned so that a linear classifier of them generalizes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel import _tree
from bilevel.datasets import Split
from bilevel.problem import Problem
from bilevel.tasks import _networks
from bilevel.tasks._base import Setup
from bilevel.tasks._tables import ClassTask, cross_entropy, held_out, sizes
from bilevel.tasks.pictures import panels
from bilevel.tasks.scores import accuracies


@dataclasses.dataclass(frozen=True)
class Representation:
    """h(x) = tanh of the output of a network whose layers have these widths."""

    widths: tuple[int, ...]

    @property
    def problem(self) -> Problem:
        """A linear classifier of h inside and its loss on other rows outside."""
        return Problem(self._inner_loss, self._outer_loss)

    def init(self, key: jax.Array, features: jax.Array) -> Any:
        """Random weights."""
        return _networks.draw(_networks.perceptron(self.widths), key, features)

    @functools.partial(jax.jit, static_argnames="self")
    def __call__(self, hparams: Any, features: jax.Array) -> jax.Array:
        """h of rows, shape (rows, widths[-1])."""
        return jnp.tanh(_networks.apply(_networks.perceptron(self.widths), hparams, features))

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
      data: `digits`, `iris`, `wine`, `breast_cancer` (scikit-learn), or the path of a table.
      validation: share of the rows (or their number) for the outer loss.
      test: share of the rows (or their number) for the test.
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
            del params
            part = tables.parts.get("test", tables.validation)
            stages = {"at the start": start, "learned": hparams}
            planes = {name: _plane(represented(part.features, weights)) for name, weights in stages.items()}
            return {"features": picture(planes, part.targets)}

        return Setup(
            problem=represent.problem,
            hparams=start,
            params=jnp.zeros((self.widths[-1], tables.train.classes), dtype),
            data=data,
            title=f"features of {tables.train.name} for a linear classifier",
            sizes=sizes(tables.parts, weights=_networks.count(start)),
            metrics=metrics,
            physical=lambda hparams: {"network": _networks.flat(hparams)},
            pictures=pictures,
        )


def _plane(features: np.ndarray) -> np.ndarray:
    """The first two principal components."""
    centered = features - features.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    return left[:, :2] * sizes[:2]


def picture(planes: dict[str, np.ndarray], targets: np.ndarray) -> Any:
    """The first two principal components of the features, colored by class."""
    figure, axes = panels(1, len(planes), 4.2, 3.8)
    for axis, (name, plane) in zip(axes[0], planes.items(), strict=True):
        for label in np.unique(targets):
            chosen = targets == label
            axis.plot(*plane[chosen, :2].T, ".", color=f"C{label % 10}", markersize=5, label=str(label))
        axis.set_title(name, fontsize=10)
        axis.set(xticks=[], yticks=[])
    axes[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
