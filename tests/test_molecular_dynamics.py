"""The packing: its energy, pressure and sensitivities are those of physics."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import task_cases

import bilevel as bl
from bilevel import tasks
from bilevel.tasks import molecular_dynamics as md

PRECISE = bl.inner.FIRE(rtol=1e-13, atol=0.0, max_steps=100_000)


@pytest.fixture
def setup(x64):
    return tasks.MolecularDynamics(particles=24).setup(1, "float64")


def relax(params, hparams, data):
    return PRECISE.solve(md.problem, params, hparams, data).params


def overlaps(positions, diameters, side):
    """(r, σ) of the pairs that overlap, one by one, over the images around."""
    images = [np.array(shift) * side for shift in itertools.product((-1, 0, 1), repeat=2)]
    for i, j in itertools.combinations(range(len(positions)), 2):
        r = min(np.linalg.norm(positions[i] - positions[j] + shift) for shift in images)
        if r < (reach := (diameters[i] + diameters[j]) / 2):
            yield r, reach


def energy(positions, diameters, side):
    return sum((1 - r / reach) ** 2 / 2 for r, reach in overlaps(positions, diameters, side))


def described(setup):
    return np.array([0.6 if small else 1.0 for small in setup.data["small"]]), float(setup.data["box"])


def test_the_box_holds_what_the_packing_says(setup):
    diameters, side = described(setup)
    assert np.sum(diameters == 0.6) == 12
    np.testing.assert_allclose(np.sum(np.pi * diameters**2 / 4) / side**2, 0.98, rtol=1e-12)


def test_the_energy_is_that_of_the_pairs_that_overlap(setup):
    diameters, side = described(setup)
    positions = np.asarray(setup.params) + side * np.array([3, -2])  # an image of the box as good as any
    found = md.inner_loss(jnp.asarray(positions), setup.hparams, setup.data)
    np.testing.assert_allclose(found, energy(np.asarray(setup.params), diameters, side), rtol=1e-10)


def test_the_pressure_is_the_energy_that_a_smaller_box_costs(setup):
    relaxed = relax(setup.params, setup.hparams, setup.data)
    diameters, side = described(setup)

    def stretched(area):
        factor = np.sqrt(area) / side
        return energy(np.asarray(relaxed) * factor, diameters, side * factor)

    step = 1e-6 * side**2
    expected = -(stretched(side**2 + step) - stretched(side**2 - step)) / (2 * step)
    np.testing.assert_allclose(md.pressure(relaxed, setup.hparams, setup.data), expected, rtol=1e-6)


def test_sensitivities_are_the_moves_of_the_relaxed_packing(setup):
    relaxed = relax(setup.params, setup.hparams, setup.data)
    found = np.asarray(md.sensitivities(relaxed, setup.hparams, setup.data))
    step, diameter = 1e-6, np.exp(setup.hparams)
    ends = [relax(relaxed, jnp.log(diameter + sign * step), setup.data) for sign in (1, -1)]
    moved = np.asarray(ends[0] - ends[1]) / (2 * step)
    held = md.touching(relaxed, setup.hparams, setup.data) > 0
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(
        (found - found[held].mean(axis=0))[held], (moved - moved[held].mean(axis=0))[held], atol=1e-4
    )
    np.testing.assert_allclose(found[~held], 0, atol=1e-9)
    assert np.abs(found).max() > 0.1


def test_hypergradient_matches_differences(setup):
    relaxed = relax(setup.params, setup.hparams, setup.data)
    task_cases.check_gradient(dataclasses.replace(setup, params=relaxed), PRECISE, rtol=1e-5)


def test_the_pressure_is_driven_to_its_target(setup):
    found = task_cases.minimize(setup, inner=bl.inner.FIRE(), optimizer=optax.adam(0.02), steps=40)
    metrics = setup.metrics(found.hparams, found.params)
    assert metrics["pressure"] == pytest.approx(0.08, abs=1e-3)
    assert float(np.exp(found.hparams)) < 0.6
    assert np.isfinite(metrics["sensitivity_l1"])
    assert metrics["loose_particles"] == np.sum(md.touching(found.params, found.hparams, setup.data) == 0)
    assert set(setup.pictures(found.hparams, found.params)) == {"sensitivities"}
