"""Forecasts through a portfolio: decisions are those of a QP solver, regret is what it says, gradients are gradients."""

import numpy as np
import optax
import pytest
import task_cases

import bilevel as bl
from bilevel import tasks
from bilevel.tasks import qp_layer

PRECISE = bl.inner.FISTA(rtol=1e-13, atol=0.0, max_steps=100_000)


@pytest.fixture
def setup(x64):
    return tasks.QPLayer(rows=30, validation_rows=20, test_rows=40, assets=4).setup(0, "float64")


def portfolio(returns, covariance, aversion):
    """By CVXPY's interior-point solver."""
    import cvxpy as cp

    w = cp.Variable(len(returns))
    risk = aversion / 2 * cp.quad_form(w, covariance, assume_PSD=True)
    cp.Problem(cp.Minimize(risk - returns @ w), [w >= 0, cp.sum(w) == 1]).solve("CLARABEL")
    return w.value


def loss(decisions, returns, data):
    risks = [w @ np.asarray(data["covariance"]) @ w for w in decisions]
    return np.array(
        [float(data["aversion"]) * risk / 2 - r @ w for risk, r, w in zip(risks, returns, decisions, strict=True)]
    )


def decided(setup, returns):
    data = setup.data
    return np.stack([portfolio(r, np.asarray(data["covariance"]), float(data["aversion"])) for r in returns])


def test_the_outer_loss_is_the_mean_regret(setup):
    found = task_cases.solve(setup, PRECISE).params
    returns = np.asarray(setup.data["returns"])
    decisions = decided(setup, np.asarray(setup.data["features"] @ setup.hparams))
    np.testing.assert_allclose(found, decisions, atol=1e-6)
    regret = loss(decisions, returns, setup.data) - loss(decided(setup, returns), returns, setup.data)
    assert regret.min() > -1e-7
    np.testing.assert_allclose(setup.problem.outer_loss(found, setup.hparams, setup.data), regret.mean(), rtol=1e-5)


def test_the_start_is_the_least_squares_forecast(setup):
    left = setup.data["returns"] - setup.data["features"] @ setup.hparams
    np.testing.assert_allclose(setup.data["features"].T @ left, 0, atol=1e-10)


def test_hypergradient_matches_differences(setup):
    task_cases.check_gradient(setup, PRECISE, setup.hparams + 0.1, rtol=1e-5)


def test_the_lipschitz_constant_bounds_the_curvature_and_is_reached(setup):
    curvature = np.linalg.eigvalsh(np.asarray(setup.data["covariance"]))[-1] * float(setup.data["aversion"])
    np.testing.assert_allclose(setup.problem.parts.lipschitz(setup.hparams, setup.data), curvature, rtol=1e-12)


def test_training_through_the_layer_beats_two_stages_where_the_model_is_wrong(x64):
    setup = tasks.QPLayer(test_rows=1000).setup(0, "float64")
    found = task_cases.minimize(setup, optimizer=optax.adam(0.05), steps=40, on_failure="raise")
    metrics = setup.metrics(found.hparams, found.params)
    assert metrics["train_regret"] == pytest.approx(found.outer_loss, abs=1e-4)
    assert metrics["test_regret"] < 0.6 * metrics["test_regret_two_stage"]
    assert metrics["test_regret_true_means"] < metrics["test_regret"]
    assert set(setup.pictures(found.hparams, found.params)) == {"test"}


def test_the_linear_model_is_right_without_curvature():
    market, covariance = qp_layer.make_market(4000, 5, 3, 0.0, 0.5, 0)
    fitted = market.features @ market.least_squares()
    assert np.abs(fitted - market.means).mean() < 0.05 * np.abs(market.means).mean()
    left = market.returns - market.means
    np.testing.assert_allclose(np.cov(left.T), covariance, atol=0.02)
