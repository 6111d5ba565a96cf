"""Solvers and conditions are independent: legal combinations build and agree on the hypergradient; others are refused."""

import dataclasses
import functools
import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import precision
from test_config import part

import bilevel as bl
from bilevel import config, inner, optimality, tasks
from bilevel._curvature import choose_step
from bilevel.hypergrad import misfits
from bilevel.outer import Nested

pytestmark = pytest.mark.usefixtures("x64")

TASKS = {
    "ridge": tasks.Ridge(),
    "svm": tasks.SVM(data="iris", theta=20.0),
    "lasso": tasks.Lasso(),
    "logistic": tasks.Logistic(data="iris", penalty=0.05),
}
INNER, OPTIMALITY = config.groups()["inner"], config.groups()["optimality"]
SAMPLE = 10
DUAL = ("block_coordinate_descent", "fista", "mirror_descent", "semismooth_newton", "sklearn_linear_svc")


@functools.cache
def setup(task):
    with precision("float64"):
        return TASKS[task].setup(0, "float64")


def problem_of(task, condition):
    return dataclasses.replace(setup(task).problem, optimality=part("optimality", condition))


def triples():
    return [(task, solver, condition) for task in TASKS for solver in INNER for condition in OPTIMALITY]


@functools.cache
def legal():
    fit = [(t, s, c) for t, s, c in triples() if not misfits(problem_of(t, c), part("inner", s))]
    return [(t, s, c) for t, s, c in fit if s != "python" or t == "ridge"]  # the function of its YAML solves ridge


def nested(task, solver, condition):
    return Nested(problem_of(task, condition), part("inner", solver), bl.hypergrad.Implicit(), optax.sgd(0.1))


def test_every_pair_that_is_not_legal_is_refused_with_the_reasons():
    reasons = {each: misfits(problem_of(each[0], each[2]), part("inner", each[1])) for each in triples()}
    for each in [each for each in triples() if reasons[each]]:
        given = setup(each[0])
        with pytest.raises(ValueError, match=r"needs|takes") as error:
            nested(*each).init(given.hparams, given.params, given.data)
        assert all(reason in str(error.value) for reason in reasons[each])
    assert 0 < sum(map(bool, reasons.values())) < len(reasons)


def test_every_solver_serves_a_task():
    assert {solver for _, solver, _ in legal()} == set(INNER)


def test_each_task_has_its_legal_conditions():
    found = {task: {c for t, _, c in legal() if t == task} for task in TASKS}
    assert found == {
        "ridge": {"auto", "least_squares", "newton", "stationary"},
        "svm": {"auto", "block_proximal_gradient", "mirror_descent", "projected_gradient"},
        "lasso": {"auto", "block_proximal_gradient", "proximal_gradient"},
        "logistic": {"auto", "newton", "stationary"},
    }


@functools.cache
def reference(task):
    """The hypergradient at the start, from a precise solve."""
    given = setup(task)
    precise = inner.LBFGS(rtol=1e-12) if given.problem.parts.smooth else inner.SemismoothNewton(rtol=1e-12)
    return hypergradient(given, given.problem, precise)


def hypergradient(given, problem, solver):
    estimator = bl.hypergrad.Implicit(linear=bl.linear.Auto(rtol=1e-11))
    run = jax.jit(lambda p, h, d: estimator.run(problem, solver, p, h, d))
    return run(given.params, given.hparams, given.data)


def cells():
    """All, of which a seeded sample runs by default: every solver at most once, as many as there is time for."""
    order = list(legal())
    random.Random(7).shuffle(order)
    chosen = {solver: (task, solver, condition) for task, solver, condition in order}
    sample = sorted(chosen.values())[:: max(len(chosen) // SAMPLE, 1)]
    return [pytest.param(each, marks=() if each in sample else pytest.mark.slow) for each in sorted(order)]


@pytest.mark.parametrize("triple", cells(), ids="-".join)
def test_legal_combinations_agree(triple):
    task, solver, condition = triple
    tight = part("inner", solver)
    if isinstance(tight, inner.Optax):  # no learning rate suits every problem: here a share of 1/L
        given = setup(task)
        step = float(choose_step(None, bl.At(given.problem, given.hparams, given.data), given.params))
        rate = (0.05 if tight.batch_size else 1.0) * step
        tight = dataclasses.replace(tight, optimizer=optax.sgd(rate), prox_step=rate, max_steps=50_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = hypergradient(setup(task), problem_of(task, condition), tight)
    assert bl.Status(int(found.status)) is bl.Status.CONVERGED
    expected = reference(task)
    scale = float(jnp.linalg.norm(expected.grad))
    np.testing.assert_allclose(found.grad, expected.grad, atol=2e-3 * scale)
    np.testing.assert_allclose(found.outer_loss, expected.outer_loss, rtol=1e-3)


def test_any_solution_of_the_svm_is_differentiated_by_any_of_its_conditions():
    """The paper's decoupling: five solvers by two maps, ten hypergradients, and differences of a sixth solver's loss."""
    given, found = setup("svm"), {}
    outer_gradient = jax.jit(jax.grad(given.problem.outer_loss, argnums=(0, 1)))
    maps = [optimality.MirrorStep(), optimality.ProjectedGradient()]
    bound = [optimality.bind(dataclasses.replace(given.problem, optimality=condition)) for condition in maps]
    pulls = [
        jax.jit(lambda x, h, w, f=f: bl.root_vjp(f, x, (h, given.data), w, solve=bl.linear.CG(rtol=1e-11))[0])
        for f in bound
    ]
    for name in DUAL:
        solver = dataclasses.replace(part("inner", name), rtol=1e-9, max_steps=200_000)
        solution = jax.jit(lambda p, h, d, s=solver: s.solve(given.problem, p, h, d))(
            given.params, given.hparams, given.data
        )
        assert bl.Status(int(solution.status)) is bl.Status.CONVERGED, name
        cotangent, direct = outer_gradient(solution.params, given.hparams, given.data)
        for condition, pull in zip(maps, pulls, strict=True):
            found[name, type(condition).__name__] = float(direct + pull(solution.params, given.hparams, cotangent))
    assert len(found) == 10
    values = np.array(list(found.values()))
    assert abs(values[0]) > 1e-3
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    precise = inner.SemismoothNewton(rtol=1e-13)

    @jax.jit
    def loss(hparams):
        x = precise.solve(given.problem, given.params, hparams, given.data).params
        return given.problem.outer_loss(x, hparams, given.data)

    h = 1e-4
    difference = (float(loss(given.hparams + h)) - float(loss(given.hparams - h))) / (2 * h)
    np.testing.assert_allclose(values, difference, rtol=1e-5)
