"""The lasso with one penalty, or one per feature."""

import dataclasses

import jax.numpy as jnp

from bilevel.tasks.sparse_regression import Model, SparseTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lasso(SparseTask):
    """The lasso: its penalty, or one penalty per feature, chosen by one of three criteria.

    min over w of ‖Xw − y‖²/(2m) + Σ exp(θᵢ)|wᵢ|, which is scikit-learn's objective. hparams: θ, log penalties, a scalar or shape
    (features,). Without an intercept; the task's own tables are standardized by the training rows.

    Args:
      data: `diabetes` (442 × 10, from scikit-learn), or the path of a table (see `datasets.load_table`).
      validation, test: shares of the rows, or their numbers; the other criteria train on the validation rows too.
      criterion: `validation` error, `cross_validation` error over contiguous folds, or `sure`, Stein's unbiased risk estimate.
      folds: number of folds of cross-validation.
      sigma: standard deviation of the noise in y, for `sure`. None: estimated from the residuals of least squares.
      per_feature: one penalty per feature instead of one for all.
      penalty: start, as a share of the smallest penalty for which w is zero. None: the best of ten values on the held-out
        rows, because the error may have several minima and a gradient leads to the nearest one.

    Reference: Bertrand et al. 2020 (implicit differentiation of the lasso); Deledalle et al. 2014 (SURE).
    """

    @property
    def model(self) -> Model:
        """The lasso."""
        return Model("lasso on {}, its penalty", jnp.exp)
