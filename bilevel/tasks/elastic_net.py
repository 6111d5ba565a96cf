"""The elastic net: an ℓ1 and an ℓ2 penalty, or both for every feature."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.tasks.sparse_regression import Model, SparseTask


def _l1(hparams: dict[str, jax.Array]) -> jax.Array:
    return jnp.exp(hparams["l1"])


def _l2(hparams: dict[str, jax.Array]) -> jax.Array:
    return jnp.exp(hparams["l2"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElasticNet(SparseTask):
    """The elastic net: its two penalties, or two per feature, chosen by one of three criteria.

    min over w of ‖Xw − y‖²/(2m) + Σ exp(θᵢ)|wᵢ| + ½Σ exp(φᵢ)wᵢ². In scikit-learn's terms alpha·l1_ratio = exp(θ) and
    alpha·(1 − l1_ratio) = exp(φ). hparams: {"l1": θ, "l2": φ}, each a scalar or shape (features,).

    Args:
      data, validation, test, criterion, folds, sigma, per_feature: as for the lasso.
      penalty: start of the ℓ1 penalties, as a share of the smallest one for which w is zero.
      l2_penalty: start of the ℓ2 penalties.
    """

    penalty: float = 0.1
    l2_penalty: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("l2_penalty", self.l2_penalty > 0, "be positive")

    @property
    def model(self) -> Model:
        """The elastic net."""
        return Model("elastic net on {}, its penalties", _l1, _l2)

    def _logs(self, l1: float) -> dict[str, Any]:
        return {"l1": np.log(l1), "l2": np.log(self.l2_penalty)}
