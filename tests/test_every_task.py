"""Every task with every part that is legal for it: it composes, takes a step, and is never silently wrong."""

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
from omegaconf import DictConfig
from test_config import compose, part

import bilevel as bl
from bilevel import config
from bilevel.hypergrad import misfits
from bilevel.outer import Nested

SMALL = {
    "data_cleaning": ["data=iris"],
    "deq": ["data=iris", "width=5"],
    "dictionary": ["atoms=3"],
    "distillation": [],
    "elastic_net": [],
    "group_lasso": [],
    "hyper_representation": ["data=iris", "widths=[6,4]", "l2=0.1"],
    "lasso": [],
    "logistic": ["data=iris", "penalty=0.05"],
    "meta": ["episodes=3", "test_episodes=3", "shots=4", "queries=6", "widths=[5]", "penalty=2.0"],
    "molecular_dynamics": ["particles=24"],
    "qp_layer": ["rows=20", "validation_rows=20", "test_rows=20", "assets=4"],
    "ridge": [],
    "svm": ["data=iris", "theta=20.0"],
}
GROUPS = config.groups()
KEYS = ("task", "inner", "optimality", "hypergrad", "linear")
# Every task, and every part that any task can have; most on tasks that compile fast.
COVER = """
    data_cleaning newton newton implicit neumann
    deq scipy_root auto implicit lsmr
    dictionary anderson block_proximal_gradient implicit direct
    distillation lbfgs newton implicit minres
    elastic_net block_coordinate_descent auto implicit bicgstab
    group_lasso python auto implicit normal_cg
    hyper_representation optax stationary implicit refined
    lasso fixed_point proximal_gradient implicit direct
    lasso sklearn_elastic_net block_proximal_gradient implicit lsmr
    lasso sklearn_lasso block_proximal_gradient implicit refined
    logistic anderson newton implicit lsmr
    logistic sgd newton implicit damped
    logistic sklearn_logistic_regression auto implicit refined
    meta fire stationary implicit nystrom
    molecular_dynamics semismooth_newton auto implicit gmres
    qp_layer gradient_descent block_proximal_gradient implicit minres
    ridge equality_qp stationary implicit minres
    ridge levenberg_marquardt stationary implicit lsmr
    ridge optimistix newton implicit direct
    ridge projected_gradient least_squares unrolled auto
    ridge quadratic newton implicit bicgstab
    ridge ridge least_squares implicit minres
    ridge scipy_minimize least_squares implicit auto
    ridge sklearn_ridge least_squares implicit normal_cg
    ridge trust_region auto implicit lsmr
    svm cvxpy projected_gradient implicit refined
    svm fista projected_gradient implicit cg
    svm mirror_descent block_proximal_gradient implicit damped
    svm osqp auto implicit normal_cg
    svm scipy_root mirror_descent implicit damped
    svm sklearn_linear_svc block_proximal_gradient implicit damped
"""
COVERING = [tuple(line.split()) for line in COVER.strip().splitlines()]
NO_TASK_HAS = {"conic", "kkt", "quadratic_program"}
SAMPLE = 30  # further combinations, drawn from the legal ones
BIASED = ("damped",)  # solves another system than the one given, on purpose


def composed_task(name: str) -> DictConfig:
    return compose(f"task={name}", *(f"task.{setting}" for setting in SMALL[name]))


def task(name):
    return config.build(composed_task(name).task)


@functools.cache
def setup(name):
    with precision("float64"):
        return task(name).setup(0, "float64")


@functools.cache
def problem_of(name, condition):
    return dataclasses.replace(
        setup(name).problem, optimality=part("optimality", condition) or setup(name).problem.optimality
    )


def estimators():
    """(estimator, linear solver) by choice: the linear solver is the implicit one's."""
    return [("implicit", linear) for linear in GROUPS["linear"]] + [
        (choice, "auto") for choice in GROUPS["hypergrad"] if choice != "implicit"
    ]


def estimator(choice, linear):
    made = part("hypergrad", choice)
    return dataclasses.replace(made, linear=part("linear", linear)) if choice == "implicit" else made


@functools.cache
def legal():
    """(task, inner, optimality, hypergrad, linear) that go together."""
    return [
        (name, inner, condition, *ways)
        for name in SMALL
        for inner in GROUPS["inner"]
        for condition in GROUPS["optimality"]
        if not misfits(problem_of(name, condition), part("inner", inner))
        for ways in estimators()
        if not misfits(problem_of(name, condition), part("inner", inner), estimator(*ways))
    ]


def own_inner(name):
    """The solver of the task's YAML, precise."""
    made = type(config.build(composed_task(name).inner))
    choice = next(choice for choice in GROUPS["inner"] if type(part("inner", choice)) is made)
    return dataclasses.replace(part("inner", choice), rtol=1e-10, max_steps=200_000)


@functools.cache
def precise(name):
    """The hypergradient by the task's own solver, from a start, precise."""
    problem, inner, linear = setup(name).problem, own_inner(name), bl.linear.Auto(rtol=1e-9)

    def estimate(params, hparams, data):
        return bl.hypergrad.Implicit(linear=linear).run(problem, inner, params, hparams, data)

    return jax.jit(estimate)


def step(combination):
    name, inner, condition, *ways = combination
    given = setup(name)
    algorithm = Nested(problem_of(name, condition), part("inner", inner), estimator(*ways), optax.sgd(1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = algorithm.init(given.hparams, given.params, given.data)
        return state, *jax.jit(algorithm.step)(state, given.data)


def test_every_task_is_here_with_its_small_settings():
    assert list(SMALL) == GROUPS["task"]


def test_every_task_and_every_part_is_covered():
    for key, used in zip(KEYS, zip(*COVERING, strict=True), strict=True):
        assert set(used) == set(GROUPS[key]) - NO_TASK_HAS


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_every_task_goes_with_several_solvers_and_conditions():
    for name in SMALL:
        mine = [each for each in legal() if each[0] == name]
        assert len({each[1] for each in mine}) >= 3
        assert {each[4] for each in mine} == set(GROUPS["linear"])
        assert {each[3] for each in mine} == set(GROUPS["hypergrad"])
    assert {each[2] for each in legal()} == set(GROUPS["optimality"]) - NO_TASK_HAS


@pytest.mark.parametrize("combination", COVERING, ids="-".join)
@pytest.mark.slice(2)
@pytest.mark.usefixtures("x64")
def test_a_combination_takes_a_step(combination):
    check_step(combination)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(SAMPLE))
@pytest.mark.usefixtures("x64")
def test_a_sample_of_legal_combinations_takes_a_step(number):
    combination = random.Random(number).choice(legal())
    print(*combination)  # shown where it fails
    check_step(combination)


def check_step(combination):
    before, after, report = step(combination)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    moved = jax.tree.map(lambda a, b: a - b, before.hparams, after.hparams)
    status = {bl.Status(int(solve.status)) for solve in report.solves.values()}
    if status != {bl.Status.CONVERGED} or combination[3] != "implicit" or combination[4] in BIASED:
        return
    assert np.isfinite(report.outer_loss)
    # From the point that was found: a problem may have several.
    expected = precise(combination[0])(after.params, before.hparams, setup(combination[0]).data)
    assert bl.Status(int(expected.status)) is bl.Status.CONVERGED
    np.testing.assert_allclose(report.outer_loss, expected.outer_loss, rtol=1e-2)
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected.grad))
    for found, right in zip(jax.tree.leaves(moved), jax.tree.leaves(expected.grad), strict=True):
        np.testing.assert_allclose(found / 1e-3, right, atol=2e-2 * scale)
