"""Projections on the simplex, the box and the orthant: what defines them, and their derivatives away from kinks."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bilevel.operators import projection, prox
from bilevel.operators.projection._simplex import _sort_descending

SIZES = [1, 2, 3, 7, 16, 17, 40]
KINK = 1e-4
STEP = 1e-6

examples = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from(SIZES)
values = st.floats(0.1, 10)

simplex = jax.jit(projection.projection_simplex)
simplex_slope = jax.jit(
    lambda x, value, x_dot, value_dot: jax.jvp(projection.projection_simplex, (x, value), (x_dot, value_dot))[1]
)
sort_rows = jax.jit(jax.vmap(_sort_descending))
box = jax.jit(projection.projection_box)

pytestmark = [pytest.mark.slice(4), pytest.mark.usefixtures("x64")]


@st.composite
def vectors(draw):
    size = draw(sizes)
    kind = draw(st.sampled_from(["spread", "tied", "floats"]))
    if kind == "floats":
        return np.array(draw(st.lists(st.floats(-20, 20, allow_subnormal=False), min_size=size, max_size=size)))
    rng = np.random.default_rng(draw(seeds))
    return rng.integers(-2, 3, size).astype(float) if kind == "tied" else 3 * rng.normal(size=size)


def exact_simplex(x, value):
    """The threshold by bisection, where Σ max(x − τ, 0) = value."""
    low, high = x.min() - value, x.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(x - middle, 0).sum() > value else (low, middle)
    return np.maximum(x - (low + high) / 2, 0)


class TestSimplex:
    @examples
    @given(vectors(), values)
    def test_feasible(self, x, value):
        p = np.asarray(simplex(x, value))
        assert p.min() >= 0
        assert p.sum() == pytest.approx(value, abs=1e-12)

    @examples
    @given(vectors(), values)
    def test_equals_bisection(self, x, value):
        np.testing.assert_allclose(simplex(x, value), exact_simplex(x, value), atol=1e-12)

    @examples
    @given(vectors(), values)
    def test_idempotent(self, x, value):
        p = np.asarray(simplex(x, value))
        np.testing.assert_allclose(simplex(p, value), p, atol=1e-12)

    @examples
    @given(vectors(), seeds, values)
    def test_non_expansive(self, x, seed, value):
        y = x + np.random.default_rng(seed).normal(size=x.size)
        moved = np.linalg.norm(np.asarray(simplex(x, value)) - np.asarray(simplex(y, value)))
        assert moved <= np.linalg.norm(x - y) + 1e-12

    @examples
    @given(vectors(), seeds, values)
    def test_no_point_of_the_simplex_is_closer(self, x, seed, value):
        p = np.asarray(simplex(x, value))
        corners = value * np.eye(x.size)
        inside = value * np.random.default_rng(seed).dirichlet(np.ones(x.size), size=5)
        assert max((q - p) @ (x - p) for q in [*corners, *inside]) <= 1e-10

    @pytest.mark.parametrize("size", range(1, 41))
    def test_every_size(self, size):
        x = np.random.default_rng(size).normal(size=size)
        np.testing.assert_allclose(simplex(x, 1.0), exact_simplex(x, 1.0), atol=1e-13)

    @pytest.mark.parametrize("size", SIZES)
    def test_equal_entries_share(self, size):
        np.testing.assert_allclose(simplex(np.full(size, 5.0), 2.0), 2.0 / size, rtol=1e-13)

    def test_ties_at_the_edge_of_the_support(self):
        np.testing.assert_allclose(simplex(np.array([1.0, 0.0, 0.0]), 1.0), [1.0, 0.0, 0.0], atol=1e-15)
        np.testing.assert_allclose(simplex(np.array([2.0, 2.0, 0.0, 0.0]), 1.0), [0.5, 0.5, 0.0, 0.0], atol=1e-15)

    @pytest.mark.parametrize("size", [5, 30])
    def test_common_shift_does_not_matter(self, size):
        x = np.random.default_rng(0).normal(size=size)
        np.testing.assert_allclose(simplex(x + 1e6, 1.0), simplex(x, 1.0), atol=1e-8)

    def test_default_value_is_one(self):
        assert float(projection.projection_simplex(jnp.array([0.3, 4.0, -1.0])).sum()) == pytest.approx(1.0, abs=1e-14)

    @examples
    @given(vectors(), seeds, values)
    def test_derivative(self, x, seed, value):
        x = x + 1e-2 * np.random.default_rng(seed).normal(size=x.size)
        p = np.asarray(simplex(x, value))
        threshold = (x - p)[p > 0].mean()
        assume(np.abs(x - threshold).min() > KINK)
        x_dot, value_dot = np.random.default_rng(seed + 1).normal(size=x.size), 0.7
        for a, b in [(x_dot, 0.0), (np.zeros(x.size), value_dot), (x_dot, value_dot)]:
            ahead, behind = simplex(x + STEP * a, value + STEP * b), simplex(x - STEP * a, value - STEP * b)
            np.testing.assert_allclose(simplex_slope(x, value, a, b), (ahead - behind) / (2 * STEP), atol=1e-8)

    @pytest.mark.parametrize("size", [6, 25])
    def test_both_modes_agree(self, size):
        x = np.random.default_rng(1).normal(size=size)
        forward = jax.jacfwd(simplex, argnums=(0, 1))(x, 2.0)
        reverse = jax.jacrev(simplex, argnums=(0, 1))(x, 2.0)
        np.testing.assert_allclose(forward[0], reverse[0], atol=1e-14)
        np.testing.assert_allclose(forward[1], reverse[1], atol=1e-14)
        assert float(forward[1].sum()) == pytest.approx(1.0, abs=1e-13)
        assert np.abs(forward[0].sum(0)).max() < 1e-13

    @pytest.mark.parametrize("size", [6, 25])
    def test_rows(self, size):
        rows = np.random.default_rng(2).normal(size=(4, size))
        amounts = np.array([0.5, 1.0, 2.0, 30.0])
        found = jax.vmap(simplex)(rows, amounts)
        for row, amount, p in zip(rows, amounts, found, strict=True):
            np.testing.assert_allclose(p, exact_simplex(row, amount), atol=1e-12)


class TestSortingNetwork:
    @pytest.mark.parametrize("size", range(1, 17))
    def test_every_size(self, size):
        """A network that sorts all vectors of zeros and ones sorts everything (0/1 principle)."""
        if size <= 10:
            rows = np.array(list(itertools.product([0.0, 1.0], repeat=size)))
        else:
            rows = np.random.default_rng(size).integers(0, 2, (4000, size)).astype(float)
            rows = np.concatenate([rows, np.tri(size)[:, ::-1], np.tri(size), np.eye(size), 1 - np.eye(size)])
        assert np.array_equal(sort_rows(rows), -np.sort(-rows, axis=1))

    @pytest.mark.parametrize("size", [2, 11, 16, 17, 33])
    def test_real_numbers(self, size):
        rows = np.random.default_rng(size).normal(size=(50, size))
        assert np.array_equal(sort_rows(rows), -np.sort(-rows, axis=1))


class TestBox:
    @examples
    @given(vectors(), st.floats(-5, 5), st.floats(1e-3, 5))
    def test_closest_point(self, x, lower, width):
        p = np.asarray(box(x, (lower, lower + width)))
        assert np.array_equal(p, np.minimum(np.maximum(x, lower), lower + width))
        assert np.array_equal(box(p, (lower, lower + width)), p)

    @examples
    @given(vectors(), seeds)
    def test_non_expansive(self, x, seed):
        y = x + np.random.default_rng(seed).normal(size=x.size)
        moved = np.asarray(box(x, (-1.0, 2.0))) - np.asarray(box(y, (-1.0, 2.0)))
        assert (np.abs(moved) <= np.abs(x - y) + 1e-14).all()

    def test_bounds_by_entry(self):
        x, lower, upper = np.array([-3.0, 0.5, 3.0]), np.array([-1.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0])
        assert np.array_equal(box(x, (lower, upper)), [-1.0, 0.5, 2.0])

    def test_derivative(self):
        x, lower, upper = np.array([-3.0, 0.5, 3.0]), np.array([-1.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0])
        for jacobian in (jax.jacfwd, jax.jacrev):
            wrt_x, (wrt_lower, wrt_upper) = jacobian(projection.projection_box, argnums=(0, 1))(x, (lower, upper))
            assert np.array_equal(wrt_x, np.diag([0.0, 1.0, 0.0]))
            assert np.array_equal(wrt_lower, np.diag([1.0, 0.0, 0.0]))
            assert np.array_equal(wrt_upper, np.diag([0.0, 0.0, 1.0]))

    def test_derivative_of_a_shared_bound(self):
        x = jnp.array([-3.0, -2.0, 3.0])
        slope = jax.grad(lambda lower: projection.projection_box(x, (lower, 1.0)).sum())(-1.0)
        assert float(slope) == 2.0

    def test_tree_with_scalar_bounds(self):
        x = {"a": jnp.array([-2.0, 2.0]), "b": (jnp.array(5.0),)}
        found = projection.projection_box(x, (-1.0, 1.0))
        assert jax.tree.map(lambda v: v.tolist(), found) == {"a": [-1.0, 1.0], "b": (1.0,)}

    @pytest.mark.parametrize("leaves", [1, 2])
    def test_tree_with_bounds_by_leaf(self, leaves):
        x = {name: jnp.array([-2.0, 2.0]) for name in "ab"[:leaves]}
        lower = {name: jnp.array([-1.0, 0.0]) for name in x}
        upper = dict.fromkeys(x, 1.0)
        found = projection.projection_box(x, (lower, upper))
        assert {name: p.tolist() for name, p in found.items()} == {name: [-1.0, 1.0] for name in x}

    def test_rows(self):
        rows = np.random.default_rng(0).normal(size=(3, 4))
        lower = np.array([-1.0, 0.0, 0.5])
        found = jax.vmap(lambda x, low: projection.projection_box(x, (low, 1.0)))(rows, lower)
        assert np.array_equal(found, np.clip(rows, lower[:, None], 1.0))


class TestNonNegative:
    @examples
    @given(vectors())
    def test_positive_part(self, x):
        assert np.array_equal(projection.projection_non_negative(x), np.maximum(x, 0))

    def test_tree(self):
        found = projection.projection_non_negative({"a": jnp.array([-1.0, 2.0]), "b": jnp.array(-3.0)})
        assert jax.tree.map(lambda v: v.tolist(), found) == {"a": [0.0, 2.0], "b": 0.0}

    def test_derivative(self):
        slope = jax.jacrev(projection.projection_non_negative)(jnp.array([-1.0, 2.0]))
        assert np.array_equal(slope, np.diag([0.0, 1.0]))


MAPS = {
    "simplex": lambda x, low, high: projection.projection_simplex(x, high),
    "non-negative": lambda x, low, high: projection.projection_non_negative(x),
    "box": lambda x, low, high: projection.projection_box(x, (low, high)),
    "box by entry": lambda x, low, high: projection.projection_box(x, (jnp.full_like(x, low), jnp.full_like(x, high))),
    "lasso": lambda x, low, high: prox.prox_lasso(x, high, high),
    "lasso by entry": lambda x, low, high: prox.prox_lasso(x, jnp.full_like(x, high), high),
    "none": lambda x, low, high: prox.prox_none(x, high),
}


class TestPrecision:
    @pytest.mark.parametrize("name", MAPS)
    @pytest.mark.parametrize("size", [5, 20])
    def test_kept(self, name, size, dtype):
        x = jnp.linspace(-2, 2, size, dtype=dtype)
        assert MAPS[name](x, -1.0, 1.0).dtype == dtype

    @pytest.mark.parametrize("name", MAPS)
    @pytest.mark.parametrize(("of_x", "of_others"), [("float32", "float64"), ("float64", "float32")])
    def test_x_decides(self, name, of_x, of_others):
        x = jnp.linspace(-2, 2, 5, dtype=of_x)
        assert MAPS[name](x, jnp.asarray(-1, of_others), jnp.asarray(1, of_others)).dtype == of_x

    def test_x_decides_by_entry(self):
        x, bounds = jnp.linspace(-2, 2, 5, dtype="float32"), jnp.ones(5, "float64")
        assert prox.prox_lasso(x, bounds).dtype == "float32"
        assert projection.projection_box(x, (-bounds, bounds)).dtype == "float32"
