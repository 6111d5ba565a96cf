"""The group lasso of an additive model: a feature enters by several functions of it, or not at all."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from bilevel.datasets import TablePath
from bilevel.tasks import _sparse_regression as sparse
from bilevel.tasks._base import Setup, Task
from bilevel.tasks.lasso import penalties


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupLasso(Task):
    """The group lasso: its penalty, or one per group, chosen by one of three criteria.

    min over w of ‖Zw − y‖²/(2m) + Σⱼ exp(θⱼ)‖wⱼ‖₂, where Z holds, for each feature, the Legendre polynomials up to `degree` of
    the feature over its largest training magnitude, each with variance 1 over the training rows. Inner variable: w, a row per
    group. hparams: θ, log penalties, a scalar or shape (features,).

    Args:
      data, validation, test, criterion, folds, sigma: as for the lasso.
      degree: of the polynomials, the size of a group.
      per_feature: one penalty per group instead of one for all.
      penalty: start, as a share of the smallest penalty at which w is zero.

    Reference: Yuan & Lin 2006; Ravikumar et al. 2009 (sparse additive models).
    """

    data: Literal["diabetes"] | TablePath = "diabetes"
    validation: float = 0.2
    test: float = 0.2
    criterion: Literal["validation", "cross_validation", "sure"] = "validation"
    folds: int = 5
    sigma: float | None = None
    degree: int = 3
    per_feature: bool = False
    penalty: float = 0.1

    def __post_init__(self):
        sparse.check_penalty(self.penalty)
        if self.degree < 1:
            raise ValueError(f"task.degree must be at least 1, got {self.degree}")

    def setup(self, seed, dtype):
        """Split, standardize, expand, and state the problem."""
        design = sparse.Design.load(self, seed, dtype, self.degree)
        data = sparse.make_data(self.criterion, design, self.folds, self.sigma, seed)
        shape = (design.groups,) if self.per_feature else ()

        def metrics(hparams, params):
            weights = sparse.chosen_weights(self.criterion, params, data)
            groups = np.any(weights.reshape(design.groups, -1) != 0, axis=1)
            return {**design.table.metrics(weights, design.expand), "groups": int(np.sum(groups))}

        return Setup(
            problem=sparse.problem_of(self.criterion, penalties, self.degree),
            hparams=jnp.full(shape, np.log(self.penalty * sparse.largest_penalty(data, self.degree)), dtype),
            params=sparse.start(data, design),
            data=data,
            title=f"group lasso on {self.data}, its penalty{sparse.by(self)}",
            sizes={**design.table.sizes, "coordinates of a group": self.degree},
            metrics=metrics,
            physical=lambda hparams: {"alpha": np.exp(np.asarray(hparams, np.float64))},
        )
