"""Data cleaning: the corruption is what it says, the weights find it, the gradient is a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import task_cases

import bilevel as bl
from bilevel import datasets, tasks
from bilevel.tasks import data_cleaning

PRECISE = bl.inner.LBFGS(rtol=1e-13, atol=0.0, max_steps=10_000)


@pytest.fixture
def setup(x64):
    return tasks.DataCleaning(data="iris", corruption=0.4, l2=0.02).setup(0, "float64")


def test_corrupt_rows_get_another_class_and_others_keep_theirs():
    part = datasets.Table("made", np.zeros((1000, 1)), np.arange(1000) % 4, 4)
    labels, wrong = data_cleaning.corrupt(part, 0.3, seed=0)
    assert wrong.sum() == 300
    np.testing.assert_array_equal(labels[~wrong], part.targets[~wrong])
    shift = (labels - part.targets)[wrong] % 4
    assert np.all(np.bincount(shift, minlength=4)[1:] > 70)
    assert not np.any(shift == 0)


def test_weights_are_those_of_scikit_learn(setup):
    """With weights σ(θ) as sample weights, and C from the penalty."""
    features, labels = (np.asarray(x) for x in setup.data["train"])
    logits = np.random.default_rng(0).normal(size=len(labels))
    found = task_cases.solve(setup, PRECISE, jnp.asarray(logits)).params
    model = task_cases.logistic_regression(features, labels, 0.02, 1 / (1 + np.exp(-logits)))
    np.testing.assert_allclose(found.T, model.coef_, atol=1e-6)


def test_hypergradient_matches_differences(setup):
    task_cases.check_gradient(setup, PRECISE, task_cases.elsewhere(setup, scale=1.0), rtol=1e-6)


@pytest.mark.slice(3)
@pytest.mark.parametrize("seed", range(3))
def test_weights_tell_corrupt_from_clean_digits_and_cleaning_pays(seed):
    """Half of the labels wrong: AUC at least 0.95, and 5 points of test accuracy over training on all rows."""
    setup = tasks.DataCleaning().setup(seed, "float32")
    settings = {"inner": bl.inner.LBFGS(), "optimizer": optax.adam(0.1), "steps": 100, "on_failure": "raise"}
    found = task_cases.minimize(setup, **settings)
    metrics = setup.metrics(found.hparams, found.params)
    assert metrics["auc"] >= 0.95
    assert metrics["test_accuracy"] >= metrics["test_accuracy_all_rows"] + 0.05
    assert metrics["weight_clean"] > 0.8 > 0.2 > metrics["weight_corrupt"]
    assert set(setup.pictures(found.hparams, found.params)) == {"weights"}


def test_baselines_train_on_all_rows_and_on_the_right_ones(setup):
    features, labels = (np.asarray(x) for x in setup.data["train"])
    split = tasks.Logistic(data="iris", validation=0.3, test=0.2).tables(0)
    metrics = setup.metrics(setup.hparams, setup.params)
    for name, chosen in {"all_rows": labels >= 0, "clean_rows": labels == split.train.targets}.items():
        weights = np.full(chosen.sum(), chosen.mean() / 2)  # the mean over all rows, each with the weight σ(0)
        model = task_cases.logistic_regression(features[chosen], labels[chosen], 0.02, weights)
        expected = model.score(split.test.features, split.test.targets)
        assert metrics[f"test_accuracy_{name}"] == pytest.approx(expected)


def test_the_optimization_sees_no_clean_training_label_and_no_test_row(setup):
    labels, wrong = data_cleaning.corrupt(tasks.Logistic(data="iris", validation=0.3, test=0.2).tables(0).train, 0.4, 0)
    np.testing.assert_array_equal(setup.data["train"][1], labels)
    assert wrong.sum() == round(0.4 * len(labels))
    assert {len(x) for x in jax.tree.leaves(setup.data) if x.ndim} == {75, 45}


def test_a_share_that_corrupts_no_row_is_refused():
    with pytest.raises(datasets.DataError, match="some must be wrong and some right"):
        tasks.DataCleaning(data="iris", corruption=0.001).setup(0, "float32")
