"""Units decide nothing: large and small losses, variables and data have the same answers, or a status that says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import precision

import bilevel as bl
from bilevel import Status, inner
from bilevel.operators.projection import projection_box_section, projection_simplex


@pytest.mark.parametrize("shift", [1e7, -1e7, 1e10])
def test_projections_of_large_entries_stay_in_their_set(shift):
    x = jnp.asarray(np.float32(shift) + np.float32([0.0, 0.0, 0.0, -(abs(shift))]))
    expected = [1 / 3, 1 / 3, 1 / 3, 0.0]
    np.testing.assert_allclose(projection_simplex(x), expected, rtol=1e-6)
    np.testing.assert_allclose(projection_box_section(x, (0.0, 1.0, 1.0, 1.0)), expected, rtol=1e-6)


def raw_table(rows=500):
    """House prices in dollars beside populations."""
    rng = np.random.default_rng(0)
    rooms, age, people = rng.uniform(2, 9, rows), rng.uniform(1, 80, rows), rng.uniform(500, 40_000, rows)
    dollars = 40_000 * rooms - 500 * age + 2 * people + rng.normal(size=rows) * 10_000
    return np.stack([rooms, age, people, np.ones(rows)], 1), dollars


def squares(x, h, data):
    return jnp.sum((data[0] @ x - data[1]) ** 2) / 2 + jnp.exp(h) * x @ x / 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factor", [1.0, 1e3, 1e6])
def test_a_raw_table_is_solved_or_it_is_told(dtype, factor):
    features, targets = raw_table()
    with precision(dtype):
        data = jnp.asarray(factor * features, dtype), jnp.asarray(factor * targets, dtype)
        problem = bl.Problem(squares, lambda x, h, data: jnp.mean((data[0] @ x - data[1]) ** 2))
        estimator = bl.hypergrad.Implicit(verdict="full")
        found = estimator.run(problem, inner.LBFGS(), jnp.zeros(4, dtype), jnp.asarray(0.0, dtype), data)
    params, status = np.asarray(found.params, float), Status(int(found.solves["inner"].status))
    exact = np.linalg.lstsq(features, targets, rcond=None)[0]
    fit, best = (np.linalg.norm(features @ x - targets) for x in (params, exact))
    assert np.any(params != 0)
    assert fit < 1.1 * best or (status, found.verdict.word) != (Status.CONVERGED, "trusted")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", [1e-20, 1e-12, 1e12, 1e20])
def test_the_scale_of_the_loss_does_not_matter(dtype, loss):
    rng = np.random.default_rng(1)
    with precision(dtype):
        data = jnp.asarray(rng.normal(size=(30, 6)), dtype), jnp.asarray(rng.normal(size=30), dtype)
        problem = bl.Problem(lambda x, h, data: jnp.asarray(loss, dtype) * squares(x, h, data))
        found = inner.LBFGS().solve(problem, jnp.zeros(6, dtype), jnp.asarray(0.0, dtype), data)
        exact = np.linalg.solve(data[0].T @ data[0] + np.eye(6), data[0].T @ data[1])
    if Status(int(found.status)) is Status.CONVERGED:
        np.testing.assert_allclose(found.params, exact, rtol=1e-3 if dtype == "float32" else 1e-6)
    assert Status(int(found.status)) in (Status.CONVERGED, Status.STAGNATED)


def zakharov(x, h, data):
    bowl = jnp.sum(jnp.arange(1, x.size + 1) * x) / 2
    return jnp.sum(x**2) + bowl**2 + bowl**4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_far_start_of_zakharov_is_solved_or_it_is_told(dtype):
    """Curvature falls by many powers of ten on the way: what was seen earlier must not decide at the end."""
    with precision(dtype):
        start = jnp.asarray([600, 700, 200, 100, 90, 1e4], dtype)
        found = inner.LBFGS().solve(bl.Problem(zakharov), start, None)
        if Status(int(found.status)) is Status.CONVERGED:
            hessian = jax.hessian(zakharov)(found.params, None, None)
            step = jnp.linalg.solve(hessian, jax.grad(zakharov)(found.params, None, None))
            assert jnp.linalg.norm(step) <= 1e-4 * max(jnp.linalg.norm(found.params), 1e-10 * jnp.linalg.norm(start))
