"""scikit-learn's linear models for `Problem.linear_model`, without an intercept.

The objective is mapped exactly. With ω what each row counts (1, or 1/m for a mean), per-feature penalties are scaled away: with
v = s∘w and X̃ = X diag(1/s), Xw = X̃v, and s = √l2 makes ½Σ l2ⱼwⱼ² = ½‖v‖², s = l1 makes Σ l1ⱼ|wⱼ| = ‖v‖₁.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from bilevel import _checks
from bilevel.inner._needs import Need, linear_model
from bilevel.inner.external import _callback
from bilevel.inner.external._base import Answer, _External

NO_L2 = Need(
    "a linear model without an ℓ2 penalty",
    lambda problem: (
        "has an ℓ2 penalty in Problem.linear_model"
        if problem.linear_model is not None and problem.linear_model.l2 is not None
        else None
    ),
)


class Rows(NamedTuple):
    """The training rows on the host, and the penalties: numbers, or one for each feature; None for none.

    Attributes:
      weight: ω.
    """

    features: Any
    targets: Any
    l1: Any
    l2: Any
    weight: float

    def scaled(self, scale: np.ndarray) -> Any:
        """X diag(1/scale), for a number or a vector."""
        if np.ndim(scale) == 0:
            return self.features
        if not np.all(scale > 0):
            raise ValueError(
                "a per-feature penalty is not positive, and scikit-learn knows one penalty for all features: keep them all "
                "positive, or give a number"
            )
        if isinstance(self.features, np.ndarray):
            return self.features / scale
        return self.features.multiply(1 / scale[None, :]).tocsr()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ScikitLearn(_External):
    """A model of scikit-learn, fitted to the rows of `Problem.linear_model`."""

    tol: float

    def __post_init__(self):
        super().__post_init__()
        _checks.require_positive(f"inner.{type(self).__name__}", tol=self.tol)

    @abc.abstractmethod
    def _fit(self, rows: Rows, start: np.ndarray) -> Answer:
        """Fit, from a start where the model takes one."""

    def _foreign(self, problem, start, hparams, data):
        model = problem.linear_model
        penalties = [None if penalty is None else penalty(hparams) for penalty in (model.l1, model.l2)]

        def foreign(start, inputs):
            features, targets, l1, l2 = _callback.in_scipy(inputs)
            weight = 1 / len(targets) if model.mean else 1.0
            return self._fit(Rows(features, targets, l1, l2, weight), start)

        return foreign, (*model.rows(data), *penalties)


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

        scale, alpha = _split(np.sqrt(rows.l2))
        model = Ridge(
            alpha=alpha**2 / rows.weight,
            fit_intercept=False,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_steps,
        )
        model.fit(rows.scaled(scale), rows.targets)
        return Answer(_unscaled(model.coef_, scale, start), _count(model.n_iter_))


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

        scale, l1 = _split(rows.l1)
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
        scale, root = _split(np.sqrt(rows.l2 / 2 if pair else rows.l2))
        model = LogisticRegression(
            C=rows.weight / root**2,
            fit_intercept=False,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_steps,
            warm_start=True,
        )
        model.coef_ = _scaled_start(start[:, 1] - start[:, 0] if pair else start, scale)
        model.fit(rows.scaled(scale), labels)
        found = model.coef_[0] / scale if classes == 2 else _unscaled(model.coef_, scale, start)
        return Answer(np.stack([-found / 2, found / 2], axis=1) if pair else found, _count(model.n_iter_))


def require_classes(labels: np.ndarray, classes: int) -> None:
    """Raise ValueError unless every class is there, since scikit-learn numbers those that it sees."""
    seen = np.unique(labels)
    if len(seen) != classes:
        raise ValueError(
            f"the training rows hold {len(seen)} of the {classes} classes that params has: every class needs a row"
        )


def _split(penalty: np.ndarray) -> tuple[np.ndarray, float]:
    """(s, c) with penalty = c·s: a number stays one, a vector becomes the scale of the columns."""
    return (np.ones(()), float(penalty)) if np.ndim(penalty) == 0 else (penalty, 1.0)


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
    model.coef_ = _scaled_start(start, scale)
    model.fit(rows.scaled(scale), rows.targets)
    return Answer(_unscaled(model.coef_, scale, start), _count(model.n_iter_))


def _scaled_start(start: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """v = s∘w as scikit-learn keeps it, one row for each target or class."""
    return np.asfortranarray(np.atleast_2d(start.T * scale))


def _unscaled(coefficients: np.ndarray, scale: np.ndarray, start: np.ndarray) -> np.ndarray:
    """w of scikit-learn's coefficients, in the orientation of params."""
    found = coefficients / scale
    return found.reshape(start.shape) if start.ndim == 1 else found.T


def _count(steps: Any) -> int:
    return 1 if steps is None else int(np.max(steps))
