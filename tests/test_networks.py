"""Tasks with networks: a deep equilibrium layer, a learned representation, few-shot learning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import task_cases

import bilevel as bl
from bilevel import tasks
from bilevel.tasks import deq, episodes

LBFGS = bl.inner.LBFGS(rtol=1e-11, atol=0.0, max_steps=20_000)
ANDERSON = bl.inner.Anderson(rtol=1e-13, atol=0.0)


def elsewhere(setup):
    return task_cases.elsewhere(setup, scale=0.1)


def train(setup, inner, steps=100):
    return task_cases.minimize(setup, inner=inner, optimizer=optax.rmsprop(0.01), steps=steps, on_failure="raise")


def assert_close(found, expected, share):
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=share * scale)


@pytest.fixture
def equilibrium(x64):
    return tasks.DEQ(data="iris", width=5).setup(0, "float64")


def test_deq_comes_to_rest_where_its_cell_does(equilibrium):
    hparams = elsewhere(equilibrium)
    found = task_cases.solve(equilibrium, ANDERSON, hparams).params
    cell, features = jax.tree.map(np.asarray, hparams["cell"]), np.asarray(equilibrium.data["train"][0])
    recurrent = cell["recurrent"] * min(1, 0.9 / np.linalg.norm(cell["recurrent"], 2))
    hidden = np.zeros(found.shape)
    for _ in range(500):
        hidden = np.tanh(hidden @ recurrent + features @ cell["input"]["kernel"] + cell["input"]["bias"])
    np.testing.assert_allclose(found, hidden, atol=1e-10)


def test_deq_gradient_is_that_of_unrolling(equilibrium):
    hparams = elsewhere(equilibrium)
    precise = bl.hypergrad.Implicit(linear=bl.linear.Auto(rtol=1e-12))
    implicit = task_cases.estimate(equilibrium, ANDERSON, hparams, precise)
    plain = bl.inner.FixedPointIteration(rtol=0.0, atol=1e-300)
    unrolled = task_cases.estimate(equilibrium, plain, hparams, bl.hypergrad.Unrolled(steps=400))
    assert_close(implicit.grad, unrolled.grad, 1e-9)
    assert float(jnp.max(jnp.abs(implicit.grad["cell"]["recurrent"]))) > 1e-3


@pytest.mark.slow
def test_deq_gradient_is_that_of_unrolling_at_full_size(x64):
    """On digits, after some training, to 1e-5."""
    setup = tasks.DEQ().setup(0, "float64")
    hparams = train(setup, bl.inner.Anderson(), steps=5).hparams
    implicit = task_cases.estimate(setup, bl.inner.Anderson(rtol=1e-8), hparams)
    unrolled = task_cases.estimate(setup, bl.inner.FixedPointIteration(), hparams, bl.hypergrad.Unrolled(steps=100))
    assert_close(implicit.grad, unrolled.grad, 1e-5)


def test_deq_hypergradient_matches_differences(equilibrium):
    task_cases.check_gradient(equilibrium, ANDERSON, elsewhere(equilibrium), rtol=1e-6)


@pytest.mark.slow
def test_deq_learns_digits():
    setup = tasks.DEQ().setup(0, "float32")
    found = train(setup, bl.inner.Anderson())
    metrics = setup.metrics(found.hparams, found.params)
    assert metrics["test_accuracy"] >= 0.95
    assert setup.physical(found.hparams)["recurrent_norm"] <= 0.9 + 1e-6
    assert set(setup.pictures(found.hparams, found.params)) == {"iterations"}


@pytest.mark.parametrize("norm", [0.5, 2.0])
def test_a_matrix_is_bounded_only_where_it_is_too_large(norm):
    matrix = np.diag([norm, 0.1]).astype(np.float32)
    np.testing.assert_allclose(deq.bounded(matrix, 0.9), matrix * min(1, 0.9 / norm), rtol=1e-6)


@pytest.fixture
def representation(x64):
    return tasks.HyperRepresentation(data="iris", widths=[6, 4], l2=0.1).setup(0, "float64")


def test_the_classifier_of_learned_features_is_that_of_scikit_learn(representation):
    found = task_cases.solve(representation, LBFGS).params
    network, (features, targets) = jax.tree.map(np.asarray, (representation.hparams, representation.data["train"]))
    hidden = np.tanh(features @ network["layers_0"]["kernel"] + network["layers_0"]["bias"])
    outputs = np.tanh(hidden @ network["layers_2"]["kernel"] + network["layers_2"]["bias"])
    np.testing.assert_allclose(found.T, task_cases.logistic_regression(outputs, targets, 0.1).coef_, atol=1e-6)


def test_representation_hypergradient_matches_differences(representation):
    task_cases.check_gradient(representation, bl.inner.Newton(rtol=1e-12), elsewhere(representation), rtol=1e-6)


@pytest.mark.slow
def test_representation_learns_digits():
    setup = tasks.HyperRepresentation().setup(0, "float32")
    found = train(setup, bl.inner.LBFGS())
    assert setup.metrics(found.hparams, found.params)["test_accuracy"] >= 0.95
    assert set(setup.pictures(found.hparams, found.params)) == {"features"}


@pytest.mark.parametrize("made", [tasks.DEQ(data="iris"), tasks.HyperRepresentation(data="iris")])
def test_weights_are_the_same_numbers_in_every_precision(made, x64):
    single, double = made.setup(3, "float32").hparams, made.setup(3, "float64").hparams
    assert {leaf.dtype for leaf in jax.tree.leaves(single)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(double)} == {jnp.dtype("float64")}
    assert_close(single, double, 1e-7)


FEW = {"episodes": 3, "test_episodes": 4, "queries": 6, "widths": [5]}


@pytest.fixture(params=["sinusoids", pytest.param("digits", marks=pytest.mark.slow)])
def few_shots(request, x64):
    return tasks.Meta(data=request.param, shots=2, ways=3, penalty=2.0, **FEW).setup(0, "float64")


def test_episodes_learn_from_their_own_rows_alone(few_shots):
    """The joint problem is that of each episode by itself."""
    hparams, data = elsewhere(few_shots), few_shots.data
    together = task_cases.solve(few_shots, LBFGS, hparams).params
    for number in range(3):
        params, some, expected = jax.tree.map(
            lambda x, n=number: x[n : n + 1], (few_shots.params, data["episodes"], together)
        )
        one = dataclasses.replace(few_shots, params=params, data={**data, "episodes": some})
        assert_close(task_cases.solve(one, LBFGS, hparams).params, expected, 1e-6)


def test_few_shot_hypergradient_matches_differences(few_shots):
    task_cases.check_gradient(few_shots, LBFGS, elsewhere(few_shots), rtol=1e-5)


def test_weights_stay_at_the_start_where_the_penalty_is_large(x64):
    setup = tasks.Meta(shots=2, penalty=1e7, **FEW).setup(0, "float64")
    assert_close(task_cases.solve(setup, LBFGS).params, setup.params, 1e-5)


def test_sinusoids_are_what_they_say():
    made = episodes.sinusoids(5, 7, 9, np.random.default_rng(0))
    for x, y in made:
        assert x.shape[:2] == y.shape
        for angles, values in zip(x[..., 0] * 2.5, y * 2.5, strict=True):
            waves = np.stack([np.sin(angles), np.cos(angles)], axis=1)
            weights, *_ = np.linalg.lstsq(waves, values, rcond=None)
            np.testing.assert_allclose(waves @ weights, values, atol=1e-10)
            assert 0.1 <= np.linalg.norm(weights) <= 5


def test_digits_of_test_episodes_are_in_no_training_episode():
    train, test = episodes.split_digits(0.4, 0)
    assert len(train.targets) + len(test.targets) == 1797
    made = episodes.digits(test, 6, ways=4, shots=2, queries=7, rng=np.random.default_rng(0))
    assert made.support.features.shape == (6, 8, 64)
    assert made.query.features.shape == (6, 8, 64)
    known = {row.tobytes(): label for row, label in zip(test.features, test.targets, strict=True)}
    for support, query in zip(made.support.features, made.query.features, strict=True):
        labels = [known[row.tobytes()] for row in (*support, *query)]
        assert labels[:8:2] == labels[1:8:2] == labels[8::2] == labels[9::2]
        assert len(set(labels)) == 4
    assert not {row.tobytes() for row in train.features} & set(known)


@pytest.mark.slow
def test_few_shot_digits_are_learned_from_one_row_each():
    setup = tasks.Meta(data="digits", shots=1, widths=[64], episodes=100, penalty=0.3).setup(0, "float32")
    found = train(setup, bl.inner.LBFGS(), steps=60)
    metrics = setup.metrics(found.hparams, found.params)
    assert metrics["test_accuracy"] > 0.9 > 0.75 > metrics["test_accuracy_start"]


@pytest.mark.slow
def test_few_shot_sinusoids_are_learned():
    setup = tasks.Meta(episodes=12, test_episodes=20).setup(0, "float32")
    found = train(setup, bl.inner.LBFGS(), steps=20)
    metrics = setup.metrics(found.hparams, found.params)
    assert metrics["test_mse"] < 0.6 * metrics["test_mse_start"]
    assert set(setup.pictures(found.hparams, found.params)) == {"episodes"}


def test_too_many_rows_of_a_digit_are_refused():
    with pytest.raises(ValueError, match=r"task.shots \+ task.queries / task.ways must be at most .* got 210"):
        tasks.Meta(data="digits", shots=200).setup(0, "float32")
