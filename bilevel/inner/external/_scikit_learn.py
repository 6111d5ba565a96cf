"""scikit-learn's linear models for `Problem.linear_model`, without an intercept; the objective is mapped exactly."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from bilevel._needs import Need, linear_model
from bilevel.inner.external._base import Answer
from bilevel.inner.external._rows import Rows, _ScikitLearn, count, require_classes, scaled_start, split, unscaled

NO_L2 = Need(
    "a linear model without an ℓ2 penalty",
    lambda parts: (
        "has an ℓ2 penalty in Problem.linear_model"
        if parts.linear_model is not None and parts.linear_model.l2 is not None
        else None
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SklearnRidge(_ScikitLearn):
    """Ridge regression by `sklearn.linear_model.Ridge`: minimize (ω/2)‖Xw − y‖² + ½Σ l2ⱼwⱼ².

    X dense or sparse, one target or several.

    Args:
      tol: of the iterative methods.
      solver: scikit-learn's name of the method; "auto" is a Cholesky factorization for a dense X, conjugate gradients for a
        sparse one.
    """

    needs: ClassVar[tuple[Need, ...]] = (linear_model("squared", l1=False),)

    tol: float = 1e-12
    solver: Literal["auto", "cholesky", "svd", "lsqr", "sparse_cg"] = "auto"

    def _fit(self, rows, start):
        from sklearn.linear_model import Ridge

        scale, alpha = split(np.sqrt(rows.l2))
        model = Ridge(
            alpha=alpha**2 / rows.weight,
            fit_intercept=False,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_steps,
        )
        model.fit(rows.scaled(scale), rows.targets)
        return Answer(unscaled(model.coef_, scale, start), count(model.n_iter_))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SklearnLasso(_ScikitLearn):
    """The lasso by `sklearn.linear_model.Lasso` (coordinate descent): minimize (ω/2)‖Xw − y‖² + Σ l1ⱼ|wⱼ|.

    X dense or sparse, one target or several. Starts from params.

    Args:
      tol: the duality gap at which it stops, relative to ‖y‖²; the error of w is about its square root.
    """

    needs: ClassVar[tuple[Need, ...]] = (linear_model("squared", l1=True), NO_L2)

    tol: float = 1e-12

    def _fit(self, rows, start):
        from sklearn.linear_model import Lasso

        scale, l1 = split(rows.l1)
        model = Lasso(
            alpha=l1 / _per_row(rows), fit_intercept=False, tol=self.tol, max_iter=self.max_steps, warm_start=True
        )
        return _descend(model, rows, scale, start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SklearnElasticNet(_ScikitLearn):
    """The elastic net by `sklearn.linear_model.ElasticNet`: minimize (ω/2)‖Xw − y‖² + Σ l1ⱼ|wⱼ| + ½Σ l2ⱼwⱼ².

    X dense or sparse, one target or several. Starts from params. The penalties are numbers, or one for each feature with the
    same l2ⱼ/l1ⱼ² for all, which is what scaling the columns can express; else the status is `EXTERNAL_ERROR`.

    Args:
      tol: as for `SklearnLasso`.
    """

    needs: ClassVar[tuple[Need, ...]] = (linear_model("squared", l1=True),)

    tol: float = 1e-12

    def _fit(self, rows, start):
        from sklearn.linear_model import ElasticNet

        scale, l1, l2 = _split_both(rows.l1, np.zeros(()) if rows.l2 is None else rows.l2)
        model = ElasticNet(
            alpha=(l1 + l2) / _per_row(rows),
            l1_ratio=l1 / (l1 + l2) if l1 + l2 > 0 else 1.0,
            fit_intercept=False,
            tol=self.tol,
            max_iter=self.max_steps,
            warm_start=True,
        )
        return _descend(model, rows, scale, start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SklearnLogisticRegression(_ScikitLearn):
    """ℓ2 logistic regression by `sklearn.linear_model.LogisticRegression`: minimize ω Σ loss + ½Σ l2ⱼ‖wⱼ‖².

    X dense or sparse. params of shape (n,) are two classes, of shape (n, k) the softmax of k. Starts from params. For k = 2
    scikit-learn has one vector v: by symmetry W = [−v/2, v/2], whose penalty is that of v with l2/2.

    Args:
      tol: the largest entry of the gradient of the mean objective at which it stops.
      solver: "newton-cholesky" factors a Hessian of size nk; "lbfgs" is for many features, and less accurate.
    """

    needs: ClassVar[tuple[Need, ...]] = (linear_model("logistic", l1=False),)

    tol: float = 1e-12
    max_steps: int = 1000
    solver: Literal["newton-cholesky", "newton-cg", "lbfgs"] = "newton-cholesky"

    def _fit(self, rows, start):
        from sklearn.linear_model import LogisticRegression

        classes = 2 if start.ndim == 1 else start.shape[1]
        labels = rows.targets > 0 if start.ndim == 1 else rows.targets
        require_classes(labels, classes)
        pair = start.ndim == 2 and classes == 2
        scale, root = split(np.sqrt(rows.l2 / 2 if pair else rows.l2))
        model = LogisticRegression(
            C=rows.weight / root**2,
            fit_intercept=False,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_steps,
            warm_start=True,
        )
        model.coef_ = scaled_start(start[:, 1] - start[:, 0] if pair else start, scale)
        model.fit(rows.scaled(scale), labels)
        found = model.coef_[0] / scale if classes == 2 else unscaled(model.coef_, scale, start)
        return Answer(np.stack([-found / 2, found / 2], axis=1) if pair else found, count(model.n_iter_))


def _split_both(l1: np.ndarray, l2: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(s, c, d) with l1 = c·s and l2 = d·s²."""
    if np.ndim(l1) == np.ndim(l2) == 0:
        return np.ones(()), float(l1), float(l2)
    ratio = l2 / l1**2
    if not np.allclose(ratio, ratio[0], rtol=1e-6):
        raise ValueError(
            "per-feature penalties must have the same l2/l1² for every feature, since scikit-learn's elastic net has one l1 and "
            "one l2: use inner.FISTA for others"
        )
    return np.broadcast_to(l1, ratio.shape), 1.0, float(ratio.mean())


def _per_row(rows: Rows) -> float:
    """mω: scikit-learn's coordinate descent minimizes the mean over the rows."""
    return rows.weight * len(rows.targets)


def _descend(model, rows: Rows, scale, start) -> Answer:
    """Coordinate descent from a start."""
    model.coef_ = scaled_start(start, scale)
    model.fit(rows.scaled(scale), rows.targets)
    return Answer(unscaled(model.coef_, scale, start), count(model.n_iter_))
