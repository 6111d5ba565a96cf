"""Tasks on arrays of one's own: the problem is stated on these arrays, absent parts are left out, wrong shapes are refused."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LassoCV

import bilevel as bl
from bilevel import tasks
from bilevel.datasets import DataError, Split, Table, split_rows
from bilevel.tasks.data_cleaning import Labeled
from bilevel.tasks.episodes import Episodes, EpisodeSplit, Rows
from bilevel.tasks.molecular_dynamics import Packing
from bilevel.tasks.qp_layer import Market, Markets

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5))
Y = X @ [2.0, -1.0, 0.0, 0.0, 0.5] + 0.3 * RNG.normal(size=40)
LABELS = np.where(Y > 0, "yes", "no")
NUMBERS, CLASSES = Table.of(X, Y, "regression"), Table.of(X, LABELS, "classification")


def halves(table, test=False):
    """Twenty training and ten validation rows, and ten test rows if they are wanted."""
    return Split.of(table.at(slice(20)), table.at(slice(20, 30)), table.at(slice(30, None)) if test else None)


REGRESSION = [tasks.Ridge(), tasks.Lasso(), tasks.ElasticNet(), tasks.GroupLasso(degree=2)]
CLASSIFICATION = [tasks.Logistic(), tasks.SVM(), tasks.HyperRepresentation(widths=[3]), tasks.DEQ(width=3)]
OF_TRAINING_ROWS = [tasks.DEQ(width=3), tasks.Distillation(), tasks.Dictionary(atoms=2)]


def named(task):
    return type(task).__name__


@pytest.mark.parametrize("task", REGRESSION, ids=named)
def test_regression_is_stated_on_the_arrays_and_judged_without_test_rows(x64, task):
    setup = task.state(halves(NUMBERS), "float64")
    if isinstance(task, tasks.GroupLasso):
        assert setup.data["features"].shape == (20, 10)
        np.testing.assert_array_equal(setup.data["targets"][:, 0], Y[:20])
    else:
        for name, rows in {"train": slice(20), "validation": slice(20, 30)}.items():
            for found, array in zip(setup.data[name][:2], (X, Y), strict=True):
                np.testing.assert_array_equal(found, array[rows])
    metrics = setup.metrics(setup.hparams, setup.params)  # of weights that are zero
    assert metrics["validation_rmse"] == pytest.approx(np.sqrt(np.mean(Y[20:30] ** 2)))
    assert not [name for name in metrics if name.startswith("test")]
    assert setup.sizes["training rows"] == 20
    assert "test rows" not in setup.sizes
    assert "test_r2" in task.state(halves(NUMBERS, test=True), "float64").metrics(setup.hparams, setup.params)


def test_the_lasso_is_fitted_to_x_and_y_alone(x64):
    """By cross-validation and a few outer steps: the loss and the weights are scikit-learn's at the penalty that is found."""
    setup = tasks.Lasso(criterion="cross_validation", folds=4).state(Split.of(NUMBERS), "float64")
    inner = bl.inner.FISTA(rtol=1e-12, max_steps=100_000)
    found = bl.minimize(setup.problem, setup.hparams, setup.params, setup.data, inner=inner, steps=3)
    reference = LassoCV(alphas=[float(np.exp(found.hparams))], cv=4, fit_intercept=False, tol=1e-12).fit(X, Y)
    solved = inner.solve(setup.problem, setup.params, found.hparams, setup.data).params
    loss = setup.problem.outer_loss(solved, found.hparams, setup.data)
    np.testing.assert_allclose(loss, reference.mse_path_.mean(), rtol=1e-8)
    np.testing.assert_allclose(np.asarray(solved).reshape(5, 5)[-1], reference.coef_, atol=1e-8)
    assert set(setup.metrics(found.hparams, found.params)) == {"train_rmse", "support"}


@pytest.mark.parametrize("task", CLASSIFICATION, ids=named)
def test_classification_is_stated_on_the_arrays_and_judged_without_test_rows(x64, task):
    setup = task.state(halves(CLASSES), "float64")
    train = setup.data["train"]
    features, targets = (train["features"], train["targets"][:, 1]) if isinstance(task, tasks.SVM) else train
    np.testing.assert_array_equal(features, X[:20])
    np.testing.assert_array_equal(targets, LABELS[:20] == "yes")
    metrics = setup.metrics(setup.hparams, setup.params)
    assert {"train_accuracy", "validation_accuracy"} <= set(metrics)
    assert "test_accuracy" not in metrics


