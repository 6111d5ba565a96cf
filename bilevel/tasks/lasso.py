"""The lasso with one penalty, or one per feature."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from bilevel.datasets import TablePath
from bilevel.problem import Problem
from bilevel.statements import LinearModel
from bilevel.tasks import _sparse_regression as sparse
from bilevel.tasks._base import Setup, Task


def outer_loss(params, hparams, data):
    """Mean squared error on the validation rows, in units of the training targets' variance."""
    features, targets = data["validation"]
    return jnp.mean((features @ params - targets) ** 2)


problem = Problem(
    outer_loss=outer_loss,
    linear_model=LinearModel(loss="squared", rows=lambda data: data["train"][:2], l1=jnp.exp, mean=True),
    lipschitz=lambda hparams, data: data["train"][2],
)


def penalties(hparams):
    """(l1, l2) of the log penalties."""
    return jnp.exp(hparams), jnp.zeros(())


OTHERS = {name: sparse.problem_of(name, penalties, columns=1) for name in ("cross_validation", "sure")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lasso(Task):
    """The lasso: its penalty, or one penalty per feature, chosen by one of three criteria.

    min over w of ‖Xw − y‖²/(2m) + Σ exp(θᵢ)|wᵢ|, scikit-learn's objective. Features and targets are standardized by the
    training rows. hparams: θ, log penalties, a scalar or shape (features,).

    Args:
      data: `diabetes` (442 × 10, from scikit-learn), or a table by path (see `datasets.load_table`).
      validation: share of the rows (or their number) for validation; the other criteria train on these rows too.
      test: share of the rows (or their number) for the test.
      criterion: `validation` error; `cross_validation` error over contiguous folds; or `sure`, Stein's unbiased risk estimate.
      folds: of cross-validation.
      sigma: `sure`: standard deviation of the noise in y. None: from the residuals of least squares.
      per_feature: one penalty per feature instead of one for all.
      penalty: start, as a share of the smallest penalty at which w is zero. None: the best of ten on the held-out rows, since
        the error may have several minima, of which a gradient finds the next one.

    Reference: Bertrand et al. 2020 (implicit differentiation of the lasso); Deledalle et al. 2014 (SURE).
    """

    data: Literal["diabetes"] | TablePath = "diabetes"
    validation: float = 0.2
    test: float = 0.2
    criterion: Literal["validation", "cross_validation", "sure"] = "validation"
    folds: int = 5
    sigma: float | None = None
    per_feature: bool = False
    penalty: float | None = 0.1

    def __post_init__(self):
        sparse.check_penalty(self.penalty, self.criterion)

    def setup(self, seed, dtype):
        """Split, standardize, and state the problem."""
        design = sparse.Design.load(self, seed, dtype)
        data = sparse.make_data(self.criterion, design, self.folds, self.sigma, seed)
        shape = (design.groups,) if self.per_feature else ()
        share = sparse.coarse_start(data) if self.penalty is None else self.penalty
        start = np.log(share * sparse.largest_penalty(data, 1))
        plain = self.criterion == "validation"
        if plain:  # as a linear model, for the solvers that ask for one
            largest = data["largest"]
            data = {"train": (data["features"], data["targets"][:, 0], largest), "validation": data["validation"]}

        def metrics(hparams, params):
            weights = params if plain else sparse.chosen_weights(self.criterion, params, data)
            return {**design.table.metrics(weights), "support": int(np.count_nonzero(weights))}

        return Setup(
            problem=problem if plain else OTHERS[self.criterion],
            hparams=jnp.full(shape, start, dtype),
            params=jnp.zeros(design.groups, dtype) if plain else sparse.start(data, design),
            data=data,
            title=f"lasso on {self.data}, its penalty{sparse.by(self)}",
            sizes=design.table.sizes,
            metrics=metrics,
            physical=lambda hparams: {"alpha": np.exp(np.asarray(hparams, np.float64))},
        )
