"""The elastic net: an ℓ1 and an ℓ2 penalty, or both for every feature."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.datasets import TablePath
from bilevel.problem import Problem
from bilevel.statements import LinearModel
from bilevel.tasks import _sparse_regression as sparse
from bilevel.tasks._base import Setup, Task
from bilevel.tasks.lasso import outer_loss


def penalties(hparams):
    """(l1, l2) of the log penalties."""
    return jnp.exp(hparams["l1"]), jnp.exp(hparams["l2"])


problem = Problem(
    outer_loss=outer_loss,
    linear_model=LinearModel(
        loss="squared",
        rows=lambda data: data["train"][:2],
        l1=lambda hparams: penalties(hparams)[0],
        l2=lambda hparams: penalties(hparams)[1],
        mean=True,
    ),
    lipschitz=lambda hparams, data: data["train"][2],
)
OTHERS = {name: sparse.problem_of(name, penalties, columns=1) for name in ("cross_validation", "sure")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElasticNet(Task):
    """The elastic net: its two penalties, or two per feature, chosen by one of three criteria.

    min over w of ‖Xw − y‖²/(2m) + Σ exp(θᵢ)|wᵢ| + ½Σ exp(φᵢ)wᵢ². In scikit-learn's terms alpha·l1_ratio = exp(θ) and
    alpha·(1 − l1_ratio) = exp(φ). Features and targets are standardized by the training rows. hparams: {"l1": θ, "l2": φ}, each a
    scalar or shape (features,).

    Args:
      data, validation, test, criterion, folds, sigma, per_feature: as for the lasso.
      penalty: start of the ℓ1 penalties, as a share of the smallest one at which w is zero.
      l2_penalty: start of the ℓ2 penalties.
    """

    data: Literal["diabetes"] | TablePath = "diabetes"
    validation: float = 0.2
    test: float = 0.2
    criterion: Literal["validation", "cross_validation", "sure"] = "validation"
    folds: int = 5
    sigma: float | None = None
    per_feature: bool = False
    penalty: float = 0.1
    l2_penalty: float = 0.1

    def __post_init__(self):
        sparse.check_penalty(self.penalty)
        if not self.l2_penalty > 0:
            raise ValueError(f"task.l2_penalty must be positive, got {self.l2_penalty}")

    def setup(self, seed, dtype):
        """Split, standardize, and state the problem."""
        design = sparse.Design.load(self, seed, dtype)
        data = sparse.make_data(self.criterion, design, self.folds, self.sigma, seed)
        shape = (design.groups,) if self.per_feature else ()
        largest = sparse.largest_penalty(data, 1)
        plain = self.criterion == "validation"
        if plain:
            data = {
                "train": (data["features"], data["targets"][:, 0], data["largest"]),
                "validation": data["validation"],
            }

        def metrics(hparams, params):
            weights = params if plain else sparse.chosen_weights(self.criterion, params, data)
            return {**design.table.metrics(weights), "support": int(np.count_nonzero(weights))}

        starts = {"l1": np.log(self.penalty * largest), "l2": np.log(self.l2_penalty)}
        return Setup(
            problem=problem if plain else OTHERS[self.criterion],
            hparams={name: jnp.full(shape, start, dtype) for name, start in starts.items()},
            params=jnp.zeros(design.groups, dtype) if plain else sparse.start(data, design),
            data=data,
            title=f"elastic net on {self.data}, its penalties{sparse.by(self)}",
            sizes=design.table.sizes,
            metrics=metrics,
            physical=lambda hparams: jax.tree.map(lambda h: np.exp(np.asarray(h, np.float64)), hparams),
        )
