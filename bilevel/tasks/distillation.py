"""Dataset distillation: a few made images, trained on which a linear classifier is good on all the others."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import datasets
from bilevel.datasets import Table, TablePath
from bilevel.problem import Problem
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._classification import accuracy, cross_entropy, rows
from bilevel.tasks._pictures import images


def inner_loss(params, hparams, data):
    """The loss on the made images, and ½ε‖W‖²."""
    return cross_entropy(hparams @ params, data["labels"]) + data["penalty"] * jnp.vdot(params, params) / 2


def outer_loss(params, hparams, data):
    """The loss on the training rows."""
    features, targets = data["train"]
    return cross_entropy(features @ params, targets)


problem = Problem(inner_loss, outer_loss)


def make_data(train: Table, per_class: int, penalty: float, dtype):
    """The data pytree: training rows, the labels of the made images (0 … k−1, then again), ε."""
    return {
        "train": rows(train, dtype),
        "labels": jnp.tile(jnp.arange(train.classes, dtype=jnp.int32), per_class),
        "penalty": jnp.asarray(penalty, dtype),
    }


def start(seed: int, count: int, pixels: int, dtype):
    """Images of standard normal noise over the number of pixels, the same numbers in every precision."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, pixels)) / pixels, dtype)


def picture(hparams, classes: int):
    """The images in a grid, a row of classes after another; None where the rows are no squares of pixels."""
    side = math.isqrt(hparams.shape[1])
    if side**2 != hparams.shape[1]:
        return None
    return images(
        np.asarray(hparams).reshape(-1, side, side), [str(i % classes) for i in range(len(hparams))], min(classes, 10)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Task):
    """Dataset distillation: images θ, of each class one or several, chosen on the loss over the training rows.

    min over W of the mean multinomial logistic loss of θW against the images' labels + ½ε‖W‖². Inner variable: W, shape
    (pixels, classes). hparams: θ, shape (images, pixels), started at normal noise over the number of pixels. Pixels are divided
    by the largest one of the training rows.

    Args:
      data: `digits` (1797 × 64, from scikit-learn), or a table by path, for example `openml:mnist_784`.
      validation, test: shares (or numbers) of the rows for validation and test; neither is seen by the optimization.
      images_per_class: made images for each class.
      penalty: ε.

    Reference: Wang et al. 2018; Blondel et al. 2022, section 4.2.
    """

    data: Literal["digits"] | TablePath = "digits"
    validation: float = 0.2
    test: float = 0.2
    images_per_class: int = 1
    penalty: float = 0.1

    def __post_init__(self):
        if not self.penalty > 0:
            raise ValueError(f"task.penalty must be positive, got {self.penalty}")
        if self.images_per_class < 1:
            raise ValueError(f"task.images_per_class must be at least 1, got {self.images_per_class}")

    def setup(self, seed, dtype):
        """Split, scale, and state the problem."""
        table = datasets.load_table(self.data, "classification")
        split = datasets.scale_pixels(datasets.split_rows(table, self.validation, self.test, seed))
        pixels, classes = split.train.features.shape[1], split.train.classes
        count = classes * self.images_per_class

        def metrics(hparams, params):
            names = ("train", "validation", "test")
            return {f"{name}_accuracy": accuracy(getattr(split, name), params) for name in names}

        def pictures(hparams, params):
            figure = picture(hparams, classes)
            return {} if figure is None else {"images": figure}

        return Setup(
            problem=problem,
            hparams=start(seed, count, pixels, dtype),
            params=jnp.zeros((pixels, classes), dtype),
            data=jax.tree.map(jnp.asarray, make_data(split.train, self.images_per_class, self.penalty, dtype)),
            title=f"distillation of {self.data} into {count} images",
            sizes={"training rows": len(split.train.features), "pixels": pixels, "images": count, "classes": classes},
            metrics=metrics,
            physical=lambda hparams: {"pixels": np.asarray(hparams, np.float64)},
            pictures=pictures,
        )
