"""Data cleaning: the corruption is what it says, the weights find it, the gradient is a gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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
    from sklearn.linear_model import LogisticRegression

    features, labels = (np.asarray(x) for x in setup.data["train"])
    logits = np.random.default_rng(0).normal(size=len(labels))
    found = PRECISE.solve(setup.problem, setup.params, jnp.asarray(logits), setup.data)
    model = LogisticRegression(C=1 / (0.02 * len(labels)), fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(features, labels, sample_weight=1 / (1 + np.exp(-logits)))
    np.testing.assert_allclose(found.params.T, model.coef_, atol=1e-6)


def test_hypergradient_matches_differences(setup):
    hparams = jnp.asarray(np.random.default_rng(1).normal(size=setup.hparams.shape))
    report = bl.check_hypergradient(setup.problem, hparams, setup.params, setup.data, inner=PRECISE, rtol=1e-6)
    assert report.ok, str(report)


@pytest.mark.slice(3)
@pytest.mark.parametrize("seed", range(3))
def test_weights_tell_corrupt_from_clean_digits_and_cleaning_pays(seed):
    """Half of the labels wrong: AUC at least 0.95, and 5 points of test accuracy over training on all rows."""
    setup = tasks.DataCleaning().setup(seed, "float32")
    found = bl.minimize(
        setup.problem,
        setup.hparams,
        setup.params,
        setup.data,
        inner=bl.inner.LBFGS(),
        optimizer=optax.adam(0.1),
        steps=100,
        on_failure="raise",
    )
    metrics = setup.metrics(found.hparams, found.params)
    assert metrics["auc"] >= 0.95
    assert metrics["test_accuracy"] >= metrics["test_accuracy_all_rows"] + 0.05
    assert metrics["weight_clean"] > 0.8 > 0.2 > metrics["weight_corrupt"]
    assert set(setup.pictures(found.hparams, found.params)) == {"weights"}


def test_baselines_train_on_all_rows_and_on_the_right_ones(setup):
    from sklearn.linear_model import LogisticRegression

    features, labels = (np.asarray(x) for x in setup.data["train"])
    split = tasks.Logistic(data="iris", validation=0.3, test=0.2).tables(0)
    metrics = setup.metrics(setup.hparams, setup.params)
    for name, chosen in {"all_rows": labels >= 0, "clean_rows": labels == split.train.targets}.items():
        model = LogisticRegression(C=0.5 / (0.02 * len(labels)), fit_intercept=False, tol=1e-10)
        model.fit(features[chosen], labels[chosen])
        expected = model.score(split.test.features, split.test.targets)
        assert metrics[f"test_accuracy_{name}"] == pytest.approx(expected)


def test_the_optimization_sees_no_clean_training_label_and_no_test_row(setup):
    labels, wrong = data_cleaning.corrupt(tasks.Logistic(data="iris", validation=0.3, test=0.2).tables(0).train, 0.4, 0)
    np.testing.assert_array_equal(setup.data["train"][1], labels)
    assert wrong.sum() == round(0.4 * len(labels))
    assert {len(x) for x in jax.tree.leaves(setup.data) if x.ndim} == {75, 45}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"corruption": 0.0}, "task.corruption must be a share above 0 and below 1, got 0.0"),
        ({"l2": 0.0}, "task.l2 must be positive, got 0.0"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        tasks.DataCleaning(**settings)


def test_a_share_that_corrupts_no_row_is_refused():
    with pytest.raises(datasets.DataError, match="some must be wrong and some right"):
        tasks.DataCleaning(data="iris", corruption=0.001).setup(0, "float32")
