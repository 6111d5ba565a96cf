"""Every task with every part that is legal for it: it composes, takes a step, and is never silently wrong."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import warnings
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import precision
from omegaconf import DictConfig
from test_config import compose

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
SAMPLE = 60
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
def choices() -> dict[str, dict[str, DictConfig]]:
    """The node of each choice of each group: two groups at a time, since a composition costs the same for one choice."""
    found = defaultdict(dict)
    for groups in (("inner", "linear"), ("optimality", "hypergrad")):
        for names in itertools.zip_longest(*(GROUPS[group] for group in groups)):
            made = {group: name for group, name in zip(groups, names, strict=True) if name}
            cfg = compose(*(f"{group}={name}" for group, name in made.items()))
            for group, name in made.items():
                found[group][name] = cfg[group]
    return found


@functools.cache
def part(group: str, choice: str) -> Any:
    node = choices()[group][choice]
    return config.build(node) if node else None


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


@functools.cache
def sample():
    """Seeded; tasks in turn, so that each is seen, with as many different parts as there are."""
    order, chosen = legal(), []
    random.Random(3).shuffle(order)
    while len(chosen) < SAMPLE:
        for name in SMALL:
            used = {part for other in chosen for part in other[1:]}
            mine = [each for each in order if each[0] == name and each not in chosen]
            chosen.append(max(mine, key=lambda each: len(set(each[1:]) - used)))
    return sorted(chosen[:SAMPLE])


def own_inner(name):
    """The solver of the task's YAML, precise."""
    target = composed_task(name).inner._target_
    choice = next(choice for choice in GROUPS["inner"] if choices()["inner"][choice]._target_ == target)
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


@pytest.mark.usefixtures("x64")
def test_every_task_goes_with_several_solvers_and_conditions():
    for name in SMALL:
        mine = [each for each in legal() if each[0] == name]
        assert len({each[1] for each in mine}) >= 3
        assert {each[4] for each in mine} == set(GROUPS["linear"])
        assert {each[3] for each in mine} == set(GROUPS["hypergrad"])


@pytest.mark.parametrize("number", range(SAMPLE))
@pytest.mark.usefixtures("x64")
def test_a_sample_of_legal_combinations_takes_a_step(number):
    combination = sample()[number]
    print(*combination)  # shown where it fails
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
