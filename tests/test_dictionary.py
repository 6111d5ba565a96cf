"""Task-driven dictionary learning: its codes, its gradients, its refusals; and the study that compares it with others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import task_cases
from task_cases import elsewhere

import bilevel as bl
from bilevel import datasets, tasks
from bilevel.tasks import dictionary
from bilevel.tasks.scores import auc
from experiments.implicit_diff_2021.dictionary_learning import DictionaryLearning

PRECISE = bl.inner.FISTA(rtol=1e-13, atol=0.0, max_steps=100_000)


RNG = np.random.default_rng(0)
TARGETS = RNG.permutation(np.repeat([0, 1], 30))
FEATURES = RNG.normal(size=(60, 8)) + TARGETS[:, None] * RNG.normal(size=8)


def saved(folder, targets=TARGETS):
    """Sixty rows of two classes, as a path."""
    np.savez(folder / "table.npz", X=FEATURES, y=targets)
    return str(folder / "table.npz")


@pytest.fixture
def setup(x64, tmp_path):
    return tasks.Dictionary(data=saved(tmp_path), atoms=3).setup(0, "float64")


def codes_of(setup, hparams):
    return task_cases.estimate(setup, PRECISE, hparams).params


def test_codes_are_those_of_scikit_learn(setup):
    hparams = elsewhere(setup)
    atoms, l1, l2 = np.asarray(dictionary.atoms(hparams)), float(setup.data["l1"]), float(setup.data["l2"])
    features = np.asarray(setup.data["features"])
    shares = l1 / features.shape[1], l2 / features.shape[1]  # scikit-learn divides the loss by the number of features
    expected = np.stack([task_cases.elastic_net(atoms.T, row, *shares) for row in features])
    assert 0.1 < np.mean(expected == 0) < 0.9
    np.testing.assert_allclose(codes_of(setup, hparams), expected, atol=1e-6)
    np.testing.assert_allclose(dictionary.encode(features, atoms, l1, l2), expected, atol=1e-6)


def test_the_loss_is_the_square_of_what_the_codes_leave(setup):
    hparams, codes = elsewhere(setup), np.random.default_rng(2).normal(size=setup.params.shape)
    features = np.asarray(setup.data["features"])
    rest = features - codes @ np.asarray(dictionary.atoms(hparams))
    value = setup.problem.parts.inner_loss(jnp.asarray(codes), hparams, setup.data)
    np.testing.assert_allclose(value, (np.sum(rest**2) - np.sum(features**2)) / 2, rtol=1e-10)


def test_the_outer_loss_is_that_of_scikit_learn(setup):
    from sklearn.metrics import log_loss

    hparams, codes = elsewhere(setup), codes_of(setup, elsewhere(setup))
    weights = np.asarray(hparams["weights"])
    chances = 1 / (1 + np.exp(-(np.asarray(codes) @ weights + float(hparams["bias"]))))
    penalty = float(setup.data["weight_penalty"]) * np.sum(weights**2) / 2
    expected = log_loss(np.asarray(setup.data["targets"]), chances) + penalty
    np.testing.assert_allclose(setup.problem.outer_loss(codes, hparams, setup.data), expected, rtol=1e-10)


def test_the_lipschitz_constant_is_the_largest_curvature(setup):
    hparams = elsewhere(setup)
    curvature = jax.hessian(lambda row: setup.problem.parts.inner_loss(row[None], hparams, _one_row(setup.data)))(
        jnp.zeros(3)
    )
    expected = np.linalg.eigvalsh(curvature)[-1]
    np.testing.assert_allclose(setup.problem.parts.lipschitz(hparams, setup.data), expected, rtol=1e-10)


def _one_row(data):
    return {**data, "features": data["features"][:1]}


def test_hypergradient_matches_differences(setup):
    task_cases.check_gradient(setup, PRECISE, elsewhere(setup), rtol=1e-6)


def test_atoms_are_on_the_sphere_whatever_the_length_of_the_rows(setup):
    hparams = elsewhere(setup)
    np.testing.assert_allclose(np.linalg.norm(dictionary.atoms(hparams), axis=1), 1, rtol=1e-12)
    longer = {**hparams, "dictionary": hparams["dictionary"] * jnp.array([[0.1], [3.0], [70.0]])}
    np.testing.assert_allclose(codes_of(setup, longer), codes_of(setup, hparams), atol=1e-10)
    found = task_cases.estimate(setup, PRECISE, hparams)
    along = jnp.sum(found.grad["dictionary"] * hparams["dictionary"], axis=1)
    np.testing.assert_allclose(along, 0, atol=1e-10 * float(jnp.linalg.norm(found.grad["dictionary"])) + 1e-12)
    assert float(jnp.linalg.norm(found.grad["dictionary"])) > 1e-3


def test_the_start(setup):
    features = np.asarray(setup.data["features"])
    rows = np.asarray(setup.hparams["dictionary"])
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-12)
    kept = np.linalg.norm(features @ rows.T)
    np.testing.assert_allclose(kept, np.linalg.norm(np.linalg.svd(features)[1][:3]), rtol=1e-12)
    assert np.mean(np.asarray(codes_of(setup, setup.hparams)) == 0) == pytest.approx(0.5, abs=0.02)


def test_optimization_sees_the_training_rows_alone(setup):
    assert setup.data["features"].shape == (36, 8)
    assert setup.data["targets"].shape == setup.params.shape[:1] == (36,)


def test_metrics_and_pictures(setup):
    found = task_cases.minimize(setup, optimizer=optax.adam(0.1), steps=20, on_failure="raise")
    assert found.outer_loss < 0.9 * found.history[0]["outer_loss"]
    metrics = setup.metrics(found.hparams, found.params)
    assert set(metrics) == {"train_auc", "validation_auc", "test_auc", "zero_codes"}
    scores = np.asarray(found.params) @ np.asarray(found.hparams["weights"])
    assert metrics["train_auc"] == pytest.approx(auc(np.asarray(setup.data["targets"]), scores), abs=1e-3)
    assert metrics["train_auc"] > 0.8
    assert set(setup.pictures(found.hparams, found.params)) == {"atoms", "sparsity"}


def test_auc_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    targets, scores = rng.integers(2, size=50), np.round(rng.normal(size=50), 1)
    assert auc(targets, scores) == pytest.approx(roc_auc_score(targets, scores), abs=1e-12)


def test_what_does_not_fit_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"task.atoms must be at most .* 8 and 36 .* got 9"):
        tasks.Dictionary(data=saved(tmp_path), atoms=9).setup(0, "float32")
    path = tmp_path / "three.npz"
    np.savez(path, X=np.random.default_rng(0).normal(size=(30, 4)), y=np.arange(30) % 3)
    with pytest.raises(datasets.DataError, match="3 classes"):
        tasks.Dictionary(data=str(path)).setup(0, "float32")


def run_study(path):
    study = DictionaryLearning(
        data=path,
        splits=2,
        atoms=3,
        inverse_penalties={"l1_logistic": [0.1, 1.0], "l2_logistic": [0.01, 1.0], "dictionary": [1.0]},
        sparsities=[0.5, 0.3],
        l2_penalties=[0.1],
        steps=10,
        check_every=5,
    )
    rows = []
    findings = study.run(0, "float32", rows.append)
    assert len(rows) == study.count == 8
    return rows, findings.summary


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    """The study on a table, and on the same table with the classes of the first split's test rows exchanged."""
    folder = tmp_path_factory.mktemp("study")
    numbered = datasets.Table("rows", np.arange(60.0)[:, None], np.arange(60) % 2, 2)
    test = datasets.split_rows(numbered, 0.2, 0.2, 0).test.features[:, 0].astype(int)
    targets = TARGETS.copy()
    targets[test] = 1 - targets[test]
    return run_study(saved(folder)), run_study(saved(folder, targets))


