"""The tasks: the problems they state are those of the literature, and their gradients are gradients."""

import dataclasses
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import task_cases
from conftest import precision

import bilevel as bl
from bilevel import tasks
from bilevel.tasks import svm

PRECISE = bl.inner.FISTA(rtol=1e-13, atol=0.0, max_steps=200_000)
SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def estimate(setup, hparams):
    return task_cases.estimate(setup, PRECISE, hparams, bl.hypergrad.Implicit(linear=bl.linear.CG(rtol=1e-11)))


@pytest.fixture(scope="module")
def digits():
    with precision("float64"):
        return tasks.SVM().setup(0, "float64")


def crammer_singer(setup_split, theta):
    """Weights (p, k) by liblinear."""
    from sklearn.svm import LinearSVC

    model = LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=1 / theta, tol=1e-9, max_iter=1_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(setup_split.train.features, setup_split.train.targets).coef_.T


@pytest.mark.parametrize("theta", [300.0, 3000.0])
def test_svm_matches_liblinear(x64, digits, theta):
    split = tasks.SVM().tables(0)
    found = estimate(digits, np.log(theta))
    assert int(found.status) == bl.Status.CONVERGED
    scores = split.validation.features @ crammer_singer(split, theta)
    expected = np.sum((scores - np.eye(10)[split.validation.targets]) ** 2) / 2
    np.testing.assert_allclose(float(found.outer_loss), expected, rtol=1e-4)


@pytest.mark.parametrize("features", [20, 120])
def test_svm_hypergradient_matches_differences_of_the_whole_solve(x64, features):
    """Through X (p ≤ m/2) and through the Gram matrix (p > m/2)."""
    task = tasks.SVM(data="synthetic", samples=60, validation_samples=40, features=features, informative=0.2, classes=3)
    setup = task.setup(0, "float64")
    assert ("gram" in setup.data["train"]) == (features == 120)

    def loss(hparams):
        return setup.problem.outer_loss(task_cases.solve(setup, PRECISE, hparams).params, hparams, setup.data)

    for shift in (0.0, -2.0):
        lam = float(setup.hparams) + shift
        found = estimate(setup, lam)
        h = 1e-4
        difference = (float(loss(jnp.asarray(lam + h))) - float(loss(jnp.asarray(lam - h)))) / (2 * h)
        np.testing.assert_allclose(float(found.grad), difference, rtol=1e-5)


def test_svm_gram_and_features_state_the_same_problem(x64):
    split = tasks.SVM(data="synthetic", samples=50, validation_samples=30, features=40, classes=3).tables(1)
    one_hot = np.eye(3)
    arrays = [
        split.train.features,
        one_hot[split.train.targets],
        split.validation.features,
        one_hot[split.validation.targets],
    ]
    gram = svm.make_data(*arrays, "float64")
    through_x = {
        "train": {**gram["train"], "features": jnp.asarray(arrays[0])},
        "validation": {"targets": gram["validation"]["targets"], "features": jnp.asarray(arrays[2])},
    }
    del through_x["train"]["gram"]
    x, lam = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(3), 50)), jnp.array(2.0)
    for loss in (svm.inner_loss, svm.outer_loss):
        for operate in (lambda f: f, jax.grad, jax.hessian, lambda f: jax.grad(f, argnums=1)):
            np.testing.assert_allclose(
                operate(loss)(x, lam, gram), operate(loss)(x, lam, through_x), rtol=1e-9, atol=1e-12
            )


def test_svm_lipschitz_constant_bounds_the_curvature(x64):
    setup = tasks.SVM(data="iris").setup(0, "float64")
    direction = jnp.asarray(np.random.default_rng(0).normal(size=setup.params.shape))
    grad = jax.grad(setup.problem.parts.inner_loss)
    _, product = jax.jvp(lambda x: grad(x, setup.hparams, setup.data), (setup.params,), (direction,))
    bound = setup.problem.parts.lipschitz(setup.hparams, setup.data)
    assert 0 < jnp.linalg.norm(product) <= bound * jnp.linalg.norm(direction)


def test_svm_metrics_are_those_of_the_weights(x64, digits):
    split = tasks.SVM().tables(0)
    found = estimate(digits, np.log(300.0))
    predicted = np.argmax(split.test.features @ crammer_singer(split, 300.0), axis=1)
    metrics = digits.metrics(jnp.log(300.0), found.params)
    assert abs(metrics["test_accuracy"] - np.mean(predicted == split.test.targets)) <= 1 / len(split.test.targets)
    assert metrics["test_accuracy"] > 0.85
    physical = digits.physical(jnp.log(jnp.array(300.0)))
    np.testing.assert_allclose([physical["theta"], physical["C"]], [300.0, 1 / 300.0])