@pytest.mark.parametrize("task", OF_TRAINING_ROWS, ids=named)
def test_tasks_without_validation_rows_in_their_losses_need_none(x64, task):
    setup = task.state(Split.of(CLASSES), "float64")
    arrays = [leaf for leaf in jax.tree.leaves(setup.data) if leaf.shape == X.shape]
    np.testing.assert_array_equal(arrays[0], X)
    measured = [name for name in setup.metrics(setup.hparams, setup.params) if name.endswith(("accuracy", "auc"))]
    assert len(measured) == 1
    assert measured[0].startswith("train_")


@pytest.mark.parametrize("known", [True, False])
def test_data_cleaning_keeps_the_labels_and_may_not_know_which_are_wrong(x64, known):
    wrong = np.arange(20) % 3 == 0 if known else None
    setup = tasks.DataCleaning().state(Labeled(halves(CLASSES), wrong), "float64")
    np.testing.assert_array_equal(setup.data["train"][1], LABELS[:20] == "yes")
    cleaned = {"auc", "weight_clean", "weight_corrupt"} if known else set()
    assert set(setup.metrics(setup.hparams, setup.params)) == {"validation_accuracy"} | cleaned
    assert set(setup.pictures(setup.hparams, setup.params)) == ({"weights"} if known else set())
    assert ("wrong labels" in setup.sizes) is known


@pytest.mark.parametrize("classes", [0, 3])
def test_episodes_of_numbers_and_of_classes(x64, classes):
    def rows(count):
        targets = RNG.integers(classes, size=(2, count)) if classes else RNG.normal(size=(2, count))
        return Rows(RNG.normal(size=(2, count, 3)), targets)

    episodes = Episodes(rows(6), rows(50))
    setup = tasks.Meta(widths=[4]).state(EpisodeSplit(episodes), "float64")
    tested = tasks.Meta(widths=[4]).state(EpisodeSplit(episodes, episodes), "float64")
    assert set(tested.pictures(setup.hparams, setup.params)) == {"episodes"}
    np.testing.assert_array_equal(setup.data["episodes"].support.features, episodes.support.features)
    np.testing.assert_array_equal(setup.data["episodes"].query.targets, episodes.query.targets)
    assert jax.tree.leaves(setup.params)[-1].shape == (2, 4, classes or 1)
    expected = {"train_accuracy"} if classes else {"train_mse"}
    assert set(setup.metrics(setup.hparams, setup.params)) == expected


def test_portfolios_of_known_returns(x64):
    covariance, returns = np.eye(3), RNG.normal(size=(12, 3))
    market = Market(X[:12], returns)
    setup = tasks.QPLayer().state(Markets(covariance, market, test=market.part(slice(4))), "float64")
    np.testing.assert_array_equal(setup.data["returns"], returns)
    np.testing.assert_allclose(setup.hparams, np.linalg.lstsq(X[:12], returns)[0], atol=1e-12)
    assert setup.params.shape == (12, 3)
    metrics = setup.metrics(setup.hparams, setup.params)
    assert metrics["test_regret"] == pytest.approx(metrics["test_regret_two_stage"])
    assert not {"validation_regret", "test_regret_true_means"} & set(metrics)
    assert set(setup.pictures(setup.hparams, setup.params)) == {"test"}


def test_a_packing_starts_where_it_is_told(x64):
    positions, small = RNG.uniform(size=(6, 2)), np.arange(6) < 2
    setup = tasks.MolecularDynamics().state(Packing(positions, small, 3.0), "float64")
    np.testing.assert_allclose(setup.params, 3.0 * positions, rtol=1e-15)
    assert setup.data["small"].sum() == 2
    assert setup.sizes == {"particles": 6}
    with pytest.raises(ValueError, match=r"two diameters wide.*its side is 1\.5"):
        tasks.MolecularDynamics().state(Packing(positions, small, 1.5), "float64")


