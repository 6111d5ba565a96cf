"""A quadratic program as a layer: forecasts of returns, trained for the portfolios that are chosen by them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel.datasets import require_shape
from bilevel.inner import FISTA
from bilevel.problem import Problem
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._tables import sizes
from bilevel.tasks.pictures import panels
from bilevel.tasks.svm import projection

_FACTORS = 3  # common to all assets


def decision_loss(params: jax.Array, returns: jax.Array, data: Any) -> jax.Array:
    """Σ over rows of ½γ wᵀΣw − rᵀw."""
    return data["aversion"] * jnp.vdot(params, params @ data["covariance"]) / 2 - jnp.vdot(returns, params)


def inner_loss(params: jax.Array, hparams: jax.Array, data: Any) -> jax.Array:
    """The decision loss under the forecasts r̂ = features Θ."""
    return decision_loss(params, data["features"] @ hparams, data)


def outer_loss(params: jax.Array, hparams: jax.Array, data: Any) -> jax.Array:
    """Mean regret: the decision loss under the realized returns minus the least possible one."""
    return decision_loss(params, data["returns"], data) / len(params) - data["least"]


problem = Problem(
    inner_loss, outer_loss, projection=projection, polyhedral=True, lipschitz=lambda hparams, data: data["lipschitz"]
)


class Market(NamedTuple):
    """Rows of a market.

    Attributes:
      features: shape (rows, features); include a column of ones for an intercept.
      returns: realized returns, shape (rows, assets).
      means: expected returns given the features, same shape, for the metrics; None if they are not known.
    """

    features: np.ndarray
    returns: np.ndarray
    means: np.ndarray | None = None

    def part(self, rows: slice) -> "Market":
        """Some of the rows."""
        return Market(self.features[rows], self.returns[rows], None if self.means is None else self.means[rows])

    def least_squares(self) -> np.ndarray:
        """The Θ of the two-stage approach, which minimizes the squared error of the forecasts."""
        return np.linalg.lstsq(self.features, self.returns, rcond=None)[0]


class Markets(NamedTuple):
    """Parts of a market, with disjoint rows.

    Attributes:
      covariance: Σ of the returns given the features, shape (assets, assets).
      train: rows of the problem.
      validation, test: rows that only the metrics use; None if there are none.
    """

    covariance: np.ndarray
    train: Market
    validation: Market | None = None
    test: Market | None = None

    @property
    def parts(self) -> dict[str, Market]:
        """The parts that there are, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    def require(self) -> None:
        """Raise `datasets.DataError` if an array has the wrong shape."""
        require_shape("train.features", self.train.features, ("rows", "features"))
        require_shape("train.returns", self.train.returns, (len(self.train.features), "assets"))
        features, assets = self.train.features.shape[1], self.train.returns.shape[1]
        require_shape("covariance", self.covariance, (assets, assets))
        for name, part in self.parts.items():
            require_shape(f"{name}.features", part.features, ("rows", features))
            require_shape(f"{name}.returns", part.returns, (len(part.features), assets))
            if part.means is not None:
                require_shape(f"{name}.means", part.means, (len(part.features), assets))


def make_market(
    rows: int, features: int, assets: int, curvature: float, noise: float, seed: int
) -> tuple[Market, np.ndarray]:
    """Make a market, and the covariance Σ of its returns given the features.

    Each asset depends on about half of the features f ~ N(0, I): z = Bf/√features with B of zeros and ones, and its expected
    return is (exp(cz) − 1)/c with c the curvature, or z for c = 0. Realized returns add noise of covariance Σ, half of whose
    variance is due to a few common factors and half to each asset alone.
    """
    rng = np.random.default_rng(seed)
    loadings = rng.normal(scale=noise / np.sqrt(2 * _FACTORS), size=(assets, _FACTORS))
    covariance = loadings @ loadings.T + np.eye(assets) * noise**2 / 2
    exposure = rng.integers(2, size=(features, assets)) / np.sqrt(features)
    known = rng.normal(size=(rows, features))
    score = known @ exposure
    means = np.expm1(curvature * score) / curvature if curvature else score
    returns = means + rng.normal(size=(rows, assets)) @ np.linalg.cholesky(covariance).T
    return Market(np.hstack([known, np.ones((rows, 1))]), returns, means), covariance


@jax.jit
def _solve(returns: jax.Array, data: Any) -> jax.Array:
    """The best decisions under these returns, which serve as features that forecast themselves."""
    assets = returns.shape[1]
    start = jnp.full(returns.shape, 1 / assets)
    return FISTA().solve(problem, start, jnp.eye(assets), data | {"features": returns}).params


