"""Hypergradients: closed form, differences of the whole solve, and unrolling agree; the error estimate is right."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

import bilevel as bl
from bilevel.hypergrad import Implicit, Unrolled

pytestmark = pytest.mark.slice(3)

PRECISE = bl.inner.FISTA(rtol=1e-13, atol=0.0, max_steps=100_000)


@functools.cache
def compiled(problem, estimator, inner):
    return jax.jit(
        lambda params, carry, hparams, data: estimator.run(problem, inner, params, hparams, data, carry=carry)
    )


def estimate(problem, hparams, estimator=None, inner=PRECISE, dtype="float64", carry=None):
    run = compiled(problem, estimator or Implicit(), inner)
    return run(problems.start(dtype), carry, hparams, problems.data(dtype))


def outer_value(problem):
    """hparams -> outer loss at the inner solution, compiled once."""

    @jax.jit
    def value(hparams):
        data = problems.data()
        return problem.outer_loss(PRECISE.solve(problem, problems.start(), hparams, data).params, hparams, data)

    return value


@pytest.mark.parametrize(
    "linear",
    [bl.linear.Auto(), bl.linear.Direct(), bl.linear.CG(rtol=1e-13), bl.linear.GMRES(rtol=1e-13)],
    ids=lambda s: type(s).__name__,
)
def test_ridge_matches_the_closed_form(x64, linear):
    theta = problems.hparams("ridge")
    found = estimate(problems.ridge, theta, Implicit(linear=linear), inner=bl.inner.Quadratic())

    def closed(theta):
        return problems.validation_loss(problems.ridge_solution(theta), theta, problems.data())

    np.testing.assert_allclose(found.grad, jax.grad(closed)(theta), rtol=1e-9)
    assert int(found.status) == bl.Status.CONVERGED


def test_ridge_in_single_precision():
    theta = problems.hparams("ridge", "float32")
    found = estimate(problems.ridge, theta, inner=bl.inner.Quadratic(), dtype="float32")
    with jax.enable_x64(True):
        exact = np.asarray(estimate(problems.ridge, problems.hparams("ridge"), inner=bl.inner.Quadratic()).grad)
    assert found.grad.dtype == jnp.float32
    assert np.linalg.norm(np.asarray(found.grad) - exact) <= 1e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", problems.ALL)
def test_implicit_matches_differences_and_unrolling(x64, name):
    problem, theta = problems.ALL[name], problems.hparams(name)
    implicit = estimate(problem, theta)
    assert int(implicit.status) == bl.Status.CONVERGED
    unrolled = estimate(problem, theta, Unrolled(steps=3000))
    scale = np.linalg.norm(implicit.grad)
    assert np.linalg.norm(implicit.grad - unrolled.grad) <= 1e-8 * scale
    assert np.linalg.norm(implicit.grad - problems.differences(outer_value(problem), theta)) <= 1e-6 * scale


@pytest.mark.parametrize("name", ["lasso", "non_negative", "simplex"])
def test_the_active_system_gives_the_gradient_of_the_full_one(x64, name):
    problem, theta = problems.ALL[name], problems.hparams(name)
    full = dataclasses.replace(problem, polyhedral=False, separable=False)
    active, general = estimate(problem, theta), estimate(full, theta)
    assert (
        0 < np.sum(np.asarray(active.params) == 0) < active.params.size - 1
    )  # the active system is neither empty nor full
    np.testing.assert_allclose(active.grad, general.grad, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(active.carry, general.carry, rtol=1e-8, atol=1e-10)
    cg = estimate(problem, theta, Implicit(linear=bl.linear.CG(rtol=1e-13)))
    np.testing.assert_allclose(cg.grad, general.grad, rtol=1e-9, atol=1e-12)


def test_hparams_in_the_outer_loss_and_in_the_projection(x64):
    """∂₂outer counts, and so does a constraint set that moves with θ: here x* = clip(target, θ)."""
    problem = bl.Problem(
        inner_loss=lambda x, h, d: jnp.sum((x - d) ** 2),
        outer_loss=lambda x, h, d: jnp.sum(x**3) + h["low"] ** 2,
        projection=lambda x, h, d: jnp.clip(x, h["low"], h["high"]),
        polyhedral=True,
    )
    target = jnp.array([-3.0, 0.2, 0.5, 4.0])
    hparams = {"low": jnp.array(-1.0), "high": jnp.array(2.0), "unused": jnp.array(3)}
    inner = bl.inner.FISTA(rtol=1e-14)
    found = compiled(problem, Implicit(), inner)(jnp.zeros(4), None, hparams, target)
    np.testing.assert_allclose(found.grad["low"], 3 * (-1.0) ** 2 + 2 * -1.0, rtol=1e-10)
    np.testing.assert_allclose(found.grad["high"], 3 * 2.0**2, rtol=1e-10)
    assert found.grad["unused"] is None


def test_the_error_estimate_is_right_to_first_order(x64):
    for name in ("ridge", "lasso", "simplex"):
        problem, theta = problems.ALL[name], problems.hparams(name)
        rough = estimate(problem, theta, inner=bl.inner.FISTA(rtol=1e-5))
        truth = float(rough.outer_loss) - float(estimate(problem, theta).outer_loss)
        assert abs(truth) > 1e-9, name
        np.testing.assert_allclose(float(rough.outer_error), truth, rtol=0.05)


def test_an_adjoint_that_fails_is_told(x64):
    found = estimate(problems.ridge, problems.hparams("ridge"), Implicit(linear=bl.linear.CG(max_steps=1, rtol=1e-12)))
    assert int(found.solves["adjoint"].status) == bl.Status.MAX_STEPS
    assert int(found.status) == bl.Status.MAX_STEPS
    assert float(found.solves["adjoint"].residual) > 1e-3


def test_a_saddle_point_is_told(x64):
    problem = bl.Problem(
        inner_loss=lambda x, h, d: h * x[0] ** 2 - x[1] ** 2, outer_loss=lambda x, h, d: jnp.sum(x + d)
    )
    stay = bl.inner.FISTA(step_size=1e-3, max_steps=1, rtol=1.0)
    run = compiled(problem, Implicit(linear=bl.linear.CG()), stay)
    found = run(jnp.zeros(2), None, jnp.array(1.0), jnp.ones(2))
    assert int(found.solves["adjoint"].status) == bl.Status.NEGATIVE_CURVATURE


def test_a_warm_adjoint_takes_fewer_steps(x64):
    theta, cg = problems.hparams("ridge"), Implicit(linear=bl.linear.CG(rtol=1e-10))
    cold = estimate(problems.ridge, theta, cg, inner=bl.inner.Quadratic())
    warm = estimate(problems.ridge, theta + 1e-7, cg, inner=bl.inner.Quadratic(), carry=cold.carry)
    assert int(warm.counts["hvps"]) < int(cold.counts["hvps"])
    np.testing.assert_allclose(warm.grad, cold.grad, rtol=1e-5)


def test_unrolled_is_the_derivative_of_the_steps(x64):
    """Ten plain gradient steps from a fixed start, against differences of those very steps."""
    inner = bl.inner.FISTA(step_size=0.01, acceleration=False)
    theta = problems.hparams("ridge")

    def loss(theta):
        x = problems.start()
        for _ in range(10):
            x = x - 0.01 * jax.grad(problems.ridge_loss)(x, theta, problems.data())
        return problems.validation_loss(x, theta, problems.data())

    found = estimate(problems.ridge, theta, Unrolled(steps=10), inner=inner)
    np.testing.assert_allclose(found.grad, jax.grad(loss)(theta), rtol=1e-10)
    assert int(found.solves["inner"].status) == bl.Status.MAX_STEPS
    assert not found.solves["inner"].failed
    assert np.isnan(found.outer_error)


KINDS = ("plain", "conditional", "checkpointed", "forward")


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("name", ["ridge", "simplex"])
def test_kinds_of_unrolling_agree(x64, kind, name):
    """Before the stopping test is met; 22 is no square, so that the blocks leave a rest."""
    problem, theta = problems.ALL[name], problems.hparams(name)
    plain = estimate(problem, theta, Unrolled(steps=22))
    found = estimate(problem, theta, Unrolled(steps=22, kind=kind))
    assert np.linalg.norm(plain.grad) > 0
    np.testing.assert_allclose(found.grad, plain.grad, rtol=1e-10)
    np.testing.assert_allclose(found.params, plain.params, rtol=1e-12)
    assert int(found.counts["grad_evals"]) == 22
    assert int(found.counts["hvps"]) >= int(plain.counts["hvps"])


def test_conditional_unrolling_stops_where_a_solve_stops(x64):
    inner, theta = bl.inner.FISTA(rtol=1e-3), problems.hparams("ridge")
    found = estimate(problems.ridge, theta, Unrolled(steps=500, kind="conditional"), inner=inner)
    assert int(found.solves["inner"].status) == bl.Status.CONVERGED
    stopped = int(found.counts["grad_evals"])
    assert stopped < 500
    plain = estimate(problems.ridge, theta, Unrolled(steps=stopped), inner=inner)
    np.testing.assert_allclose(found.grad, plain.grad, rtol=1e-10)


def test_memory_of_the_kinds_of_unrolling(x64):
    """From 100 to 1600 steps, 16-fold: the plain kind's plan grows so, the checkpointed one's 4-fold, the forward one's not."""
    theta, params, data = problems.hparams("ridge"), problems.start(), problems.data()
    inner = bl.inner.FISTA(step_size=0.01, acceleration=False)

    def planned(kind, steps):
        estimator = Unrolled(steps=steps, kind=kind)
        run = jax.jit(lambda h: estimator.run(problems.ridge, inner, params, h, data).grad)
        return run.lower(theta).compile().memory_analysis().temp_size_in_bytes

    growth = {kind: planned(kind, 1600) / planned(kind, 100) for kind in KINDS}
    assert growth["plain"] > 8
    assert growth["conditional"] > 8
    assert growth["checkpointed"] < 5
    assert growth["forward"] < 1.5


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"hypergrad\.Unrolled: steps must be positive, got 0"):
        Unrolled(steps=0)
    with pytest.raises(ValueError, match=r"hypergrad\.Unrolled: kind must be 'plain', .* got 'cond'"):
        Unrolled(kind="cond")


@pytest.mark.parametrize("solver", [bl.inner.OSQP(), bl.inner.SciPyMinimize()], ids=lambda s: type(s).__name__)
def test_steps_that_are_a_black_box_are_not_unrolled(solver):
    with pytest.raises(
        ValueError, match=rf"those of inner\.{type(solver).__name__} are a black box: use hypergrad\.Implicit"
    ):
        bl.hypergrad.Unrolled().check(problems.ridge, solver)
