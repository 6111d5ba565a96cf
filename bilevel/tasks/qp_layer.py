"""A quadratic program as a layer: forecasts of returns chosen for the portfolios that they lead to."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.inner import FISTA
from bilevel.operators.projection import projection_simplex
from bilevel.problem import Problem
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._pictures import panels

_FACTORS = 3  # that move all assets together


def forecasts(hparams, data):
    """r̂ = features Θ."""
    return data["features"] @ hparams


def decision_loss(params, returns, data):
    """Σ over rows of ½γ wᵀΣw − rᵀw."""
    return data["aversion"] * jnp.vdot(params, params @ data["covariance"]) / 2 - jnp.vdot(returns, params)


def inner_loss(params, hparams, data):
    """The decision loss under the forecasts."""
    return decision_loss(params, forecasts(hparams, data), data)


def projection(params, hparams, data):
    """Each row on the simplex."""
    del hparams, data
    return jax.vmap(projection_simplex)(params)


def lipschitz(hparams, data):
    """γ times the largest eigenvalue of Σ."""
    del hparams
    return data["lipschitz"]


def outer_loss(params, hparams, data):
    """Mean regret: the decision loss under the realized returns, less the least one."""
    del hparams
    return decision_loss(params, data["returns"], data) / len(params) - data["least"]


problem = Problem(inner_loss, outer_loss, projection=projection, polyhedral=True, lipschitz=lipschitz)


class Market(NamedTuple):
    """Made rows.

    Attributes:
      features: with a column of ones, shape (rows, features + 1).
      means: expected returns given the features, shape (rows, assets).
      returns: realized ones.
    """

    features: np.ndarray
    means: np.ndarray
    returns: np.ndarray

    def part(self, rows: slice) -> Market:
        """Some of the rows."""
        return Market(*(array[rows] for array in self))

    def least_squares(self) -> np.ndarray:
        """The Θ of the two-stage approach: that of the smallest error of the forecasts."""
        return np.linalg.lstsq(self.features, self.returns, rcond=None)[0]


def make_market(rows: int, features: int, assets: int, curvature: float, noise: float, seed: int):
    """A market with a known generator, and the covariance Σ of its returns given the features.

    Each asset depends on about half of the features f ~ N(0, I): z = Bf/√features with B of zeros and ones, and its expected
    return is (exp(cz) − 1)/c, c the curvature, or z where c = 0. Realized returns add noise of covariance Σ: a few common
    factors, and as much again for each asset alone.
    """
    rng = np.random.default_rng(seed)
    loadings = rng.normal(scale=noise / np.sqrt(2 * _FACTORS), size=(assets, _FACTORS))
    covariance = loadings @ loadings.T + np.eye(assets) * noise**2 / 2
    exposure = rng.integers(2, size=(features, assets)) / np.sqrt(features)
    known = rng.normal(size=(rows, features))
    score = known @ exposure
    means = np.expm1(curvature * score) / curvature if curvature else score
    returns = means + rng.normal(size=(rows, assets)) @ np.linalg.cholesky(covariance).T
    return Market(np.hstack([known, np.ones((rows, 1))]), means, returns), covariance


@jax.jit
def _solve(hparams, data):
    start = jnp.full(data["features"].shape[:1] + hparams.shape[1:], 1 / hparams.shape[1])
    return FISTA().solve(problem, start, hparams, data).params


@dataclasses.dataclass(frozen=True)
class _Judge:
    """Decisions and their regrets, with Σ and γ."""

    covariance: np.ndarray
    aversion: float

    def decisions(self, returns: np.ndarray) -> np.ndarray:
        """Under these returns, one row on the simplex for each."""
        assets = returns.shape[1]
        numbers = {
            "features": returns,
            "covariance": self.covariance,
            "aversion": self.aversion,
            "lipschitz": self.aversion * np.linalg.eigvalsh(self.covariance)[-1],
        }
        return np.asarray(_solve(jnp.eye(assets), jax.tree.map(jnp.asarray, numbers)), np.float64)

    def losses(self, decisions: np.ndarray, returns: np.ndarray) -> np.ndarray:
        """½γ wᵀΣw − rᵀw of each row."""
        risk = np.einsum("ij,jk,ik->i", decisions, self.covariance, decisions)
        return self.aversion * risk / 2 - np.sum(returns * decisions, axis=1)

    def least(self, part: Market) -> np.ndarray:
        """The losses of the best decisions, which know the realized returns."""
        return self.losses(self.decisions(part.returns), part.returns)

    def regrets(self, part: Market, predicted: np.ndarray) -> np.ndarray:
        """Of the decisions under predicted returns, by row."""
        return self.losses(self.decisions(predicted), part.returns) - self.least(part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QPLayer(Task):
    """Forecasts for decisions: a linear model of returns, trained through the portfolios that follow from its forecasts.

    For each row, w = argmin ½γ wᵀΣw − r̂ᵀw over the simplex, with the forecasts r̂ = features Θ. Inner variable: all w, shape
    (training rows, assets). The outer loss is the mean regret of w: its ½γ wᵀΣw − rᵀw under the realized returns r, less that
    of the best decision. hparams: Θ, shape (features + 1, assets), the last row an intercept, started at the least-squares fit
    of r, whose decisions are the two-stage baseline. Expected returns are not linear in the features (see `curvature`).

    Args:
      rows: training rows.
      validation_rows, test_rows: rows for the metrics.
      features: what is known before a decision.
      assets: to choose from.
      curvature: c, of the expected returns (exp(cz) − 1)/c; 0 makes the linear model right.
      noise: standard deviation of the noise in the returns.
      aversion: γ.

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

    def __post_init__(self):
        for name in ("rows", "validation_rows", "test_rows", "features"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name} must be at least 1, got {getattr(self, name)}")
        if self.assets < 2:
            raise ValueError(f"task.assets must be at least 2, got {self.assets}")
        for name in ("noise", "aversion"):
            if not getattr(self, name) > 0:
                raise ValueError(f"task.{name} must be positive, got {getattr(self, name)}")
        if not np.isfinite(self.curvature):
            raise ValueError(f"task.curvature must be a number, got {self.curvature}")

    def setup(self, seed, dtype):
        """Make the market, fit the two-stage baseline, and state the problem."""
        sizes = {"train": self.rows, "validation": self.validation_rows, "test": self.test_rows}
        market, covariance = make_market(
            sum(sizes.values()), self.features, self.assets, self.curvature, self.noise, seed
        )
        ends = np.cumsum([0, *sizes.values()])
        parts = {name: market.part(slice(*ends[i : i + 2])) for i, name in enumerate(sizes)}
        train, judge = parts["train"], _Judge(covariance, self.aversion)
        two_stage = train.least_squares()

        def metrics(hparams, params):
            del params
            theta, found = np.asarray(hparams, np.float64), {}
            for name, part in parts.items():
                found[f"{name}_regret"] = float(judge.regrets(part, part.features @ theta).mean())
                found[f"{name}_regret_two_stage"] = float(judge.regrets(part, part.features @ two_stage).mean())
            test = parts["test"]
            found["test_regret_true_means"] = float(judge.regrets(test, test.means).mean())
            found["test_utility_oracle"] = float(-judge.least(test).mean())
            return found

        def pictures(hparams, params):
            del params
            return {"test": picture(parts["test"], judge, two_stage, np.asarray(hparams, np.float64))}

        numbers = {
            "features": train.features,
            "returns": train.returns,
            "covariance": covariance,
            "aversion": self.aversion,
            "lipschitz": self.aversion * np.linalg.eigvalsh(covariance)[-1],
            "least": judge.least(train).mean(),
        }
        return Setup(
            problem=problem,
            hparams=jnp.asarray(two_stage, dtype),
            params=jnp.full((self.rows, self.assets), 1 / self.assets, dtype),
            data={name: jnp.asarray(value, dtype) for name, value in numbers.items()},
            title="forecasts of returns, trained through the portfolios",
            sizes={
                "training rows": self.rows,
                "validation rows": self.validation_rows,
                "test rows": self.test_rows,
                "features": self.features,
                "assets": self.assets,
            },
            metrics=metrics,
            physical=lambda hparams: {"coefficients": np.asarray(hparams, np.float64)},
            pictures=pictures,
        )


def picture(test: Market, judge: _Judge, two_stage: np.ndarray, theta: np.ndarray) -> Any:
    """Test rows: regrets, sorted, and forecasts against expected returns."""
    figure, axes = panels(1, 2, 4.6, 3.4)
    left, right = axes[0]
    shares = np.linspace(0, 1, len(test.features))
    for label, color, predicted in (
        ("two-stage", "tab:gray", test.features @ two_stage),
        ("trained on regret", "tab:blue", test.features @ theta),
        ("true means", "tab:green", test.means),
    ):
        regrets = judge.regrets(test, predicted)
        left.plot(np.sort(regrets), shares, color=color, label=f"{label}, mean {regrets.mean():.3g}")
        if predicted is not test.means:
            right.plot(test.means[:300].ravel(), predicted[:300].ravel(), ".", color=color, alpha=0.25, markersize=3)
    left.set_xlabel("regret of a test row")
    left.set_ylabel("share of rows below")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    right.set_xlabel("expected return")
    right.set_ylabel("forecast")
    return figure
