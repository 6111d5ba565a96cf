"""Tasks with networks: a deep equilibrium layer, a learned representation, few-shot learning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel import tasks
from bilevel.tasks import deq

LBFGS = bl.inner.LBFGS(rtol=1e-13, atol=0.0, max_steps=20_000)
ANDERSON = bl.inner.Anderson(rtol=1e-13, atol=0.0)


def elsewhere(setup, scale=0.1, seed=1):
    """Hyperparameters at which nothing is special."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape), setup.hparams)


def estimate(estimator, setup, inner, hparams):
    run = jax.jit(
        lambda params, hparams, data: estimator.estimate(
            setup.problem, inner, params, jax.tree.map(jnp.zeros_like, params), hparams, data
        )
    )
    return run(setup.params, hparams, setup.data)


def train(setup, inner, steps=100):
    return bl.minimize(
        setup.problem,
        setup.hparams,
        setup.params,
        setup.data,
        inner=inner,
        optimizer=optax.rmsprop(0.01),
        steps=steps,
        on_failure="raise",
    )


def assert_close(found, expected, share):
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=share * scale)


@pytest.fixture
def equilibrium(x64):
    return tasks.DEQ(data="iris", width=5).setup(0, "float64")


def test_deq_comes_to_rest_where_its_cell_does(equilibrium):
    hparams = elsewhere(equilibrium)
    found = ANDERSON.solve(equilibrium.problem, equilibrium.params, hparams, equilibrium.data).params
    cell, features = jax.tree.map(np.asarray, hparams["cell"]), np.asarray(equilibrium.data["train"][0])
    recurrent = cell["recurrent"] * min(1, 0.9 / np.linalg.norm(cell["recurrent"], 2))
    hidden = np.zeros(found.shape)
    for _ in range(500):
        hidden = np.tanh(hidden @ recurrent + features @ cell["input"]["kernel"] + cell["input"]["bias"])
    np.testing.assert_allclose(found, hidden, atol=1e-10)


def test_deq_gradient_is_that_of_unrolling(equilibrium):
    hparams = elsewhere(equilibrium)
    implicit = estimate(bl.hypergrad.Implicit(linear=bl.linear.Auto(rtol=1e-12)), equilibrium, ANDERSON, hparams)
    plain = bl.inner.FixedPointIteration(rtol=0.0, atol=1e-300)
    unrolled = estimate(bl.hypergrad.Unrolled(steps=400), equilibrium, plain, hparams)
    assert_close(implicit.grad, unrolled.grad, 1e-9)
    assert float(jnp.max(jnp.abs(implicit.grad["cell"]["recurrent"]))) > 1e-3


def test_deq_gradient_is_that_of_unrolling_at_full_size(x64):
    """On digits, after some training, to 1e-5."""
    setup = tasks.DEQ().setup(0, "float64")
    hparams = train(setup, bl.inner.Anderson(), steps=5).hparams
    implicit = estimate(bl.hypergrad.Implicit(), setup, bl.inner.Anderson(rtol=1e-8), hparams)
    unrolled = estimate(bl.hypergrad.Unrolled(steps=100), setup, bl.inner.FixedPointIteration(), hparams)
    assert_close(implicit.grad, unrolled.grad, 1e-5)


def test_deq_hypergradient_matches_differences(equilibrium):
    report = bl.check_hypergradient(
        equilibrium.problem, elsewhere(equilibrium), equilibrium.params, equilibrium.data, inner=ANDERSON, rtol=1e-6
    )
    assert report.ok, str(report)


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
    from sklearn.linear_model import LogisticRegression

    found = LBFGS.solve(representation.problem, representation.params, representation.hparams, representation.data)
    network, (features, targets) = jax.tree.map(np.asarray, (representation.hparams, representation.data["train"]))
    hidden = np.tanh(features @ network["layers_0"]["kernel"] + network["layers_0"]["bias"])
    outputs = np.tanh(hidden @ network["layers_2"]["kernel"] + network["layers_2"]["bias"])
    model = LogisticRegression(C=1 / (0.1 * len(targets)), fit_intercept=False, tol=1e-12, max_iter=10_000)
    np.testing.assert_allclose(found.params.T, model.fit(outputs, targets).coef_, atol=1e-6)


def test_representation_hypergradient_matches_differences(representation):
    report = bl.check_hypergradient(
        representation.problem,
        elsewhere(representation),
        representation.params,
        representation.data,
        inner=LBFGS,
        rtol=1e-6,
    )
    assert report.ok, str(report)


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


@pytest.mark.parametrize(
    ("task", "settings", "words"),
    [
        (tasks.DEQ, {"width": 0}, "task.width must be at least 1, got 0"),
        (tasks.DEQ, {"contraction": 1.0}, "task.contraction must be above 0 and below 1, got 1.0"),
        (tasks.DEQ, {"decay": -1.0}, "task.decay must not be negative, got -1.0"),
        (tasks.HyperRepresentation, {"widths": []}, "task.widths must be numbers of at least 1"),
        (tasks.HyperRepresentation, {"widths": [4, 0]}, "task.widths must be numbers of at least 1"),
        (tasks.HyperRepresentation, {"l2": 0.0}, "task.l2 must be positive, got 0.0"),
    ],
)
def test_wrong_settings_are_refused(task, settings, words):
    with pytest.raises(ValueError, match=words):
        task(**settings)