def refused(task, tables, message):
    with pytest.raises(DataError, match=message):
        task.state(tables, "float32")


def test_wrong_tables_are_refused():
    wide, short = Table("wide", np.zeros((4, 7)), np.zeros(4)), Table("short", X, Y[:3])
    flat, zero = Table("flat", Y, Y), Table("zero", X, np.zeros(40))
    others = Table.of(X, np.arange(40) % 3, "classification", "others")
    sure, folds = tasks.Lasso(criterion="sure"), tasks.Lasso(criterion="cross_validation")
    refused(tasks.Ridge(), Split.of(NUMBERS), "arrays: there are no validation rows")
    refused(tasks.Ridge(), Split.of(NUMBERS, wide), r"wide, validation rows: X must have the shape \(samples, 5\)")
    refused(sure, Split.of(short), r"short, train rows: y must have the shape \(40,\); got \(3,\)")
    refused(tasks.Lasso(), Split(flat, flat, flat), r"flat, train rows: X must have the shape \(samples, features\)")
    refused(folds, Split.of(zero), "zero: y is orthogonal to all columns")
    unknown = Split.of(CLASSES, others)
    refused(tasks.Logistic(), unknown, "others, validation rows: y must hold class numbers from 0 to 1")
    unnamed = r"arrays, train rows: y holds no class numbers: make the table with Table\.of"
    refused(tasks.DEQ(), Split.of(NUMBERS), unnamed)
    refused(tasks.Dictionary(), Split.of(others), "others: y holds 3 classes")


def test_other_wrong_arrays_are_refused():
    message = r"wrong must have the shape \(20,\) and the dtype bool; got \(20,\) and int"
    refused(tasks.DataCleaning(), Labeled(halves(CLASSES), np.zeros(20, int)), message)

    rows, short = Rows(np.zeros((2, 6, 3)), np.zeros((2, 6))), Rows(np.zeros((2, 6, 3)), np.zeros((2, 5)))
    labels, negative = (rows._replace(targets=np.full((2, 6), label)) for label in (1, -1))
    for support, query, message in (
        (rows, short, r"train.query.targets must have the shape \(2, 6\); got \(2, 5\)"),
        (rows, labels, "train.query.targets must be class numbers .* in all parts alike"),
        (negative, negative, "train.support.targets must be class numbers from 0"),
    ):
        refused(tasks.Meta(), EpisodeSplit(Episodes(support, query)), message)

    market, narrow = Market(X, np.ones((40, 3))), Market(X[:, :4], np.ones((40, 3)))
    refused(tasks.QPLayer(), Markets(np.eye(2), market), r"covariance must have the shape \(3, 3\); got \(2, 2\)")
    message = r"test.features must have the shape \(rows, 5\)"
    refused(tasks.QPLayer(), Markets(np.eye(3), market, test=narrow), message)

    for shape, message in (
        ((6, 3), r"positions must have the shape \(particles, 2\); got \(6, 3\)"),
        ((5, 2), r"small must have the shape \(5,\)"),
    ):
        refused(tasks.MolecularDynamics(), Packing(np.zeros(shape), np.zeros(6, bool), 4.0), message)


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parents[1] / "docs/tasks.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "docs/tasks.md", "exec"), {"X": X, "y": Y})
    assert "train_rmse" in capsys.readouterr().out


def test_a_table_without_test_rows_is_split_in_two():
    split = split_rows(CLASSES, 0.25, 0, seed=0)
    assert {name: len(part) for name, part in split.parts.items()} == {"train": 30, "validation": 10}


def test_setup_is_the_tables_and_the_problem_on_them():
    task = tasks.HyperRepresentation(data="iris", widths=[3])
    whole, parts = task.setup(3, "float32"), task.state(task.tables(3), "float32", seed=3)
    for one, other in zip(*(jax.tree.leaves((s.hparams, s.params, s.data)) for s in (whole, parts)), strict=True):
        np.testing.assert_array_equal(one, other)
    other = task.state(task.tables(3), "float32")
    assert not jnp.array_equal(jax.tree.leaves(other.hparams)[-1], jax.tree.leaves(whole.hparams)[-1])
