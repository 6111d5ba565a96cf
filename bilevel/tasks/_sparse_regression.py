"""What lasso, elastic net and group lasso share: several fits of one design at once, and three criteria for their penalties.

C fits of weights w_c, n groups of d coordinates each, are one inner variable of shape (C·n, d), a row per fit and group:

    min Σ_c Σ_i s_ic (xᵢᵀw_c − y_ic)²/2 + Σ_c Σ_j l1_j‖w_cj‖ + ½ l2_j‖w_cj‖²

- `validation`: one fit of the training rows, judged on the validation rows.
- `cross_validation`: a fit for each fold, without it, and last one of all rows; the mean over folds of the errors on them.
- `sure`: a fit of y and one of y + εδ, δ standard normal: Stein's unbiased estimate of the risk by a finite difference,
  ‖y − Xw₀‖²/m − σ² + 2σ²/m · ⟨X(w₁ − w₀), δ⟩/ε with ε = 2σ/m^0.3 (Deledalle, Vaiter, Fadili & Peyré 2014).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import datasets
from bilevel.problem import Problem
from bilevel.tasks._regression import Regression

_COARSE = np.geomspace(0.7, 0.01, 10)  # shares of the largest penalty
Criterion = Literal["validation", "cross_validation", "sure"]
Penalties = Callable[[Any], tuple[Any, Any]]  # hparams -> (l1, l2), each a number or shape (n,)


@dataclasses.dataclass(frozen=True)
class Design:
    """A table, and how its features become the columns of a model.

    Attributes:
      table: where the rows come from.
      columns: d, the coordinates of a group.
      dtype: of the arrays.
      expand: features (m, n) -> X (m, n·d).
    """

    table: Regression
    columns: int
    dtype: Any
    expand: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def load(cls, task: Any, seed: int, dtype: Any, degree: int = 1) -> Design:
        """The table of a task; all but the test rows are for training unless the criterion is the validation error."""
        joined = task.criterion != "validation"
        table = Regression.load(task.data, task.validation, task.test, seed, joined)
        return cls(
            table, degree, dtype, _polynomials(table.split.train.features, degree) if degree > 1 else lambda x: x
        )

    @property
    def groups(self) -> int:
        """n."""
        return self.table.count

    def rows(self, part: datasets.Table) -> tuple[np.ndarray, np.ndarray]:
        """(X, y) of one part."""
        return self.expand(part.features), (part.targets - self.table.mean) / self.table.deviation


def check_penalty(penalty: float | None, criterion: Criterion = "validation") -> None:
    """Refuse a start that is no share of the largest penalty."""
    if penalty is None and criterion == "sure":
        raise ValueError(
            "task.penalty=null tries a coarse grid on held-out rows, and criterion=sure has none: give a share"
        )
    if penalty is not None and not 0 < penalty < 1:
        raise ValueError(f"task.penalty must be between 0 and 1, a share of the largest penalty, got {penalty}")


def by(task: Any) -> str:
    """The criterion, for the title."""
    words = {"validation": "", "cross_validation": f", by {task.folds}-fold cross-validation", "sure": ", by SURE"}
    return (", one per feature" if task.per_feature else "") + words[task.criterion]


def start(data: dict[str, Any], design: Design) -> Any:
    """Zero weights of all fits."""
    return jnp.zeros((data["weights"].shape[1] * design.groups, design.columns), design.dtype)


def problem_of(criterion: Criterion, penalties: Penalties, columns: int) -> Problem:
    """The problem of a criterion."""

    def prox(params, hparams, data, step):
        tiles = params.shape[0] // data["groups"].shape[0]
        l1, l2 = (jnp.tile(jnp.broadcast_to(p, data["groups"].shape), tiles)[:, None] for p in penalties(hparams))
        return _shrink(params, step * l1.astype(params.dtype)) / (1 + step * l2.astype(params.dtype))

    return Problem(
        inner_loss,
        OUTER[criterion],
        prox=prox,
        separable=True if columns == 1 else "rows",
        lipschitz=lambda hparams, data: data["largest"],
    )


def inner_loss(params, hparams, data):
    """The weighted squared errors of all fits, halved."""
    return jnp.sum(data["weights"] * (_fits(params, data["features"]) - data["targets"]) ** 2) / 2


def validation_loss(params, hparams, data):
    """Mean squared error on the validation rows, in units of the training targets' variance."""
    features, targets = data["validation"]
    return jnp.mean((_fits(params, features)[:, 0] - targets) ** 2)


def cross_validation_loss(params, hparams, data):
    """Mean over the folds of the mean squared error on each."""
    return jnp.sum(data["held_out"] * (_fits(params, data["features"]) - data["targets"]) ** 2)


def sure_loss(params, hparams, data):
    """Stein's unbiased risk estimate, per row."""
    fits = _fits(params, data["features"])
    error = jnp.mean((fits[:, 0] - data["targets"][:, 0]) ** 2)
    freedom = jnp.mean((fits[:, 1] - fits[:, 0]) * data["direction"]) / data["epsilon"]
    return error + data["variance"] * (2 * freedom - 1)


