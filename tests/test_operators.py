"""What holds for every operator: derivatives, transformations, precision, and the inequality that defines it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import precision
from hypothesis import assume, given
from operator_cases import ALL, KL, PROJECTIONS, PROXES, STEP, examples, seeds

from bilevel.operators import bregman, projection, prox

pytestmark = pytest.mark.slice(10)

CONVEX_SETS = [name for name, case in PROJECTIONS.items() if case.convex and name not in KL]


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


def moved(point, ways, length):
    return tuple(a + length * way for a, way in zip(point, ways, strict=True))


def only(ways, i):
    return tuple(np.asarray(way if i == j else np.zeros_like(way), float) for j, way in enumerate(ways))


def as_floats(point):
    return tuple(np.asarray(a, float) for a in point)


def test_no_operator_is_missing():
    public = {
        name
        for module in (projection, prox, bregman)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
    assert public == set(ALL)


@pytest.mark.parametrize("name", ALL)
class TestDerivatives:
    @examples(20)
    @given(seeds)
    def test_differences(self, name, x64, seed):
        case, rng = ALL[name], np.random.default_rng(seed)
        point, full = as_floats(case.point(rng)), case.directions(rng)
        here = numpy(case.value(*point))
        checks = [full] if case.ways else [only(full, i) for i in range(len(full))]
        for ways in checks:
            ahead, behind = (numpy(case.value(*moved(point, ways, length))) for length in (STEP, -STEP))
            # A kink within one step shows as two different one-sided slopes.
            assume(np.abs(ahead + behind - 2 * here).max() < 1e-4 * STEP * (1 + np.abs(here).max()))
            found = numpy(case.slope(point, as_floats(ways)))
            np.testing.assert_allclose(found, (ahead - behind) / (2 * STEP), rtol=1e-6, atol=1e-7)

    @examples(20)
    @given(seeds)
    def test_both_modes_and_second_differences(self, name, x64, seed):
        case, rng = ALL[name], np.random.default_rng(seed)
        point, ways = as_floats(case.point(rng)), as_floats(case.directions(rng))
        forward = numpy(case.slope(point, ways))
        weights = rng.normal(size=forward.shape)
        backward = sum(np.vdot(a, way) for a, way in zip(case.pull(point, weights), ways, strict=True))
        assert np.vdot(forward, weights) == pytest.approx(backward, rel=1e-9, abs=1e-11)
        ahead, behind = (numpy(case.pull(moved(point, ways, length), weights)) for length in (STEP, -STEP))
        here = numpy(case.pull(point, weights))
        for a, b, c in zip(ahead, behind, here, strict=True):
            assume(np.abs(a + b - 2 * c).max() < 1e-4 * STEP * (1 + np.abs(c).max()))
        for found, a, b in zip(case.curve(point, ways, weights)[1], ahead, behind, strict=True):
            np.testing.assert_allclose(found, (a - b) / (2 * STEP), rtol=1e-5, atol=1e-6)

    def test_finite_at_kinks(self, name, x64):
        case, rng = ALL[name], np.random.default_rng(0)
        for point in map(as_floats, case.kinks):
            value = numpy(case.value(*point))
            ways, weights = tuple(rng.normal(size=np.shape(a)) for a in point), rng.normal(size=value.shape)
            assert np.isfinite(value).all()
            assert np.isfinite(case.slope(point, ways)).all()
            for found in jax.tree.leaves(case.curve(point, ways, weights)):
                assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ALL)
class TestTransformations:
    def test_rows(self, name, x64):
        case, rng = ALL[name], np.random.default_rng(5)
        points = [as_floats(case.point(rng)) for _ in range(4)]
        found = jax.jit(jax.vmap(case.call))(*(np.stack(arrays) for arrays in zip(*points, strict=True)))
        for point, row in zip(points, found, strict=True):
            np.testing.assert_allclose(row, case.value(*point), rtol=1e-11, atol=1e-12)

    def test_precision_is_that_of_x(self, name, strict):
        """Beside arrays of the other precision, and plain numbers."""
        case = ALL[name]
        x, *others = as_floats(case.point(np.random.default_rng(3)))
        plain = [a.item() if a.ndim == 0 else a for a in others]
        for of_x, of_others in (("float32", "float64"), ("float64", "float32")):
            for beside in ([jnp.asarray(a, of_others) for a in others], plain):
                found = jax.eval_shape(lambda x, beside=beside: case.call(x, *beside), jnp.asarray(x, of_x))
                assert found.dtype == of_x
                assert not found.weak_type

    def test_single_precision(self, name):
        """The answer to the same problem, to what float32 resolves."""
        case = ALL[name]
        with precision("float64"):
            point = as_floats(case.point(np.random.default_rng(3)))
            exact = case.value(*point)
        with precision("float32"):
            found = case.value(*(jnp.asarray(a, "float32") for a in point))
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, exact, atol=2e-5)


@pytest.mark.parametrize("name", PROJECTIONS)
@examples(20)
@given(seed=seeds)
def test_projections_are_feasible_and_idempotent(name, x64, seed):
    case, rng = PROJECTIONS[name], np.random.default_rng(seed)
    point = case.point(rng)
    p = numpy(case.value(*point))
    assert case.violation(p, *point[1:]) < 1e-10
    with np.errstate(divide="ignore"):
        again = np.log(p) if name in KL else p
    np.testing.assert_allclose(case.value(again, *point[1:]), p, atol=1e-10)


@pytest.mark.parametrize("name", CONVEX_SETS)
@examples(20)
@given(seed=seeds)
def test_no_point_of_a_convex_set_lies_ahead(name, x64, seed):
    """⟨x − p, z − p⟩ ≤ 0 for all z of the set, by which a projection moves two points no further apart."""
    case, rng = PROJECTIONS[name], np.random.default_rng(seed)
    x, *args = case.point(rng)
    p = numpy(case.value(x, *args))
    for y in (x + rng.normal(size=x.shape), *(p + scale * rng.normal(size=x.shape) for scale in (0.1, 1, 10))):
        z = numpy(case.value(y, *args))
        assert case.violation(z, *args) < 1e-10
        assert np.vdot(x - p, z - p) <= 1e-9
        assert np.linalg.norm(z - p) <= np.linalg.norm(y - x) + 1e-10


@pytest.mark.parametrize("name", PROXES)
@examples(20)
@given(seed=seeds)
def test_prox_is_the_minimizer(name, x64, seed):
    case, rng = PROXES[name], np.random.default_rng(seed)
    x, *args = case.point(rng)
    p = numpy(case.value(x, *args))
    best = case.objective(p, *args)
    assert np.isfinite(best)
    for scale in (1e-3, 0.1, 1, 10):
        for z in (p + scale * rng.normal(size=x.shape), np.abs(p + scale * rng.normal(size=x.shape)), (1 - scale) * p):
            other = case.objective(z, *args)
            if case.convex:
                assert np.vdot(x - p, z - p) <= other - best + 1e-10
            assert best + np.sum((x - p) ** 2) / 2 <= other + np.sum((x - z) ** 2) / 2 + 1e-10
