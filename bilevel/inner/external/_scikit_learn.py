"""scikit-learn's linear models for `Problem.linear_model`, without an intercept; the objective is mapped exactly.

With ω the weight of a row (1, or 1/m for a mean), v = s∘w and X̃ = X diag(1/s): Xw = X̃v, so that s = √l2 makes
½Σ l2ⱼwⱼ² = ½‖v‖², and s = l1 makes Σ l1ⱼ|wⱼ| = ‖v‖₁.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from bilevel._needs import Need, linear_model
from bilevel._tree import PyTree
from bilevel.inner.external import _callback
from bilevel.inner.external._base import Answer, Foreign, _External
from bilevel.problem import At

NO_L2 = Need(
    "a linear model without an ℓ2 penalty",
    lambda parts: (
        "has an ℓ2 penalty in Problem.linear_model"
        if parts.linear_model is not None and parts.linear_model.l2 is not None
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
                "a per-feature penalty is not positive, and scikit-learn has one penalty for all features: keep them all "
                "positive, or give a number"
            )
        if isinstance(self.features, np.ndarray):
            return self.features / scale
        return self.features.multiply(1 / scale[None, :]).tocsr()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ScikitLearn(_External):
    """A model of scikit-learn, fitted to the rows of `Problem.linear_model`."""

    positive = ("tol",)

    tol: float = 1e-12

    @abc.abstractmethod
    def _fit(self, rows: Rows, start: np.ndarray) -> Answer:
        """Fit, from a start where the model takes one."""

    def _model(self, kind: Callable[..., Any], **settings: Any) -> Any:
        """A model with the settings that all of them share."""
        return kind(fit_intercept=False, tol=self.tol, max_iter=self.max_steps, **settings)

    def _foreign(self, at: At, start: PyTree) -> tuple[Foreign, PyTree]:
        model: Any = at.parts.linear_model  # which the needs ask for
        penalties = [
            None if function is None else model.penalty(name, at.hparams)
            for name, function in (("l1", model.l1), ("l2", model.l2))
        ]

        def foreign(start: np.ndarray, inputs: PyTree) -> Answer:
            features, targets, l1, l2 = _callback.in_scipy(inputs)
            weight = 1 / len(targets) if model.mean else 1.0
            return self._fit(Rows(features, targets, l1, l2, weight), start)

        return foreign, (*model.rows(at.data), *penalties)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SklearnRidge(_ScikitLearn):
    """Ridge regression by `sklearn.linear_model.Ridge`: minimize (ω/2)‖Xw − y‖² + ½Σ l2ⱼwⱼ².

    X is dense or sparse, shape (m, n); params has shape (n,), or (n, k) for k targets. rtol, atol and statuses are as for
    `Python`.

    Args:
      max_steps: limit on the iterations of the iterative methods.
      tol: tolerance of the iterative methods.
      solver: scikit-learn's name of the method; "auto" is a Cholesky factorization for a dense X, conjugate gradients for a
        sparse one.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner=bl.LinearModel(loss="squared", rows=lambda data: data, l2=lambda hparams: hparams))
      >>> data = jnp.eye(2), jnp.array([2.0, 4.0])
      >>> print(bl.inner.SklearnRidge().solve(problem, jnp.zeros(2), 1.0, data).params.round(3))
      [1. 2.]
    """

    needs = (linear_model("squared", l1=False),)

    solver: Literal["auto", "cholesky", "svd", "lsqr", "sparse_cg"] = "auto"

    def _fit(self, rows: Rows, start: np.ndarray) -> Answer:
        from sklearn.linear_model import Ridge

        scale, root = split(np.sqrt(rows.l2))
        return _fitted(self._model(Ridge, alpha=root**2 / rows.weight, solver=self.solver), rows, scale, start)


class _CoordinateDescent(_ScikitLearn):
    """scikit-learn's elastic net, which is its lasso where there is no ℓ2 penalty."""

    def _fit(self, rows: Rows, start: np.ndarray) -> Answer:
        from sklearn.linear_model import ElasticNet

        scale, l1, l2 = _split_both(rows.l1, rows.l2)
        count = rows.weight * len(rows.targets)  # scikit-learn minimizes the mean over the rows
        share = l1 / (l1 + l2) if l1 + l2 > 0 else 1.0
        model = self._model(ElasticNet, alpha=(l1 + l2) / count, l1_ratio=share, warm_start=True)
        return _fitted(model, rows, scale, start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SklearnLasso(_CoordinateDescent):
    """The lasso by scikit-learn's coordinate descent: minimize (ω/2)‖Xw − y‖² + Σ l1ⱼ|wⱼ|.

    Shapes, rtol, atol and statuses are as for `SklearnRidge`; params is the start.

    Args:
      max_steps: limit on sweeps.
      tol: the duality gap at which it stops, relative to ‖y‖²; the error of w is about its square root.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner=bl.LinearModel(loss="squared", rows=lambda data: data, l1=lambda hparams: hparams))
      >>> data = jnp.eye(2), jnp.array([2.0, 0.5])
      >>> print(bl.inner.SklearnLasso().solve(problem, jnp.zeros(2), 1.0, data).params.round(3))
      [1. 0.]
    """

    needs = (linear_model("squared", l1=True), NO_L2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SklearnElasticNet(_CoordinateDescent):
    """The elastic net by scikit-learn's coordinate descent: minimize (ω/2)‖Xw − y‖² + Σ l1ⱼ|wⱼ| + ½Σ l2ⱼwⱼ².

    Shapes, start and arguments (rtol, atol, max_steps, tol) are as for `SklearnLasso`. The penalties are numbers, or one for each
    feature with the same l2ⱼ/l1ⱼ² for all, since it scales the columns to one l1 and one l2; else the status is `EXTERNAL_ERROR`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> model = bl.LinearModel(loss="squared", rows=lambda data: data, l1=lambda hparams: hparams, l2=lambda hparams: hparams)
      >>> data = jnp.eye(2), jnp.array([3.0, 0.5])
      >>> print(bl.inner.SklearnElasticNet().solve(bl.Problem(inner=model), jnp.zeros(2), 1.0, data).params.round(3))
      [1. 0.]
    """

    needs = (linear_model("squared", l1=True),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SklearnLogisticRegression(_ScikitLearn):
    """ℓ2 logistic regression by `sklearn.linear_model.LogisticRegression`: minimize ω Σ loss + ½Σ l2ⱼ‖wⱼ‖².

    X is dense or sparse, shape (m, n). params is the start: shape (n,) for two classes, (n, k) for the softmax of k. For k = 2
    scikit-learn has one vector v: by symmetry W = [−v/2, v/2], whose penalty is that of v with l2/2. Every class needs a row.
    rtol, atol and statuses are as for `Python`.

    Args:
      max_steps: limit on iterations.
      tol: the largest entry of the gradient of the mean objective at which it stops.
      solver: "newton-cholesky" factors a Hessian of size nk; "lbfgs" is for many features, and less accurate.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner=bl.LinearModel(loss="logistic", rows=lambda data: data, l2=lambda hparams: hparams))
      >>> data = jnp.array([[1.0], [-1.0]]), jnp.array([1, 0])
      >>> bool(bl.inner.SklearnLogisticRegression().solve(problem, jnp.zeros(1), 1.0, data).params[0] > 0)
      True
    """

    needs = (linear_model("logistic", l1=False),)

    max_steps: int = 1000
    solver: Literal["newton-cholesky", "newton-cg", "lbfgs"] = "newton-cholesky"

    def _fit(self, rows: Rows, start: np.ndarray) -> Answer:
        from sklearn.linear_model import LogisticRegression

        classes = 2 if start.ndim == 1 else start.shape[1]
        labels = rows.targets > 0 if start.ndim == 1 else rows.targets
        require_classes(labels, classes)
        pair = start.ndim == 2 and classes == 2
        scale, root = split(np.sqrt(rows.l2 / 2 if pair else rows.l2))
        model = self._model(LogisticRegression, C=rows.weight / root**2, solver=self.solver, warm_start=True)
        single = start[:, 1] - start[:, 0] if pair else start
        answer = _fitted(model, rows._replace(targets=labels), scale, single)
        v = answer.params
        return answer._replace(params=np.stack([-v / 2, v / 2], axis=1)) if pair else answer


def require_classes(labels: np.ndarray, classes: int) -> None:
    """Raise ValueError unless every class has a row, since scikit-learn numbers only those that it sees."""
    seen = np.unique(labels)
    if len(seen) != classes:
        raise ValueError(
            f"the training rows hold {len(seen)} of the {classes} classes that params has: every class needs a row"
        )


def split(penalty: np.ndarray) -> tuple[np.ndarray, float]:
    """(s, c) with penalty = c·s: a number stays one, a vector becomes the scale of the columns."""
    return (np.ones(()), float(penalty)) if np.ndim(penalty) == 0 else (penalty, 1.0)


def _split_both(l1: np.ndarray, l2: np.ndarray | None) -> tuple[np.ndarray, float, float]:
    """(s, c, d) with l1 = c·s and l2 = d·s²."""
    if l2 is None:
        return *split(l1), 0.0
    if np.ndim(l1) == np.ndim(l2) == 0:
        return np.ones(()), float(l1), float(l2)
    ratio = l2 / l1**2
    if not np.allclose(ratio, ratio[0], rtol=1e-6):
        raise ValueError(
            "per-feature penalties must have the same l2/l1² for every feature, since scikit-learn's elastic net has one l1 and "
            "one l2: use inner.FISTA for others"
        )
    return np.broadcast_to(l1, ratio.shape), 1.0, float(ratio.mean())


def _fitted(model: Any, rows: Rows, scale: np.ndarray, start: np.ndarray) -> Answer:
    """Fit v = s∘w, which scikit-learn keeps as one row for each target or class, from a start; return w shaped like params."""
    model.coef_ = np.asfortranarray(np.atleast_2d(start.T * scale))
    model.fit(rows.scaled(scale), rows.targets)
    found = model.coef_ / scale
    found = found.reshape(start.shape) if start.ndim == 1 else np.atleast_2d(found).T
    return Answer(found, iterations(model))


def iterations(model: Any) -> int:
    """The iterations that a model reports, the largest number over its targets; 1 if it reports none."""
    return 1 if model.n_iter_ is None else int(np.max(model.n_iter_))