def test_ridge_is_scikit_learns_with_one_penalty_per_feature(x64):
    from sklearn.linear_model import Ridge

    setup = tasks.Ridge().setup(0, "float64")
    theta = jnp.asarray(np.linspace(-2, 2, 10))
    features, targets = setup.data["train"]
    model = Ridge(alpha=1.0, fit_intercept=False, tol=1e-12).fit(features / np.exp(np.asarray(theta) / 2), targets)
    solution = task_cases.solve(setup, bl.inner.Quadratic(), theta).params
    np.testing.assert_allclose(solution, model.coef_ / np.exp(np.asarray(theta) / 2), rtol=1e-9)
    np.testing.assert_allclose(setup.physical(theta)["penalty"], np.exp(theta))


def test_ridge_metrics(x64):
    setup = tasks.Ridge().setup(0, "float64")
    zero = setup.metrics(setup.hparams, setup.params)
    assert -0.2 < zero["test_r2"] <= 0.0  # the training mean as the prediction
    result = task_cases.minimize(setup, inner=bl.inner.Quadratic(), steps=3)
    assert setup.metrics(result.hparams, result.params)["test_r2"] > 0.2


@pytest.mark.parametrize(
    "task",
    [tasks.Ridge(), tasks.Lasso(), tasks.Logistic(data="wine"), tasks.SVM(data="iris"), tasks.SVM(data="wine")],
    ids=lambda t: f"{type(t).__name__}-{t.data}",
)
def test_setups_have_the_asked_precision_and_no_test_data(dtype, task):
    setup = task.setup(0, dtype)
    leaves = jax.tree.leaves((setup.hparams, setup.params, setup.data))
    assert {leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)} == {jnp.dtype(dtype)}
    assert set(setup.data) == {"train", "validation"}
    again = task.setup(0, dtype)
    for a, b in zip(jax.tree.leaves(setup.data), jax.tree.leaves(again.data), strict=True):
        np.testing.assert_array_equal(a, b)


FLOAT32 = (
    (tasks.QPLayer(rows=30, validation_rows=20, test_rows=40, assets=4), {"on_failure": "raise"}),
    (tasks.MolecularDynamics(particles=24), {"inner": bl.inner.FIRE()}),
    (tasks.Dictionary(data="breast_cancer", atoms=3), {"on_failure": "raise"}),
)


@pytest.mark.parametrize(("task", "settings"), FLOAT32)
def test_float32_is_kept_by_outer_steps(task, settings):
    found = task_cases.minimize(task.setup(0, "float32"), steps=3, **settings)
    assert {x.dtype for x in jax.tree.leaves((found.hparams, found.params))} == {jnp.dtype("float32")}
    assert np.isfinite(found.outer_loss)


