"""The group lasso of an additive model: several functions of a feature enter together or not at all."""

import dataclasses

import jax.numpy as jnp

from bilevel.tasks.sparse_regression import Model, SparseTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupLasso(SparseTask):
    """The group lasso: its penalty, or one per group, chosen by one of three criteria.

    min over w of ‖Zw − y‖²/(2m) + Σⱼ exp(θⱼ)‖wⱼ‖₂. Z holds, for each feature, the Legendre polynomials up to `degree` of the
    feature divided by its largest training magnitude, each scaled to variance 1 over the training rows. Inner variable: w,
    with a row per group. hparams: θ, log penalties, a scalar or shape (features,).

    Args:
      data, validation, test, criterion, folds, sigma: as for the lasso.
      degree: of the polynomials, and the size of a group.
      per_feature: one penalty per group instead of one for all.
      penalty: start, as a share of the smallest penalty for which w is zero.

    Reference: Yuan & Lin 2006; Ravikumar et al. 2009 (sparse additive models).
    """

    degree: int = 3
    penalty: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("degree", self.degree >= 1, "be at least 1")

    @property
    def model(self) -> Model:
        """The group lasso."""
        return Model("group lasso on {}, its penalty", jnp.exp, counted="groups", columns=self.degree, linear=False)
