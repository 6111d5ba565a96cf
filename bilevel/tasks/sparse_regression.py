"""What lasso, elastic net and group lasso share: several fits of one design at once, and three criteria for their penalties.

C fits of weights w_c, n groups of d coordinates each, are one inner variable of shape (C·n, d), with a row per fit and group:

    min Σ_c Σ_i s_ic (xᵢᵀw_c − y_ic)²/2 + Σ_c Σ_j l1_j‖w_cj‖ + ½ l2_j‖w_cj‖²

- `validation`: one fit of the training rows; the criterion is its error on the validation rows.
- `cross_validation`: one fit without each fold and a last fit of all rows; the criterion is the mean over folds of the errors
  on the held-out fold.
- `sure`: a fit of y and a fit of y + εδ with δ standard normal; the criterion is Stein's unbiased estimate of the risk by a
  finite difference, ‖y − Xw₀‖²/m − σ² + 2σ²/m · ⟨X(w₁ − w₀), δ⟩/ε with ε = 2σ/m^0.3 (Deledalle, Vaiter, Fadili & Peyré 2014).
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel import datasets
from bilevel.datasets import Split, TablePath
from bilevel.operators.prox import prox_group_lasso, prox_lasso, prox_ridge
from bilevel.problem import Problem
from bilevel.statements import LinearModel
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._tables import load_numbers, sizes, validation_error
from bilevel.tasks.scores import errors

_COARSE = np.geomspace(0.7, 0.01, 10)  # shares of the largest penalty
Criterion = Literal["validation", "cross_validation", "sure"]
Penalty = Callable[[Any], Any]  # hparams -> a number, or one per group, shape (n,)
Expand = Callable[[np.ndarray], np.ndarray]  # features (m, n) -> the columns X of the model (m, n·d)


@dataclasses.dataclass(frozen=True)
class Model:
    """A sparse linear model.

    Attributes:
      title: the model and its penalties, for the title.
      l1, l2: the penalties; None for none.
      counted: the metric that counts the groups with nonzero weights.
      columns: d, the coordinates of a group.
      linear: whether the problem of the validation error is stated as a linear model, which some solvers need.
    """

    title: str
    l1: Penalty
    l2: Penalty | None = None
    counted: str = "support"
    columns: int = 1
    linear: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseTask(Task[Split]):
    """A sparse linear model whose penalties are chosen by one of three criteria; `Lasso` documents the settings.

    `tables` standardizes features and targets by the training rows, and adds the validation rows to them unless the criterion
    is the validation error. `state` needs validation rows for that criterion only.
    """

    data: Literal["diabetes"] | TablePath = "diabetes"
    validation: float = 0.2
    test: float = 0.2
    criterion: Literal["validation", "cross_validation", "sure"] = "validation"
    folds: int = 5
    sigma: float | None = None
    per_feature: bool = False
    penalty: float | None = 0.1

    @property
    @abc.abstractmethod
    def model(self) -> Model:
        """The model whose penalties are chosen."""

    def __post_init__(self) -> None:
        if self.penalty is None and self.criterion == "sure":
            raise ValueError(
                "task.penalty=null tries a coarse grid on held-out rows, and criterion=sure has none: give a share"
            )
        share = self.penalty is None or 0 < self.penalty < 1
        self.check("penalty", share, "be between 0 and 1, a share of the largest penalty")

    def tables(self, seed: int) -> Split:
        """Load, split and standardize the table."""
        return load_numbers(self.data, self.validation, self.test, seed, joined=self.criterion != "validation")

    def state(self, tables: Split, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem of the criterion; `seed` draws the direction of `sure`."""
        model, groups = self.model, tables.train.features.shape[-1]
        held_out = ["validation"] if self.criterion == "validation" else []
        tables.require("regression", *held_out)
        expand = _polynomials(tables.train.features, model.columns) if model.columns > 1 else lambda features: features
        data = self._data(tables, expand, dtype, seed)
        largest = largest_penalty(data, model.columns)
        if not largest > 0:
            raise datasets.DataError(f"{tables.train.name}: y is orthogonal to all columns of X: nothing can be fitted")
        share = coarse_start(data) if self.penalty is None else self.penalty
        fits = data["weights"].shape[1]
        of_all_rows = -1 if self.criterion == "cross_validation" else 0
        start = jnp.zeros((fits * groups, model.columns), dtype)
        if model.linear and held_out:
            train = data["features"], data["targets"][:, 0], data["largest"]
            data, start = {"train": train, "validation": data["validation"]}, start[:, 0]

        def metrics(hparams: Any, params: Any) -> dict[str, float]:
            weights = np.asarray(params, np.float64).reshape(fits, groups, -1)[of_all_rows]
            used = np.any(weights != 0, axis=1)
            return {**errors(tables, weights.ravel(), expand), model.counted: int(np.sum(used))}

        def physical(hparams: Any) -> dict[str, Any]:
            penalties = jax.tree.map(lambda log: np.exp(np.asarray(log, np.float64)), hparams)
            return penalties if isinstance(penalties, dict) else {"alpha": penalties}

        shape, per_feature = ((groups,), ", one per feature") if self.per_feature else ((), "")
        by = {"validation": "", "cross_validation": f", by {self.folds}-fold cross-validation", "sure": ", by SURE"}
        group_size = {"coordinates of a group": model.columns} if model.columns > 1 else {}
        return Setup(
            problem=problem_of(self.criterion, model),
            hparams=jax.tree.map(lambda log: jnp.full(shape, log, dtype), self._logs(share * largest)),
            params=start,
            data=data,
            title=model.title.format(tables.train.name) + per_feature + by[self.criterion],
            sizes=sizes(tables.parts, features=groups) | group_size,
            metrics=metrics,
            physical=physical,
        )

    def _logs(self, l1: float) -> Any:
        """The start of hparams, from the start of the ℓ1 penalty."""
        return np.log(l1)

    def _data(self, tables: Split, expand: Expand, dtype: DTypeLike, seed: int) -> dict[str, Any]:
        """The data of the criterion. Raises `datasets.DataError` if σ cannot be estimated or a fold would be empty."""
        train, samples, extra = tables.train, len(tables.train), {}
        features, targets = expand(train.features), train.targets
        if self.criterion == "validation":
            weights, targets = np.full((samples, 1), 1 / samples), targets[:, None]
            extra["validation"] = expand(tables.validation.features), tables.validation.targets
        elif self.criterion == "cross_validation":
            weights, extra["held_out"] = _folds(samples, self.folds, train.name)
            targets = np.repeat(targets[:, None], self.folds + 1, axis=1)
        else:
            sigma = _noise(features, targets, train.name) if self.sigma is None else self.sigma / train.unit
            extra["epsilon"], extra["variance"] = 2 * sigma / samples**0.3, sigma**2
            extra["direction"] = np.random.default_rng(seed).normal(size=samples)
            weights = np.full((samples, 2), 1 / samples)
            targets = np.stack([targets, targets + extra["epsilon"] * extra["direction"]], axis=1)
        largest = max(np.linalg.norm(np.sqrt(column)[:, None] * features, 2) ** 2 for column in weights.T)
        arrays = {"features": features, "targets": targets, "weights": weights, "largest": largest, **extra}
        return {
            "groups": jnp.zeros(train.features.shape[1], dtype),  # for its shape
            **jax.tree.map(lambda x: jnp.asarray(x, dtype), arrays),
        }


