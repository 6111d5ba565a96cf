"""Single proxes against calculations of another kind, and that everything in jaxopt is here."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_cases import ALL, PROXES, STEP, examples, vectors

from bilevel.operators import projection, prox

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jaxopt.projection
    import jaxopt.prox

lasso = jax.jit(prox.prox_lasso)

pytestmark = [pytest.mark.slice(8), pytest.mark.usefixtures("x64")]


class TestLasso:
    @examples(50)
    @given(vectors(), st.floats(0, 5), st.floats(0.1, 3))
    def test_soft_threshold(self, x, l1reg, scaling):
        expected = np.sign(x) * np.maximum(np.abs(x) - l1reg * scaling, 0)
        np.testing.assert_allclose(lasso(x, l1reg, scaling), expected, atol=1e-14)

    def test_derivative_is_zero_at_the_threshold(self):
        wrt_x, wrt_penalty = jax.jacrev(prox.prox_lasso, argnums=(0, 1))(jnp.array([1.0, -1.0]), 1.0)
        assert np.array_equal(wrt_x, np.zeros((2, 2)))
        assert np.array_equal(wrt_penalty, np.zeros(2))

    def test_penalty_by_entry(self):
        found = lasso(np.array([3.0, -3.0, 3.0]), np.array([1.0, 2.0, 4.0]), 1.0)
        assert np.array_equal(found, [2.0, -1.0, 0.0])

    @pytest.mark.parametrize("leaves", [1, 2])
    def test_trees(self, leaves):
        x = {name: jnp.array([-3.0, 2.0]) for name in "ab"[:leaves]}
        shared = prox.prox_lasso(x, 1.0)
        own = prox.prox_lasso(x, {name: 0.5 * (i + 1) for i, name in enumerate(x)}, 2.0)
        for i, name in enumerate(x):
            assert shared[name].tolist() == [-2.0, 1.0]
            assert own[name].tolist() == [[-2.0, 1.0], [-1.0, 0.0]][i]


@pytest.mark.parametrize("kind", ["generic", "ties", "long", "no penalty"])
def test_total_variation_is_optimal(kind):
    """x − p is the divergence of a dual signal within ±τ, at ±τ where p jumps."""
    rng = np.random.default_rng(0)
    size = 200 if kind == "long" else 9
    denoise = jax.jit(prox.prox_total_variation)
    for trial in range(30):
        x = rng.integers(-2, 3, size).astype(float) if kind == "ties" else 2 * rng.normal(size=size)
        tau = {"ties": 0.5 * (trial % 4), "no penalty": 0.0}.get(kind, 10 ** rng.uniform(-1, 1))
        p = np.asarray(denoise(x, tau))
        dual = np.cumsum(x - p)
        assert abs(dual[-1]) < 1e-11
        assert np.abs(dual).max() <= tau + 1e-11
        jump = np.diff(p)
        jumps = np.abs(jump) > 1e-11
        np.testing.assert_allclose(dual[:-1][jumps], -tau * np.sign(jump[jumps]), atol=1e-11)


def test_total_variation_of_one_entry():
    assert prox.prox_total_variation(jnp.array([3.0]), 1.0).tolist() == [3.0]


def test_log_penalty_against_a_grid():
    grid = np.linspace(-6, 6, 240_001)
    rng = np.random.default_rng(0)
    for _ in range(40):
        x, penalty, width = 2 * rng.normal(), rng.uniform(0.05, 3), rng.uniform(0.05, 2)

        def objective(y, x=x, penalty=penalty, width=width):
            return (y - x) ** 2 / 2 + penalty * np.log1p(np.abs(y) / width)

        found = float(PROXES["prox_log1p"].value(np.full(6, x), penalty, width, 1.0)[0])
        best = grid[np.argmin(objective(grid))]
        assert objective(found) <= objective(best) + 1e-14
        assert found == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("sizes", [[3, 3, 1], [2, 2, 2], [3, 1, 0], [0.5, 0.5, 0.5]])
def test_nuclear_norm_derivatives_at_repeated_singular_values(sizes):
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.normal(size=(n, 3)))[0] for n in (3, 4))
    x, case, ways = u @ np.diag(sizes) @ v.T, PROXES["prox_nuclear_norm"], (rng.normal(size=(3, 4)), 0.3, -0.2)
    point, weights = (x, 1.2, 1.0), rng.normal(size=(3, 4))

    def along(f, length):
        return f(tuple(a + length * way for a, way in zip(point, ways, strict=True)))

    value, pull = lambda p: case.value(*p), lambda p: case.pull(p, weights)[0]
    differences = [(along(f, STEP) - along(f, -STEP)) / (2 * STEP) for f in (value, pull)]
    np.testing.assert_allclose(case.slope(point, ways), differences[0], atol=1e-8)
    np.testing.assert_allclose(case.curve(point, ways, weights)[1][0], differences[1], atol=1e-7)


@pytest.mark.parametrize("shape", [(5, 2), (2, 5), (3, 3)])
def test_nuclear_norm_by_numpy(shape):
    x = np.random.default_rng(0).normal(size=shape)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(prox.prox_nuclear_norm(x, 0.5, 2.0), (u * np.maximum(s - 1, 0)) @ vt, atol=1e-13)


def test_without_penalty_the_derivative_is_the_identity():
    for name in ("prox_nuclear_norm", "prox_group_lasso", "prox_total_variation"):
        case = PROXES[name]
        x = np.zeros(np.shape(case.point(np.random.default_rng(0))[0]))
        if name == "prox_total_variation":
            x = np.arange(9.0)
        way = np.random.default_rng(1).normal(size=x.shape)
        np.testing.assert_allclose(case.slope((x, 0.0, 1.0), (way, 0.0, 0.0)), way, atol=1e-14)


@pytest.mark.parametrize(
    "name", ["lasso", "non_negative_lasso", "elastic_net", "ridge", "non_negative_ridge", "group_lasso", "none"]
)
class TestTrees:
    def test_two_leaves(self, name):
        operator = getattr(prox, f"prox_{name}")
        found = operator({"a": jnp.array([3.0, -1.0]), "b": jnp.array([[2.0]])})
        np.testing.assert_allclose(np.append(found["a"], found["b"]), operator(jnp.array([3.0, -1.0, 2.0])))

    def test_no_hyperparameters_means_ones(self, name):
        operator, x = getattr(prox, f"prox_{name}"), jnp.array([3.0, -1.0, 2.0])
        assert np.array_equal(operator(x, None), operator(x))


@pytest.mark.parametrize("name", ["projection_l1_sphere", "projection_l2_sphere"])
def test_spheres_as_jaxopt(name):
    """Of sets that are not convex, no inequality tells the closest point."""
    rng = np.random.default_rng(4)
    for _ in range(3):
        point = ALL[name].point(rng)
        np.testing.assert_allclose(ALL[name].value(*point), getattr(jaxopt.projection, name)(*point), atol=1e-13)


def test_every_operator_of_jaxopt_is_here():
    for theirs, ours in ((jaxopt.projection, projection), (jaxopt.prox, prox)):
        names = {n for n in dir(theirs) if n.startswith(("projection_", "kl_projection_", "prox_", "make_prox"))}
        assert names <= set(ours.__all__)