OUTER = {"validation": validation_loss, "cross_validation": cross_validation_loss, "sure": sure_loss}


def make_data(criterion: Criterion, design: Design, folds: int, sigma: float | None, seed: int) -> dict[str, Any]:
    """The data pytree of a criterion. Raises `datasets.DataError` where σ cannot be estimated, or a fold would be empty."""
    features, targets = design.rows(design.table.split.train)
    samples, width = features.shape
    extra: dict[str, Any] = {}
    if criterion == "validation":
        weights, targets = np.full((samples, 1), 1 / samples), targets[:, None]
        extra["validation"] = design.rows(design.table.split.validation)
    elif criterion == "cross_validation":
        weights, extra["held_out"] = _folds(samples, folds, design.table.source)
        targets = np.repeat(targets[:, None], folds + 1, axis=1)
    else:
        sigma = _noise(features, targets, design.table.source) if sigma is None else sigma / design.table.deviation
        extra["epsilon"], extra["variance"] = 2 * sigma / samples**0.3, sigma**2
        extra["direction"] = np.random.default_rng(seed).normal(size=samples)
        weights = np.full((samples, 2), 1 / samples)
        targets = np.stack([targets, targets + extra["epsilon"] * extra["direction"]], axis=1)
    largest = max(np.linalg.norm(np.sqrt(column)[:, None] * features, 2) ** 2 for column in weights.T)
    arrays = {"features": features, "targets": targets, "weights": weights, "largest": largest, **extra}
    return {
        "groups": jnp.zeros(width // design.columns, design.dtype),  # for its shape
        **jax.tree.map(lambda x: jnp.asarray(x, design.dtype), arrays),
    }


def largest_penalty(data: dict[str, Any], columns: int) -> float:
    """The smallest ℓ1 penalty at which the first fit is zero."""
    correlation = data["features"].T @ (data["weights"][:, 0] * data["targets"][:, 0])
    return float(jnp.max(jnp.linalg.norm(correlation.reshape(-1, columns), axis=1)))


def coarse_start(data: dict[str, Any]) -> float:
    """The best of a coarse grid of lasso penalties on the held-out rows, as a share of the largest one, by scikit-learn."""
    from sklearn.linear_model import lasso_path

    features, targets = np.asarray(data["features"], np.float64), np.asarray(data["targets"], np.float64)
    weights = np.asarray(data["weights"])
    largest, errors = largest_penalty(data, 1), np.zeros(len(_COARSE))
    for fit in range(weights.shape[1]):
        kept = weights[:, fit] > 0
        judged = (features[~kept], targets[~kept, fit]) if "held_out" in data else data["validation"]
        if not len(judged[0]):  # the fit of all rows
            continue
        settings: dict[str, Any] = {"alphas": largest * _COARSE, "tol": 1e-3}
        path = lasso_path(features[kept], targets[kept, fit], **settings)[1]
        errors += np.mean((np.asarray(judged[0]) @ path - np.asarray(judged[1])[:, None]) ** 2, axis=0)
    return float(_COARSE[np.argmin(errors)])


def chosen_weights(criterion: Criterion, params: Any, data: dict[str, Any]) -> np.ndarray:
    """The weights (n·d,) that a criterion is about: the fit of all training rows."""
    fits = np.asarray(params, np.float64).reshape(data["weights"].shape[1], -1)
    return fits[-1] if criterion == "cross_validation" else fits[0]


def _fits(params: Any, features: Any) -> jax.Array:
    """Predictions of all fits, shape (m, C)."""
    return features @ params.reshape(-1, features.shape[1]).T


def _shrink(params: Any, threshold: Any) -> jax.Array:
    """The prox of threshold·‖row‖₂."""
    if params.shape[1] == 1:
        return jnp.sign(params) * jnp.maximum(jnp.abs(params) - threshold, 0)
    squares = jnp.sum(params**2, axis=1, keepdims=True)
    norms = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jnp.where(squares > threshold**2, params * (1 - threshold / norms), 0)


def _folds(samples: int, folds: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the rows in each fit, and of those held out in the criterion, both (m, folds + 1); folds as KFold's."""
    if not 2 <= folds <= samples:
        raise datasets.DataError(
            f"{source}: task.folds must lie between 2 and its {samples} training rows, got {folds}"
        )
    held_out = np.zeros((samples, folds + 1))
    for number, rows in enumerate(np.array_split(np.arange(samples), folds)):
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


def _polynomials(train: np.ndarray, degree: int) -> Callable[[np.ndarray], np.ndarray]:
    """Features to Legendre polynomials 1 … degree, centered and scaled over the training rows, those of a feature together."""
    largest = np.maximum(np.abs(train).max(0), np.finfo(float).tiny)

    def raw(features):
        powers = np.polynomial.legendre.legvander(np.clip(features / largest, -1, 1), degree)[..., 1:]
        return powers.reshape(len(features), -1)

    mean, deviation = raw(train).mean(0), raw(train).std(0)
    return lambda features: (raw(features) - mean) / np.where(deviation > 0, deviation, 1)
