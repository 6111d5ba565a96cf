"""Lasso, elastic net, group lasso by validation, cross-validation and SURE: scikit-learn's numbers, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import task_cases
from sklearn.linear_model import LassoCV

import bilevel as bl
from bilevel import datasets, tasks

PRECISE = bl.inner.FISTA(rtol=1e-13, atol=0.0, max_steps=10_000)  # rounding allows some of them no 1e-14
TASKS = {"lasso": tasks.Lasso, "elastic net": tasks.ElasticNet, "group lasso": tasks.GroupLasso}


def solved(setup, hparams=None, solver=PRECISE):
    hparams = setup.hparams if hparams is None else hparams
    found = task_cases.solve(setup, solver, hparams)
    assert int(found.status) == bl.Status.CONVERGED
    return found.params, float(setup.problem.outer_loss(found.params, hparams, setup.data))


@pytest.mark.slice(8)
@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("criterion", ["validation", "cross_validation", "sure"])
@pytest.mark.parametrize("name", TASKS)
def test_hypergradients_match_differences(x64, name, criterion, per_feature):
    setup = TASKS[name](criterion=criterion, per_feature=per_feature, penalty=0.2).setup(0, "float64")
    assert max(task_cases.check_gradient(setup, PRECISE, directions=2).gaps) < 1e-5


def test_cross_validation_is_scikit_learns(x64):
    setup = tasks.Lasso(criterion="cross_validation", folds=4).setup(0, "float64")
    params, loss = solved(setup)
    features, targets = np.asarray(setup.data["features"]), np.asarray(setup.data["targets"][:, 0])
    alpha = float(setup.physical(setup.hparams)["alpha"])
    reference = LassoCV(alphas=[alpha], cv=4, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(features, targets)
    np.testing.assert_allclose(loss, reference.mse_path_.mean(), rtol=1e-8)
    metrics = setup.metrics(setup.hparams, params)
    assert metrics["support"] == np.count_nonzero(reference.coef_)
    split = datasets.standardize(joined(0))
    predicted = split.test.features @ reference.coef_ * split.train.targets.std() + split.train.targets.mean()
    np.testing.assert_allclose(metrics["test_rmse"], np.sqrt(np.mean((predicted - split.test.targets) ** 2)), rtol=1e-8)


def joined(seed):
    """The diabetes table split as the tasks do, the validation rows among the training rows."""
    split = datasets.split_rows(datasets.load_table("diabetes", "regression"), 0.2, 0.2, seed)
    return datasets.Split(datasets.join(split.train, split.validation), split.validation, split.test)


def test_sure_counts_the_support(x64):
    """While the support stays, the finite difference of a lasso's fit is exactly its projection: freedom = δᵀP_Sδ."""
    sigma = 40.0
    setup = tasks.Lasso(criterion="sure", sigma=sigma).setup(0, "float64")
    _, loss = solved(setup)
    data = jax.tree.map(np.asarray, setup.data)
    alpha = float(setup.physical(setup.hparams)["alpha"])
    fits = [task_cases.elastic_net(data["features"], targets, alpha) for targets in data["targets"].T]
    support = np.flatnonzero(fits[0])
    assert 2 <= len(support) < 10
    np.testing.assert_array_equal(support, np.flatnonzero(fits[1]))
    basis = np.linalg.qr(data["features"][:, support])[0]
    freedom = np.sum((basis.T @ data["direction"]) ** 2)
    variance, samples = (sigma / np.std(joined(0).train.targets)) ** 2, len(data["features"])
    error = np.mean((data["features"] @ fits[0] - data["targets"][:, 0]) ** 2)
    np.testing.assert_allclose(loss, error - variance + 2 * variance * freedom / samples, rtol=1e-7)


def test_elastic_net_is_scikit_learns(x64):
    setup = tasks.ElasticNet(l2_penalty=0.3).setup(0, "float64")
    params, _ = solved(setup)
    l1, l2 = (float(np.exp(setup.hparams[name])) for name in ("l1", "l2"))
    features, targets, _ = setup.data["train"]
    np.testing.assert_allclose(params, task_cases.elastic_net(features, targets, l1, l2), atol=1e-9)


@pytest.mark.parametrize("criterion", ["validation", "cross_validation"])
def test_group_lasso_is_optimal(x64, criterion):
    """‖Zⱼᵀr‖ = alpha along wⱼ where it is not zero, and at most alpha where it is."""
    setup = tasks.GroupLasso(criterion=criterion, penalty=0.5).setup(0, "float64")
    params, _ = solved(setup)
    data, alpha = jax.tree.map(np.asarray, setup.data), float(np.exp(setup.hparams))
    fits = np.asarray(params).reshape(data["weights"].shape[1], 10, 3)
    for w, weights, targets in zip(fits, data["weights"].T, data["targets"].T, strict=True):
        residual = weights * (targets - data["features"] @ w.ravel())
        pull = (data["features"].T @ residual).reshape(10, 3)
        zero = ~np.any(w, axis=1)
        assert 0 < zero.sum() < 10
        assert np.all(np.linalg.norm(pull[zero], axis=1) <= alpha)
        directions = w[~zero] / np.linalg.norm(w[~zero], axis=1, keepdims=True)
        np.testing.assert_allclose(pull[~zero], alpha * directions, atol=1e-9)


def test_groups_of_one_coordinate_are_the_lasso(x64):
    lasso = tasks.Lasso(criterion="cross_validation").setup(0, "float64")
    group = tasks.GroupLasso(criterion="cross_validation", degree=1).setup(0, "float64")
    np.testing.assert_allclose(solved(group)[0], solved(lasso)[0], atol=1e-10)


def test_data_that_do_not_suit_the_criterion_are_refused(tmp_path, x64):
    with pytest.raises(
        datasets.DataError, match=r"task\.folds must be between 2 and the number of training rows, 354, got 1"
    ):
        tasks.Lasso(criterion="cross_validation", folds=1).setup(0, "float64")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "wide.npz", X=rng.normal(size=(30, 40)), y=rng.normal(size=30))
    with pytest.raises(datasets.DataError, match=r"noise cannot be estimated from 24 rows .* give task\.sigma"):
        tasks.Lasso(data=str(tmp_path / "wide.npz"), criterion="sure").setup(0, "float64")


@pytest.mark.parametrize("criterion", ["validation", "cross_validation"])
def test_a_start_of_none_is_the_best_of_a_coarse_grid(x64, criterion):
    """By the criterion itself, from precise solves."""
    setup = tasks.Lasso(criterion=criterion, penalty=None).setup(0, "float64")
    known = tasks.Lasso(criterion=criterion, penalty=0.5).setup(0, "float64")
    largest = float(known.hparams) - np.log(0.5)
    inner = bl.inner.FISTA(rtol=1e-9, max_steps=100_000)
    shares = np.geomspace(0.7, 0.01, 10)
    losses = [solved(known, jnp.asarray(largest + np.log(share)), inner)[1] for share in shares]
    np.testing.assert_allclose(float(setup.hparams), largest + np.log(shares[int(np.argmin(losses))]), rtol=1e-10)