@dataclasses.dataclass(frozen=True)
class _Judge:
    """Decisions under Σ and γ, and their regrets."""

    covariance: np.ndarray
    aversion: float

    def data(self, dtype: DTypeLike | None) -> dict[str, jax.Array]:
        """Σ, γ and the Lipschitz constant."""
        largest = np.linalg.eigvalsh(self.covariance)[-1]
        numbers = {"covariance": self.covariance, "aversion": self.aversion, "lipschitz": self.aversion * largest}
        return {name: jnp.asarray(value, dtype) for name, value in numbers.items()}

    def decisions(self, returns: np.ndarray) -> np.ndarray:
        """The best decisions under these returns, a row on the simplex for each."""
        return np.asarray(_solve(jnp.asarray(returns), self.data(None)), np.float64)

    def losses(self, decisions: np.ndarray, returns: np.ndarray) -> np.ndarray:
        """½γ wᵀΣw − rᵀw of each row."""
        risk = np.einsum("ij,jk,ik->i", decisions, self.covariance, decisions)
        return self.aversion * risk / 2 - np.sum(returns * decisions, axis=1)

    def least(self, part: Market) -> np.ndarray:
        """The losses of the best decisions under the realized returns."""
        return self.losses(self.decisions(part.returns), part.returns)

    def regrets(self, part: Market, predicted: np.ndarray) -> np.ndarray:
        """The regret of each row, with decisions under predicted returns."""
        return self.losses(self.decisions(predicted), part.returns) - self.least(part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QPLayer(Task[Markets]):
    """Forecasts for decisions: a linear model of returns, trained through the portfolios that are chosen by its forecasts.

    For each row, w = argmin ½γ wᵀΣw − r̂ᵀw over the simplex, with the forecasts r̂ = features Θ. Inner variable: all w, shape
    (training rows, assets). The outer loss is the mean regret of w: ½γ wᵀΣw − rᵀw under the realized returns r, minus the same
    for the best decision. hparams: Θ, shape (features, assets), started at the least-squares fit of r, whose decisions are the
    two-stage baseline. In the task's own market the last feature is an intercept, and expected returns are not linear in the
    features (see `curvature`).

    Args:
      rows: number of training rows.
      validation_rows, test_rows: numbers of rows for the metrics.
      features: number of features.
      assets: number of assets.
      curvature: c in the expected returns (exp(cz) − 1)/c; with 0 the linear model is correct.
      noise: standard deviation of the noise in the returns.
      aversion: γ, the aversion to risk.

    References: Amos & Kolter 2017 (the layer); Elmachtoub & Grigas 2022 (regret, and data of this kind).
    """

    rows: int = 400
    validation_rows: int = 400
    test_rows: int = 2000
    features: int = 5
    assets: int = 10
    curvature: float = 1.5
    noise: float = 0.5
    aversion: float = 2.0

    def __post_init__(self) -> None:
        for name in ("rows", "validation_rows", "test_rows", "features"):
            self.check(name, getattr(self, name) >= 1, "be at least 1")
        self.check("assets", self.assets >= 2, "be at least 2")
        for name in ("noise", "aversion"):
            self.check(name, getattr(self, name) > 0, "be positive")
        self.check("curvature", bool(np.isfinite(self.curvature)), "be a number")

    def tables(self, seed: int) -> Markets:
        """Make the market and cut it in three."""
        counts = (self.rows, self.validation_rows, self.test_rows)
        market, covariance = make_market(sum(counts), self.features, self.assets, self.curvature, self.noise, seed)
        ends = np.cumsum([0, *counts])
        return Markets(covariance, *(market.part(slice(*ends[i : i + 2])) for i in range(3)))

    def state(self, tables: Markets, dtype: DTypeLike, seed: int = 0) -> Setup:
        """Fit the two-stage baseline and state the problem."""
        tables.require()
        train, covariance = tables.train, np.asarray(tables.covariance)
        (rows, assets), judge, two_stage = train.returns.shape, _Judge(covariance, self.aversion), train.least_squares()

        def metrics(hparams: Any, params: Any) -> dict[str, float]:
            found, test = {}, tables.test
            for name, part in tables.parts.items():
                for suffix, theta in {"": hparams, "_two_stage": two_stage}.items():
                    predicted = part.features @ np.asarray(theta, np.float64)
                    found[f"{name}_regret{suffix}"] = float(judge.regrets(part, predicted).mean())
            if test is not None and test.means is not None:
                found["test_regret_true_means"] = float(judge.regrets(test, test.means).mean())
            if test is not None:
                found["test_utility_oracle"] = float(-judge.least(test).mean())
            return found

        def pictures(hparams: Any, params: Any) -> dict[str, Any]:
            theta = np.asarray(hparams, np.float64)
            return {} if tables.test is None else {"test": picture(tables.test, judge, two_stage, theta)}

        numbers = {"features": train.features, "returns": train.returns, "least": judge.least(train).mean()}
        return Setup(
            problem=problem,
            hparams=jnp.asarray(two_stage, dtype),
            params=jnp.full((rows, assets), 1 / assets, dtype),
            data=judge.data(dtype) | {name: jnp.asarray(value, dtype) for name, value in numbers.items()},
            title="forecasts of returns, trained through the portfolios",
            sizes=sizes(tables.parts, features=train.features.shape[1], assets=assets),
            metrics=metrics,
            physical=lambda hparams: {"coefficients": np.asarray(hparams, np.float64)},
            pictures=pictures,
        )


def picture(test: Market, judge: _Judge, two_stage: np.ndarray, theta: np.ndarray) -> Any:
    """Sorted regrets of the test rows, and forecasts against the expected returns, or the realized ones if those are unknown."""
    figure, axes = panels(1, 2, 4.6, 3.4)
    (left, right), shares = axes[0], np.linspace(0, 1, len(test.features))
    actual, kind = (test.returns, "realized") if test.means is None else (test.means, "expected")
    linear = [("two-stage", "tab:gray", two_stage), ("trained on regret", "tab:blue", theta)]
    curves = [(label, color, test.features @ weights) for label, color, weights in linear]
    for label, color, predicted in curves + ([] if test.means is None else [("true means", "tab:green", test.means)]):
        regrets = judge.regrets(test, predicted)
        left.plot(np.sort(regrets), shares, color=color, label=f"{label}, mean {regrets.mean():.3g}")
        if predicted is not actual:
            right.plot(actual[:300].ravel(), predicted[:300].ravel(), ".", color=color, alpha=0.25, markersize=3)
    left.set(xlabel="regret of a test row", ylabel="share of rows below")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    right.set(xlabel=f"{kind} return", ylabel="forecast")
    return figure
