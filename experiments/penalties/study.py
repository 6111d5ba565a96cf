"""Penalties by gradient against penalties by grid: the lasso's against LassoCV, one per feature against one for all."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.linear_model import LassoCV

from bilevel import hypergrad, inner, linear, outer, tasks
from bilevel.problem import At
from bilevel.study import Findings, Reporter, Row, Study
from bilevel.tasks import sparse_regression as sparse
from experiments import steps

_RESAMPLED = 2000  # times, the test rows
_CLOSE = 0.003  # steps of a log penalty that end Rprop
Judge = Callable[[np.ndarray], np.ndarray]  # weights to a score for each test row
_AROUND = np.arange(0.1, -0.1, -0.005)  # of a log penalty


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalties(Study):
    """The penalties that a gradient finds, and the time that it takes.

    `lasso`: λ by 5-fold cross-validation, by Rprop from the best of ten penalties, against scikit-learn's `LassoCV` on the same
    rows and folds: first with its 100 penalties, then around the best of them, half a percent apart and to a tolerance of 1e-7.
    The seconds cover everything except loading the table and compilation, which is reported separately. `ridge`, `logistic`:
    one penalty per feature by Adam against the best single penalty of a grid, both by validation loss, with the score of the
    test rows and its 95 % bootstrap interval.

    Args:
      data: table of the lasso, a regression of y on X.
      splits: of the lasso, by the seeds seed, seed + 1, …
      lasso_steps, steps: outer steps of the lasso, at most, and of the others.
      grid: single penalties that are tried.
    """

    data: str = "diabetes"
    splits: int = 3
    lasso_steps: int = 22
    steps: int = 100
    grid: int = 60

    def __post_init__(self) -> None:
        self.require_positive("splits", "lasso_steps", "steps", "grid")

    @property
    def count(self) -> int:
        return self.splits + 2

    @property
    def title(self) -> str:
        return f"penalties by gradient against grids, lasso on {self.data}"

    def run(self, seed: int, dtype: str, report: Reporter) -> Findings:
        """Rows by `part`: `lasso`, `ridge`, `logistic`."""
        lassos = [self._lasso(seed + split, dtype, report) for split in range(self.splits)]
        summary: dict[str, Any] = {
            "lasso": {
                "penalty_off": max(abs(row["penalty"] / row["fine_penalty"] - 1) for row in lassos),
                "score_off": max(abs(row["score"] / row["fine_score"] - 1) for row in lassos),
                "seconds_over_grid": float(np.median([row["seconds"] / row["grid_seconds"] for row in lassos])),
            }
        }
        ridge, logistic = tasks.Ridge(), tasks.Logistic()
        numbers, labels = ridge.tables(seed).test, logistic.tables(seed).test

        def right(weights: np.ndarray) -> np.ndarray:
            return np.argmax(labels.features @ weights, axis=1) == labels.targets

        def errors(weights: np.ndarray) -> np.ndarray:
            return (numbers.unit * (numbers.features @ weights - numbers.targets)) ** 2

        for name, task, solver, judge in (
            ("ridge", ridge, inner.Ridge(), errors),
            ("logistic", logistic, inner.LBFGS(), right),
        ):
            summary[name] = self._per_feature(name, task.setup(seed, dtype), solver, judge, seed, report)
        return Findings(summary)

    def _lasso(self, seed: int, dtype: str, report: Reporter) -> Row:
        setup = tasks.Lasso(data=self.data, criterion="cross_validation").setup(seed, dtype)
        features, targets = (np.asarray(setup.data[name], np.float64) for name in ("features", "targets"))
        row: Row = {"part": "lasso", "seed": seed}
        row |= _by_gradient(setup, self.lasso_steps)
        row |= {f"grid_{key}": value for key, value in _by_grid(features, targets[:, 0], alphas=100).items()}
        around = row["grid_penalty"] * np.exp(_AROUND)
        fine = _by_grid(features, targets[:, 0], alphas=around, tol=1e-7, max_iter=100_000)
        row |= {f"fine_{key}": value for key, value in fine.items()}
        report(row)
        return row

    def _per_feature(
        self, name: str, setup: tasks.Setup, solver: inner.InnerSolver, judge: Judge, seed: int, report: Reporter
    ) -> Row:
        solve = jax.jit(lambda hparams: _solved(setup, solver, hparams))
        singles = np.linspace(-12, 8, self.grid)
        tried = [solve(jnp.full_like(setup.hparams, single)) for single in singles]
        best = int(np.argmin([loss for loss, _ in tried]))
        algorithm = outer.Nested(setup.problem, solver, hypergrad.Implicit(), optax.adam(0.1))
        start = jnp.full_like(setup.hparams, singles[best])
        found = outer.run_loop(algorithm, algorithm.init(start, setup.params, setup.data), setup.data, steps=self.steps)
        row: Row = {
            "part": name,
            "single_penalty": float(np.exp(singles[best])),
            "single_validation_loss": float(tried[best][0]),
            "validation_loss": found.outer_loss,
            "failures": found.failures,
        }
        scores = {way: judge(np.asarray(w, np.float64)) for way, w in (("single_", tried[best][1]), ("", found.params))}
        for way, values in scores.items():
            row |= {f"{way}test_score{key}": value for key, value in _interval(values, seed).items()}
        row |= {f"gain{key}": value for key, value in _interval(scores[""] * 1.0 - scores["single_"], seed).items()}
        report(row)
        return {key: row[key] for key in row if key != "part"}


def _by_gradient(setup: tasks.Setup, count: int) -> Row:
    """λ and its cross-validation error after at most `count` steps, and the seconds without and for compilation."""
    begun = time.perf_counter()
    share = sparse.coarse_start(setup.data)
    start = jnp.full_like(setup.hparams, np.log(share * sparse.largest_penalty(setup.data, 1)))
    coarse = time.perf_counter() - begun
    algorithm = outer.Nested(
        setup.problem,
        inner.FISTA(rtol=1e-5),
        hypergrad.Implicit(linear=linear.Auto(rtol=1e-2)),
        optax.rprop(0.1),  # goes by the sign of the gradient, so that a rough one will do
    )
    state = algorithm.init(start, setup.params, setup.data)
    program = steps.Program.of(algorithm, state, setup.data)
    best, failures = (np.inf, np.nan), 0
    begun = time.perf_counter()
    for step in steps.descend(program, state, setup.data, count):
        failures += step.failures
        best = min(best, (step.outer_loss, float(jnp.exp(step.before.hparams))))
        if 0 < abs(float(step.after.hparams - step.before.hparams)) < _CLOSE:
            break
    seconds = coarse + time.perf_counter() - begun
    score, penalty = best
    return {
        "penalty": penalty,
        "score": score,
        "seconds": seconds,
        "compiling": program.compiling,
        "failures": failures,
    }


def _by_grid(features: np.ndarray, targets: np.ndarray, **settings: Any) -> Row:
    begun = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):
        found = LassoCV(cv=5, fit_intercept=False, **settings).fit(features, targets)
    seconds = time.perf_counter() - begun
    return {"penalty": float(found.alpha_), "score": float(found.mse_path_.mean(axis=1).min()), "seconds": seconds}


def _solved(setup: tasks.Setup, solver: inner.InnerSolver, hparams: jax.Array) -> tuple[jax.Array, Any]:
    params = solver.solve(setup.problem, setup.params, hparams, setup.data).params
    return At(setup.problem, hparams, setup.data).outer_loss(params), params


def _interval(values: np.ndarray, seed: int) -> dict[str, float]:
    """Mean over rows, and the 95 % interval of the mean over rows drawn again."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLED, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return {"": float(values.mean()), "_low": float(low), "_high": float(high)}
