"""Dataset distillation: a few synthetic images on which a linear classifier learns what it would from all rows."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel import datasets
from bilevel.datasets import Split, TablePath
from bilevel.problem import Problem
from bilevel.tasks._base import Setup
from bilevel.tasks._tables import ClassTask, cross_entropy, rows, sizes
from bilevel.tasks.pictures import images, is_square
from bilevel.tasks.scores import accuracies


def inner_loss(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """The loss on the synthetic images, and ½ε‖W‖²."""
    return cross_entropy(hparams @ params, data["labels"]) + data["penalty"] * jnp.vdot(params, params) / 2


def outer_loss(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """The loss on the training rows."""
    features, targets = data["train"]
    return cross_entropy(features @ params, targets)


problem = Problem(inner_loss, outer_loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(ClassTask):
    """Dataset distillation: images θ, one or several per class, chosen on the loss over the training rows.

    min over W of the mean multinomial logistic loss of θW against the images' labels + ½ε‖W‖². Inner variable: W, shape
    (pixels, classes). hparams: θ, shape (images, pixels), started at normal noise divided by the number of pixels. The pixels
    of the task's own tables are divided by the largest pixel of the training rows.

    Args:
      data: `digits` (1797 × 64, from scikit-learn), or the path of a table, for example `openml:mnist_784`.
      validation, test: shares of the rows, or their numbers; only the metrics use them.
      images_per_class: number of synthetic images for each class.
      penalty: ε.

    Reference: Wang et al. 2018; Blondel et al. 2022, section 4.2.
    """

    data: Literal["digits"] | TablePath = "digits"
    images_per_class: int = 1
    penalty: float = 0.1

    def __post_init__(self) -> None:
        self.check("penalty", self.penalty > 0, "be positive")
        self.check("images_per_class", self.images_per_class >= 1, "be at least 1")

    def tables(self, seed: int) -> Split:
        """Load, split and scale the table."""
        table = datasets.load_table(self.data, "classification")
        return datasets.scale_pixels(datasets.split_rows(table, self.validation, self.test, seed))

    def state(self, tables: Split, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem; `seed` draws the first images."""
        tables.require("classification")
        pixels, classes = tables.train.features.shape[1], tables.train.classes
        count = classes * self.images_per_class

        def pictures(hparams: Any, params: Any) -> dict[str, Any]:
            titles = [str(number % classes) for number in range(count)]
            return {"images": images(hparams, titles, min(classes, 10))} if is_square(pixels) else {}

        noise = np.random.default_rng(seed).normal(size=(count, pixels))  # the same numbers in every precision
        return Setup(
            problem=problem,
            hparams=jnp.asarray(noise / pixels, dtype),
            params=jnp.zeros((pixels, classes), dtype),
            data={
                "train": rows(tables.train, dtype),
                "labels": jnp.tile(jnp.arange(classes, dtype=jnp.int32), self.images_per_class),
                "penalty": jnp.asarray(self.penalty, dtype),
            },
            title=f"distillation of {tables.train.name} into {count} images",
            sizes=sizes(tables.parts, pixels=pixels, images=count, classes=classes),
            metrics=lambda hparams, params: accuracies(tables, lambda x: x @ np.asarray(params, np.float64)),
            physical=lambda hparams: {"pixels": np.asarray(hparams, np.float64)},
            pictures=pictures,
        )
