"""Mirror maps: inverse of each other, divergences from their definition, and mirror descent that keeps its set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import xlogy

from bilevel.operators import bregman

POTENTIALS = {
    "euclidean": lambda x: jnp.sum(x**2) / 2,
    "entropy": lambda x: jnp.sum(xlogy(x, x) - x),
    "simplex_entropy": lambda x: jnp.sum(xlogy(x, x) - x),
    "fermi_dirac": lambda x: jnp.sum(xlogy(x, x) + xlogy(1 - x, 1 - x)),
}

pytestmark = pytest.mark.usefixtures("x64")


def interior(name, seed=0):
    x = np.random.default_rng(seed).uniform(0.1, 0.9, 5)
    return jnp.asarray(x / x.sum() if name == "simplex_entropy" else x)


def test_no_mirror_map_is_missing():
    found = {name for name in bregman.__all__ if isinstance(getattr(bregman, name), bregman.MirrorMap)}
    assert found == set(POTENTIALS)


@pytest.mark.parametrize("name", POTENTIALS)
class TestMirrorMaps:
    def test_mirror_is_the_gradient(self, name):
        x = interior(name)
        np.testing.assert_allclose(getattr(bregman, name).mirror(x), jax.grad(POTENTIALS[name])(x), atol=1e-14)

    def test_projection_inverts_the_mirror(self, name):
        m, x = getattr(bregman, name), interior(name)
        np.testing.assert_allclose(m.projection(m.mirror(x)), x, atol=1e-14)

    def test_divergence(self, name):
        phi, x, z = POTENTIALS[name], interior(name), interior(name, 1)
        expected = phi(x) - phi(z) - jnp.vdot(jax.grad(phi)(z), x - z)
        assert float(getattr(bregman, name).divergence(x, z)) == pytest.approx(float(expected), abs=1e-14)
        assert float(getattr(bregman, name).divergence(x, x)) == 0

    def test_projection_is_closest(self, name):
        """D(z, x⁺) ≤ D(z, y) for the set's z, by the three-point inequality; here as ⟨∇φ(x⁺) − y, z − x⁺⟩ ≥ 0."""
        m, y = getattr(bregman, name), jnp.asarray(np.random.default_rng(2).normal(size=5))
        p = m.projection(y)
        assert float(jnp.vdot(m.mirror(p) - y, interior(name, 3) - p)) > -1e-12

    def test_trees_and_precision(self, name, dtype):
        m, x = getattr(bregman, name), interior(name).astype(dtype)
        found = m.projection(m.mirror({"a": x, "b": (x,)}))
        assert found["a"].dtype == found["b"][0].dtype == dtype
        np.testing.assert_allclose(found["b"][0], x, atol=1e-6)
        twice = m.divergence({"a": x, "b": (x,)}, {"a": x[::-1], "b": (x[::-1],)})
        assert float(twice) == pytest.approx(2 * float(m.divergence(x, x[::-1])), rel=1e-6)


@pytest.mark.parametrize("name", ["entropy", "simplex_entropy", "fermi_dirac"])
def test_zeros_stay(name):
    m, x = getattr(bregman, name), jnp.array([0.0, 0.25, 0.75])
    after = m.projection(m.mirror(x) - 0.1 * jnp.array([-5.0, 1, 2]))
    assert after[0] == 0
    assert np.isfinite(after).all()
    assert np.isfinite(m.divergence(x, jnp.full(3, 1 / 3)))


class TestSoftmax:
    def test_rows(self):
        y = np.random.default_rng(0).normal(size=(3, 4))
        found = bregman.projection_kl_simplex(y, 2.0)
        np.testing.assert_allclose(found, 2 * np.exp(y) / np.exp(y).sum(1, keepdims=True), atol=1e-14)

    def test_infinite_coordinates(self):
        y = jnp.array([0.0, -jnp.inf, 1.0])
        assert bregman.projection_kl_simplex(y)[1] == 0
        jacobian = jax.jacrev(bregman.projection_kl_simplex)(y)
        assert (jacobian[:, 1] == 0).all()
        assert np.isfinite(jacobian).all()
        assert np.isnan(bregman.projection_kl_simplex(jnp.full(3, -jnp.inf))).all()

    def test_negative_sum(self):
        with pytest.raises(ValueError, match="value must be at least 0"):
            bregman.projection_kl_simplex(jnp.ones(3), -1.0)