@pytest.mark.slow
def test_the_study_chooses_without_the_test_rows(flipped):
    for one, other in zip(flipped[0][0][:4], flipped[1][0][:4], strict=True):
        assert one["test_auc"] + other["test_auc"] == pytest.approx(1, abs=1e-6)
        assert {**one, "test_auc": 0} == {**other, "test_auc": 0}


def test_the_study_sums_up_its_rows(flipped):
    rows, summary = flipped[0]
    assert {row["method"] for row in rows} == set(summary["test_auc"])
    for method, found in summary["test_auc"].items():
        values = [row["test_auc"] for row in rows if row["method"] == method]
        assert found["mean"] == pytest.approx(np.mean(values))
        assert found["interval"] == pytest.approx(1.96 * abs(values[0] - values[1]) / 2)
        assert found["mean"] > 0.6
    assert summary["failures"] == 0
    assert 0.2 < summary["zero_codes"]["task_driven"] < 0.8


def test_the_study_refuses_wrong_settings():
    with pytest.raises(ValueError, match=r"study.steps must be a multiple of study.check_every, got 10 and 3"):
        DictionaryLearning(steps=10, check_every=3)
    with pytest.raises(ValueError, match=r"study.splits must be at least 2"):
        DictionaryLearning(splits=1)
    with pytest.raises(ValueError, match=r"study.inverse_penalties must name"):
        DictionaryLearning(inverse_penalties={"l1_logistic": [1.0]})
