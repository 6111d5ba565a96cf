"""The verdict on a hypergradient: faults are told of, sound ones are trusted, and its estimate is near the truth."""

import importlib.util
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import bilevel as bl
from bilevel import hypergrad, inner, linear
from bilevel.hypergrad import Level, Reason

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "planted.py"


@pytest.fixture(scope="module")
def planted():
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("planted", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


HPARAMS = jnp.full(8, -0.5)


def judged(problem, solver=None, start=None, **settings):
    estimator = hypergrad.Implicit(**settings)
    solver = solver or inner.default(problem)
    start = jnp.zeros(8) if start is None else start
    run = jax.jit(lambda p, h, d: estimator.run(problem, solver, p, h, d))
    return run(start, HPARAMS, problems.data())


@pytest.mark.parametrize("verdict", ["cheap", "full"])
@pytest.mark.parametrize(
    "problem", [problems.ridge, problems.logistic, problems.lasso], ids=["ridge", "logistic", "lasso"]
)
def test_a_sound_hypergradient_is_trusted(x64, problem, verdict):
    found = judged(problem, verdict=verdict).verdict
    assert (found.word, found.sentence) == ("trusted", "nothing was found wrong")
    assert found.error_estimate < 1e-3
    assert bool(jnp.isnan(found.adjoint_error)) == (verdict == "cheap")


def test_off_makes_none_and_other_words_are_refused(x64):
    assert judged(problems.ridge, verdict="off").verdict is None
    with pytest.raises(ValueError, match=r"Implicit: verdict must be one of cheap, full, off, got 'on'"):
        hypergrad.Implicit(verdict="on")


FAULTS = {
    "a loose inner solve": ({"solver": inner.LBFGS(max_steps=1)}, {Reason.INNER, Reason.FAR}),
    "a loose adjoint": ({"linear": linear.CG(rtol=0.5)}, {Reason.ADJOINT}),
    "a damped adjoint": ({"linear": linear.Damped(ridge=30.0)}, {Reason.ADJOINT}),
    "NaN": ({"start": jnp.full(8, jnp.nan)}, {Reason.NOT_FINITE}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_reason(x64, fault):
    settings, reasons = FAULTS[fault]
    assert judged(problems.ridge, **settings).verdict.word != "trusted"
    found = judged(problems.ridge, verdict="full", **settings).verdict
    assert Level(int(found.level)) is not Level.TRUSTED
    assert Reason(int(found.reason)) in reasons


def test_the_parts_of_the_error_are_told_apart(x64):
    exact = judged(problems.ridge, inner.LBFGS(rtol=1e-13), linear=linear.Direct()).grad
    for settings in ({"solver": inner.LBFGS(max_steps=4)}, {"linear": linear.CG(rtol=0.1)}):
        found = judged(problems.ridge, verdict="full", **settings)
        error = jnp.linalg.norm(found.grad - exact) / jnp.linalg.norm(exact)
        np.testing.assert_allclose(found.verdict.error_estimate, error, rtol=0.1)
        of_inner = "solver" in settings
        assert (found.verdict.inner_error > 10 * found.verdict.adjoint_error) == of_inner


@pytest.mark.parametrize(("gap", "reason"), [(1e-6, Reason.KINK), (0.1, Reason.NONE)])
def test_a_kink_within_the_error_is_told(x64, planted, gap, reason):
    """A coordinate of the solution is zero, a gap below its threshold; the others are off by 1e-4."""
    target = jnp.array([2.0, 0.5 - gap, -1.0])
    problem = bl.Problem(
        lambda x, h, d: jnp.sum((x - target) ** 2) / 2,
        lambda x, h, d: jnp.sum((x - 3) ** 2),
        prox=lambda x, h, d, step: bl.operators.prox.prox_lasso(x, h, step),
        separable=True,
    )
    answer = jnp.array([1.5, 0.0, -0.5]) * (1 + 1e-4)
    for verdict, expected in (("cheap", Reason.UNEXAMINED if reason else reason), ("full", reason)):
        estimator = hypergrad.Implicit(verdict=verdict)
        found = jax.jit(lambda p, h, e=estimator: e.run(problem, planted.Returned(), p, h))(answer, jnp.array(0.5))
        assert Reason(int(found.verdict.reason)) is expected


def test_estimates_are_near_the_truth(x64, planted):
    """On ridge and logistic regressions whose answers are off by up to a tenth."""
    ratios = []
    for family in planted.FAMILIES[1:3]:
        rngs = [np.random.default_rng(i) for i in range(8)]
        drawn = [family.draw(rng) for rng in rngs]
        h, d, s = (
            jax.tree.map(lambda *x: jnp.stack([jnp.asarray(a) for a in x]), *trees)
            for trees in zip(*drawn, strict=True)
        )
        exact, usable = planted.polished(family)(s, h, d)
        assert np.all(usable)
        off = exact * (
            1 + 10 ** jnp.linspace(-6, -1, 8)[:, None] * jnp.asarray(np.random.default_rng(0).normal(size=exact.shape))
        )
        full = planted.run(family.problem, planted.Returned(), hypergrad.Implicit(verdict="full"))
        found, right = full(off, h, d), full(exact, h, d)
        truth = [
            np.linalg.norm(np.ravel(a - b)) / np.linalg.norm(np.ravel(b))
            for a, b in zip(found.grad, right.grad, strict=True)
        ]
        ratios += list(np.asarray(found.verdict.error_estimate) / truth)
    assert 0.5 < np.median(ratios) < 2
    assert np.mean((np.array(ratios) > 0.5) & (np.array(ratios) < 2)) > 0.9


@pytest.mark.parametrize("kind", ["answer", pytest.param("", marks=pytest.mark.slow)], ids=["answers", "all"])
@pytest.mark.parametrize("name", ["ridge", pytest.param("lasso", marks=pytest.mark.slow)])
def test_no_planted_fault_is_silent(x64, planted, name, kind):
    family = next(family for family in planted.FAMILIES if family.name == name)
    seen = 0
    for fault, count in planted.outcomes(family, 4):
        if not fault.startswith((kind, "control")):
            break
        seen += count.wrong
        assert count.silent == 0, fault
        assert count.alarms == 0 or not fault.startswith("control"), fault
    assert seen > 20


def test_rows_and_results_have_verdicts(x64, caplog):
    result = bl.minimize(
        problems.ridge,
        HPARAMS,
        jnp.zeros(8),
        problems.data(),
        hypergrad=hypergrad.Implicit(linear=linear.Damped(ridge=30.0)),
        steps=3,
    )
    assert sum(result.verdicts.values()) == 3
    assert "trusted" not in result.verdicts
    for row in result.history:
        assert row["verdict"] in ("doubtful", "failed")
        assert row["reason"] == Reason.ADJOINT.sentence
        assert row["error_estimate"] > 0.05


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_an_update_that_is_not_finite_ends_the_run(x64, rate):
    result = bl.minimize(problems.ridge, HPARAMS, jnp.zeros(8), problems.data(), optimizer=optax.sgd(rate), steps=3)
    assert (result.status, result.steps) == ("non_finite", 1)
    np.testing.assert_array_equal(result.hparams, HPARAMS)


# custom_root


def ridge_root(condition_penalty=1.0, answer=1.0, **settings):
    """A solver of ridge regression, with a condition of another penalty, or a scaled answer."""
    features, targets = (jnp.asarray(a) for a in problems.data()["train"])

    def loss(x, theta):
        return jnp.sum((features @ x - targets) ** 2) / 2 + condition_penalty * theta * x @ x / 2

    @bl.custom_root(jax.grad(loss), **settings)
    def solver(init, theta):
        return answer * jnp.linalg.solve(features.T @ features + theta * jnp.eye(8), features.T @ targets)

    return lambda theta: jnp.sum(solver(jnp.zeros(8), theta))


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd])
def test_a_root_that_is_none_has_no_derivative(x64, derivative):
    def derivative_of(function):
        return jax.jit(derivative(function))

    exact = derivative_of(ridge_root())(20.0)
    assert np.isfinite(exact)
    np.testing.assert_allclose(derivative_of(ridge_root(answer=1.02))(20.0), exact, rtol=0.1)
    for wrong in (ridge_root(condition_penalty=3.0), ridge_root(condition_penalty=0.0), ridge_root(answer=0.0)):
        assert np.isnan(derivative_of(wrong)(20.0))
    assert np.isfinite(derivative_of(ridge_root(condition_penalty=3.0, max_newton_step=None))(20.0))
    assert np.isnan(derivative_of(ridge_root(answer=1.02, max_newton_step=1e-3))(20.0))


def test_lanes_are_judged_alone(x64):
    answers = jnp.array([1.0, 0.0, 1.0])
    found = jax.vmap(lambda answer: jax.grad(ridge_root(answer=answer))(20.0))(answers)
    assert np.isnan(found).tolist() == [False, True, False]


def test_a_solution_at_the_origin_has_its_derivative(x64):
    @bl.custom_root(lambda x, theta: x - theta)
    def solver(init, theta):
        return theta + 1e-17 * init

    np.testing.assert_allclose(jax.grad(lambda theta: solver(1.0, theta))(0.0), 1.0)