REFUSED = (
    (tasks.SVM, {"theta": -1.0}, "task.theta must be positive"),
    (tasks.SVM, {"theta": 0.0}, "task.theta must be positive"),
    (tasks.Ridge, {"penalty": 0.0}, "task.penalty must be positive"),
    (tasks.Lasso, {"penalty": 1.0}, "task.penalty must be"),
    (tasks.Lasso, {"penalty": 0.0}, "task.penalty must be"),
    (tasks.Lasso, {"criterion": "sure", "penalty": None}, "criterion=sure has none: give a share"),
    (tasks.Logistic, {"penalty": -1.0}, "task.penalty must be"),
    (tasks.GroupLasso, {"degree": 0}, "task.degree must be at least 1, got 0"),
    (tasks.ElasticNet, {"l2_penalty": 0}, "task.l2_penalty must be positive, got 0"),
    (tasks.DataCleaning, {"corruption": 0.0}, "task.corruption must be a share above 0 and below 1, got 0.0"),
    (tasks.DataCleaning, {"l2": 0.0}, "task.l2 must be positive, got 0.0"),
    (tasks.Dictionary, {"atoms": 0}, "task.atoms must be at least 1, got 0"),
    (tasks.Dictionary, {"sparsity": 1.0}, "task.sparsity must be a share from 0 to below 1, got 1.0"),
    (tasks.Dictionary, {"l1": -1.0}, "task.l1 must not be negative, got -1.0"),
    (tasks.Dictionary, {"l2": float("nan")}, "task.l2 must not be negative, got nan"),
    (tasks.MolecularDynamics, {"particles": 1}, "task.particles must be at least 2, got 1"),
    (tasks.MolecularDynamics, {"particles": 4}, "the box must be at least two diameters wide"),
    (tasks.MolecularDynamics, {"diameter": 0.0}, "task.diameter must be positive, got 0.0"),
    (tasks.MolecularDynamics, {"target": -1.0}, "task.target must be positive, got -1.0"),
    (tasks.QPLayer, {"rows": 0}, "task.rows must be at least 1, got 0"),
    (tasks.QPLayer, {"assets": 1}, "task.assets must be at least 2, got 1"),
    (tasks.QPLayer, {"aversion": 0.0}, "task.aversion must be positive, got 0.0"),
    (tasks.QPLayer, {"curvature": float("inf")}, "task.curvature must be a number, got inf"),
    (tasks.DEQ, {"width": 0}, "task.width must be at least 1, got 0"),
    (tasks.DEQ, {"contraction": 1.0}, "task.contraction must be above 0 and below 1, got 1.0"),
    (tasks.DEQ, {"decay": -1.0}, "task.decay must not be negative, got -1.0"),
    (tasks.HyperRepresentation, {"widths": []}, "task.widths must be numbers of at least 1"),
    (tasks.HyperRepresentation, {"widths": [4, 0]}, "task.widths must be numbers of at least 1"),
    (tasks.HyperRepresentation, {"l2": 0.0}, "task.l2 must be positive, got 0.0"),
    (tasks.Meta, {"episodes": 0}, "task.episodes must be at least 1, got 0"),
    (tasks.Meta, {"ways": 11}, "task.ways must be from 2 to 10, got 11"),
    (tasks.Meta, {"penalty": 0.0}, "task.penalty must be positive, got 0.0"),
)


def test_wrong_settings_are_refused():
    for task, settings, words in REFUSED:
        with pytest.raises(ValueError, match=re.escape(words)):
            task(**settings)


def test_every_task_is_a_frozen_dataclass_of_plain_values():
    for name in tasks.__all__:
        cls = getattr(tasks, name)
        if isinstance(cls, type) and issubclass(cls, tasks.Task) and cls is not tasks.Task:
            assert dataclasses.is_dataclass(cls), name
            for value in dataclasses.asdict(cls()).values():
                assert all(
                    isinstance(x, str | float | int | None) for x in (value if isinstance(value, list) else [value])
                )


@pytest.mark.skipif(not (SHARED / "gravier.npz").exists(), reason="shared/data/gravier.npz is not here")
def test_ridge_on_a_wide_file(x64):
    """2905 features, 100 rows: more unknowns than are factored by default."""
    setup = tasks.Ridge(data=str(SHARED / "gravier.npz"), penalty=100.0).setup(0, "float64")
    inner = bl.inner.Quadratic(linear=bl.linear.CG(rtol=1e-12), rtol=1e-9)
    result = task_cases.minimize(setup, inner=inner, steps=3)
    assert result.failures == 0
    assert result.history[2]["outer_loss"] < result.history[0]["outer_loss"]


@pytest.mark.parametrize("per_feature", [False, True])
def test_lasso_matches_scikit_learn_and_differences(x64, per_feature):
    setup = tasks.Lasso(per_feature=per_feature).setup(0, "float64")
    assert setup.hparams.shape == ((10,) if per_feature else ())
    found = estimate(setup, setup.hparams)
    assert int(found.status) == bl.Status.CONVERGED
    features, targets, _ = setup.data["train"]
    alpha = float(np.exp(np.ravel(setup.hparams)[0]))
    np.testing.assert_allclose(found.params, task_cases.elastic_net(features, targets, alpha), atol=1e-9)
    assert 2 <= setup.metrics(setup.hparams, found.params)["support"] < 10
    assert max(task_cases.check_gradient(setup, PRECISE, directions=2).gaps) < 1e-5


def test_logistic_matches_scikit_learn_and_differences(x64):
    setup = tasks.Logistic(data="wine", penalty=0.05).setup(0, "float64")
    features, targets = setup.data["train"]
    precise = bl.inner.LBFGS(rtol=1e-12)
    model = task_cases.logistic_regression(features, targets, 0.05)
    np.testing.assert_allclose(task_cases.solve(setup, precise).params.T, model.coef_, atol=1e-6)
    assert max(task_cases.check_gradient(setup, precise, directions=2).gaps) < 1e-5
