"""What the tests of tasks do with a setup, and the same inner problems solved by scikit-learn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import ElasticNet, LogisticRegression

import bilevel as bl
from bilevel import _compiled
from bilevel.tasks import Setup


def elsewhere(setup: Setup, scale: float = 0.3) -> Any:
    """Hyperparameters at which nothing is special."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape), setup.hparams)


def solve(setup: Setup, inner: bl.inner.InnerSolver, hparams: Any = None) -> bl.inner.InnerSolution:
    """The inner solution, from the start of the setup."""
    hparams = setup.hparams if hparams is None else hparams
    return inner.solve(setup.problem, setup.params, hparams, setup.data)


def estimate(
    setup: Setup, inner: bl.inner.InnerSolver, hparams: Any = None, estimator: bl.hypergrad.Estimator | None = None
) -> bl.hypergrad.Hypergradient:
    """The hypergradient, by `Implicit` unless told otherwise."""
    hparams = setup.hparams if hparams is None else jax.tree.map(jnp.asarray, hparams)
    run = _compiled.compiled(_run, setup.problem, inner, estimator or bl.hypergrad.Implicit())
    return run(setup.params, hparams, setup.data)


def _run(problem: bl.Problem, inner: Any, estimator: Any, *arguments: Any) -> bl.hypergrad.Hypergradient:
    return estimator.run(problem, inner, *arguments)


def minimize(setup: Setup, **settings: Any) -> bl.outer.Result:
    return bl.minimize(setup.problem, setup.hparams, setup.params, setup.data, **settings)


def check_gradient(
    setup: Setup, inner: bl.inner.InnerSolver, hparams: Any = None, **settings: Any
) -> bl.diagnostics.HypergradientReport:
    """The hypergradient against differences of the whole solve."""
    hparams = setup.hparams if hparams is None else hparams
    report = bl.check_hypergradient(setup.problem, hparams, setup.params, setup.data, inner=inner, **settings)
    assert report.ok, str(report)
    return report


def logistic_regression(features: Any, labels: Any, l2: float, weights: Any = None) -> LogisticRegression:
    """The model that minimizes the mean of the (weighted) losses plus l2‖W‖²/2."""
    model = LogisticRegression(C=1 / (l2 * len(labels)), fit_intercept=False, tol=1e-12, max_iter=10_000)
    return model.fit(features, labels, sample_weight=weights)


def elastic_net(features: Any, targets: Any, l1: float, l2: float = 0.0) -> np.ndarray:
    """The weights that minimize ‖Xw − y‖²/(2 rows) + l1‖w‖₁ + l2‖w‖²/2."""
    alpha = l1 + l2
    model = ElasticNet(alpha=alpha, l1_ratio=l1 / alpha, fit_intercept=False, tol=1e-14, max_iter=100_000)
    return model.fit(features, targets).coef_
