"""Projections on the simplex, the box and the orthant: what defines them, and their derivatives away from kinks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from operator_cases import SIZES, STEP, examples, seeds, vectors

from bilevel.operators import projection, prox
from bilevel.operators.projection._simplex import _sort_descending

KINK = 1e-4
values = st.floats(0.1, 10)

simplex = jax.jit(projection.projection_simplex)
simplex_slope = jax.jit(
    lambda x, value, x_dot, value_dot: jax.jvp(projection.projection_simplex, (x, value), (x_dot, value_dot))[1]
)
sort_rows = jax.jit(jax.vmap(_sort_descending))
box = jax.jit(projection.projection_box)

pytestmark = [pytest.mark.slice(8), pytest.mark.usefixtures("x64")]


def exact_simplex(x, value):
    """The threshold by bisection, where Σ max(x − τ, 0) = value."""
    low, high = x.min() - value, x.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(x - middle, 0).sum() > value else (low, middle)
    return np.maximum(x - (low + high) / 2, 0)


class TestSimplex:
    @examples(50)
    @given(vectors(), values)
    def test_equals_bisection(self, x, value):
        p = np.asarray(simplex(x, value))
        assert p.min() >= 0
        assert p.sum() == pytest.approx(value, abs=1e-12)
        np.testing.assert_allclose(p, exact_simplex(x, value), atol=1e-12)
        np.testing.assert_allclose(simplex(p, value), p, atol=1e-12)

    @pytest.mark.parametrize("size", [*range(1, 18), 33])  # above 16 entries are sorted, not by a network
    def test_every_size(self, size):
        x = np.random.default_rng(size).normal(size=size)
        np.testing.assert_allclose(simplex(x, 1.0), exact_simplex(x, 1.0), atol=1e-13)

    def test_ties(self):
        for size in SIZES:
            np.testing.assert_allclose(simplex(np.full(size, 5.0), 2.0), 2.0 / size, rtol=1e-13)
        np.testing.assert_allclose(simplex(np.array([1.0, 0.0, 0.0]), 1.0), [1.0, 0.0, 0.0], atol=1e-15)
        np.testing.assert_allclose(simplex(np.array([2.0, 2.0, 0.0]), 1.0), [0.5, 0.5, 0.0], atol=1e-15)

    @pytest.mark.parametrize("size", [7, 40])
    def test_common_shift_does_not_matter(self, size):
        x = np.random.default_rng(0).normal(size=size)
        np.testing.assert_allclose(simplex(x + 1e6, 1.0), simplex(x, 1.0), atol=1e-8)

    def test_default_value_is_one(self):
        assert float(projection.projection_simplex(jnp.array([0.3, 4.0, -1.0])).sum()) == pytest.approx(1.0, abs=1e-14)

    @examples(50)
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

    @pytest.mark.parametrize("size", [7, 40])
    def test_rows_and_both_modes(self, size):
        """The derivative sums to zero along x, to one along the value."""
        rows, amounts = np.random.default_rng(2).normal(size=(4, size)), np.array([0.5, 1.0, 2.0, 30.0])
        found = jax.vmap(simplex)(rows, amounts)
        jacobians = [jax.jit(jax.vmap(j(simplex, argnums=(0, 1))))(rows, amounts) for j in (jax.jacfwd, jax.jacrev)]
        for row, amount, p in zip(rows, amounts, found, strict=True):
            np.testing.assert_allclose(p, exact_simplex(row, amount), atol=1e-12)
        for forward, reverse, total in zip(*jacobians, (0, 1), strict=True):
            np.testing.assert_allclose(forward, reverse, atol=1e-14)
            np.testing.assert_allclose(forward.sum(1), total, atol=1e-13)


@pytest.mark.parametrize("size", [*range(1, 18), 33])
def test_sorting(size):
    """A network that sorts all vectors of zeros and ones sorts everything (0/1 principle)."""
    rows = np.random.default_rng(size).normal(size=(50, size))
    if size <= 10:
        ones = np.array(list(itertools.product([0.0, 1.0], repeat=size)))
    else:
        ones = np.random.default_rng(size).integers(0, 2, (4000, size)).astype(float)
        ones = np.concatenate([ones, np.tri(size)[:, ::-1], np.tri(size), np.eye(size), 1 - np.eye(size)])
    rows = np.concatenate([rows, ones])
    assert np.array_equal(sort_rows(rows), -np.sort(-rows, axis=1))


class TestBox:
    @examples(50)
    @given(vectors(), st.floats(-5, 5, allow_subnormal=False), st.floats(1e-3, 5))
    def test_closest_point(self, x, lower, width):
        p = np.asarray(box(x, (lower, lower + width)))
        assert np.array_equal(p, np.minimum(np.maximum(x, lower), lower + width))
        assert np.array_equal(box(p, (lower, lower + width)), p)

    def test_derivative_of_a_shared_bound(self):
        x = jnp.array([-3.0, -2.0, 3.0])
        slope = jax.grad(lambda lower: projection.projection_box(x, (lower, 1.0)).sum())(-1.0)
        assert float(slope) == 2.0

    @pytest.mark.parametrize("leaves", [1, 2])
    def test_trees(self, leaves):
        x = {name: jnp.array([-2.0, 2.0]) for name in "ab"[:leaves]}
        lower = {name: jnp.array([-1.0, 0.0]) for name in x}
        for bounds in ((-1.0, 1.0), (lower, dict.fromkeys(x, 1.0))):
            found = projection.projection_box(x, bounds)
            assert {name: p.tolist() for name, p in found.items()} == {name: [-1.0, 1.0] for name in x}


class TestNonNegative:
    @examples(50)
    @given(vectors())
    def test_positive_part(self, x):
        assert np.array_equal(projection.projection_non_negative(x), np.maximum(x, 0))

    def test_tree(self):
        found = projection.projection_non_negative({"a": jnp.array([-1.0, 2.0]), "b": jnp.array(-3.0)})
        assert jax.tree.map(lambda v: v.tolist(), found) == {"a": [0.0, 2.0], "b": 0.0}


@pytest.mark.parametrize(("of_x", "of_others"), [("float32", "float64"), ("float64", "float32")])
def test_precision_is_that_of_x(of_x, of_others):
    """Where `test_operators.py` does not look: long vectors, and numbers given for each entry."""
    x, others = jnp.linspace(-2, 2, 20, dtype=of_x), jnp.ones(20, of_others)
    assert projection.projection_simplex(x, others[0]).dtype == of_x
    assert projection.projection_box(x, (-others, others)).dtype == of_x
    assert prox.prox_lasso(x, others, others[0]).dtype == of_x