@functools.cache
def problem_of(criterion: Criterion, model: Model) -> Problem:
    """The problem of a criterion."""
    if model.linear and criterion == "validation":
        return Problem(
            outer_loss=validation_error,
            linear_model=LinearModel(
                loss="squared", rows=lambda data: data["train"][:2], l1=model.l1, l2=model.l2, mean=True
            ),
            lipschitz=lambda hparams, data: data["train"][2],
        )
    of_row = prox_lasso if model.columns == 1 else prox_group_lasso

    def prox(params: jax.Array, hparams: Any, data: Any, step: Any) -> jax.Array:
        def scaled(penalty: Penalty) -> jax.Array:  # one number per row, as the step may be
            each = jnp.broadcast_to(penalty(hparams), data["groups"].shape)
            return step * jnp.tile(each, len(params) // len(each))[:, None].astype(params.dtype)

        shrunk = jax.vmap(of_row)(params, scaled(model.l1)[:, 0])
        return shrunk if model.l2 is None else prox_ridge(shrunk, scaled(model.l2))

    return Problem(
        inner_loss,
        OUTER[criterion],
        prox=prox,
        separable=True if model.columns == 1 else "rows",
        lipschitz=lambda hparams, data: data["largest"],
    )


def inner_loss(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """Half of the weighted squared errors of all fits."""
    return jnp.sum(data["weights"] * (_fits(params, data["features"]) - data["targets"]) ** 2) / 2


def validation_loss(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """Mean squared error on the validation rows."""
    features, targets = data["validation"]
    return jnp.mean((_fits(params, features)[:, 0] - targets) ** 2)


def cross_validation_loss(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """Mean over the folds of the mean squared error on the held-out fold."""
    return jnp.sum(data["held_out"] * (_fits(params, data["features"]) - data["targets"]) ** 2)


def sure_loss(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """Stein's unbiased risk estimate, per row."""
    fits = _fits(params, data["features"])
    error = jnp.mean((fits[:, 0] - data["targets"][:, 0]) ** 2)
    freedom = jnp.mean((fits[:, 1] - fits[:, 0]) * data["direction"]) / data["epsilon"]
    return error + data["variance"] * (2 * freedom - 1)


OUTER = {"validation": validation_loss, "cross_validation": cross_validation_loss, "sure": sure_loss}


def largest_penalty(data: dict[str, Any], columns: int) -> float:
    """The smallest ℓ1 penalty for which the first fit is zero."""
    correlation = data["features"].T @ (data["weights"][:, 0] * data["targets"][:, 0])
    return float(jnp.max(jnp.linalg.norm(correlation.reshape(-1, columns), axis=1)))


def coarse_start(data: dict[str, Any]) -> float:
    """The share of the largest penalty with the least error on the held-out rows, of a coarse grid, by scikit-learn's lasso."""
    from sklearn.linear_model import lasso_path

    features, targets, weights = (np.asarray(data[name], np.float64) for name in ("features", "targets", "weights"))
    largest, totals = largest_penalty(data, 1), np.zeros(len(_COARSE))
    for fit in range(weights.shape[1]):
        kept = weights[:, fit] > 0
        judged = (features[~kept], targets[~kept, fit]) if "held_out" in data else data["validation"]
        if not len(judged[0]):  # all rows are fitted
            continue
        settings: dict[str, Any] = {"alphas": largest * _COARSE, "tol": 1e-3}
        path = lasso_path(features[kept], targets[kept, fit], **settings)[1]
        totals += np.mean((np.asarray(judged[0]) @ path - np.asarray(judged[1])[:, None]) ** 2, axis=0)
    return float(_COARSE[np.argmin(totals)])


def _fits(params: jax.Array, features: jax.Array) -> jax.Array:
    """Predictions of all fits, shape (m, C)."""
    return features @ params.reshape(-1, features.shape[1]).T


def _folds(samples: int, folds: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the rows in each fit and in the criterion, both of shape (m, folds + 1)."""
    from sklearn.model_selection import KFold

    if not 2 <= folds <= samples:
        raise datasets.DataError(
            f"{source}: task.folds must be between 2 and the number of training rows, {samples}, got {folds}"
        )
    held_out = np.zeros((samples, folds + 1))
    for number, (_, rows) in enumerate(KFold(folds).split(held_out)):
        held_out[rows, number] = 1
    kept = 1 - held_out
    return kept / kept.sum(0), held_out / np.maximum(held_out.sum(0), 1) / folds


def _noise(features: np.ndarray, targets: np.ndarray, source: str) -> float:
    """The standard deviation of the residuals of least squares."""
    rank = np.linalg.matrix_rank(features)
    if len(targets) < 2 * rank:
        raise datasets.DataError(
            f"{source}: the noise cannot be estimated from {len(targets)} rows for {rank} independent columns: give task.sigma, "
            "its standard deviation"
        )
    residual = targets - features @ np.linalg.lstsq(features, targets, rcond=None)[0]
    return float(np.sqrt(residual @ residual / (len(targets) - rank)))


def _polynomials(train: np.ndarray, degree: int) -> Expand:
    """features -> Legendre polynomials 1 … degree of each feature, centered and scaled over the training rows."""
    largest = np.maximum(np.abs(train).max(0), np.finfo(float).tiny)

    def raw(features: np.ndarray) -> np.ndarray:
        powers = np.polynomial.legendre.legvander(np.clip(features / largest, -1, 1), degree)[..., 1:]
        return powers.reshape(len(features), -1)

    mean, deviation = raw(train).mean(0), raw(train).std(0)
    return lambda features: (raw(features) - mean) / np.where(deviation > 0, deviation, 1)
