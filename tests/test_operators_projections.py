"""Single projections: reference answers calculated in another way, hard instances, edges, and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operator_cases import PROJECTIONS, exponential
from scipy.optimize import nnls
from sklearn.isotonic import isotonic_regression

from bilevel.operators import projection
from bilevel.operators.cones import Cones, matricize, vectorize

pytestmark = [pytest.mark.slice(8), pytest.mark.usefixtures("x64")]


def value(name):
    return PROJECTIONS[name].value


psd_slope = jax.jit(lambda x, a: jax.jvp(projection.projection_psd_cone, (x,), (a,))[1])
psd_curve = jax.jit(lambda x, a, b: jax.jvp(lambda x: psd_slope(x, a), (x,), (b,))[1])
psd_hessians = [
    jax.jit(outer(jax.jacrev(lambda x: projection.projection_psd_cone(x).sum()))) for outer in (jax.jacfwd, jax.jacrev)
]


def optimality_gap(x, p, normals):
    """Distance of x − p from the cone of the active normals."""
    return nnls(normals.T, x - p, maxiter=10_000)[1] if len(normals) else np.abs(x - p).max()


class TestCones:
    @pytest.mark.parametrize("name", ["projection_second_order_cone", "projection_psd_cone"])
    def test_moreau_of_self_dual_cones(self, name):
        case, rng = PROJECTIONS[name], np.random.default_rng(0)
        for _ in range(30):
            (x,) = case.point(rng)
            p, n = np.asarray(case.value(x)), np.asarray(case.value(-x))
            np.testing.assert_allclose(p - n, x, atol=1e-12)
            assert abs(np.vdot(p, n)) < 1e-11

    def test_exponential_moreau(self):
        cone, dual = value("projection_exponential_cone"), value("projection_dual_exponential_cone")
        for x in 3 * np.random.default_rng(4).normal(size=(50, 3)):
            p, q = np.asarray(cone(x)), np.asarray(dual(-x))
            np.testing.assert_allclose(p - q, x, atol=1e-14)
            assert abs(p @ q) < 1e-13
            assert exponential(p) < 1e-13
            assert exponential(q, sign=-1) < 1e-13

    def test_psd_by_numpy(self):
        x = np.random.default_rng(1).normal(size=(5, 5))
        w, v = np.linalg.eigh((x + x.T) / 2)
        np.testing.assert_allclose(projection.projection_psd_cone(x), v @ np.diag(np.maximum(w, 0)) @ v.T, atol=1e-13)

    @pytest.mark.parametrize(
        "eigenvalues", [[2, 2, 2, -1, -1], [1, 1, 1, 1, 1], [-1, -1, -2, -2, -2], [3, 3, -3, -3, 1]]
    )
    def test_psd_derivatives_at_repeated_eigenvalues(self, eigenvalues):
        rng = np.random.default_rng(2)
        q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
        x, a, b = q @ np.diag(eigenvalues) @ q.T, rng.normal(size=(5, 5)), rng.normal(size=(5, 5))
        step, project = 1e-6, projection.projection_psd_cone
        differences = (project(x + step * a) - project(x - step * a)) / (2 * step)
        np.testing.assert_allclose(psd_slope(x, a), differences, atol=1e-7)
        differences = (psd_slope(x + step * b, a) - psd_slope(x - step * b, a)) / (2 * step)
        np.testing.assert_allclose(psd_curve(x, a, b), differences, atol=1e-7)
        np.testing.assert_allclose(psd_hessians[0](x), psd_hessians[1](x), atol=1e-12)

    def test_exponential_against_extended_precision(self):
        rng, points = np.random.default_rng(0), []
        points += [rng.normal(size=3) * 10 ** rng.uniform(-3, 3) for _ in range(300)]
        points += [rng.normal(size=3) * 10 ** rng.uniform(-6, 6, 3) for _ in range(300)]
        points += [np.array(v, float) for v in itertools.product([-1, 0, 1, -1e-9, 1e-9, 20, -20], repeat=3)]
        found = np.asarray(jax.jit(jax.vmap(projection.projection_exponential_cone))(np.array(points)))
        for v, p in zip(points, found, strict=True):
            np.testing.assert_allclose(p, exact_exponential(v), atol=2e-15 * np.abs(v).max(), err_msg=str(v))

    def test_exponential_jacobian_is_that_of_a_projection(self):
        """Symmetric, eigenvalues in [0, 1], and J x = p, since the cone is one."""
        rng = np.random.default_rng(0)
        points = rng.normal(size=(300, 3)) * 10 ** rng.uniform(-3, 3, (300, 1))
        jacobians = np.asarray(jax.jit(jax.vmap(jax.jacrev(projection.projection_exponential_cone)))(points))
        for x, jacobian in zip(points, jacobians, strict=True):
            np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-14)
            assert -1e-14 < np.linalg.eigvalsh(jacobian).min() <= np.linalg.eigvalsh(jacobian).max() < 1 + 1e-14
            p = value("projection_exponential_cone")(x)
            np.testing.assert_allclose(jacobian @ x, p, atol=1e-14 * np.abs(x).max())


class TestProductsOfCones:
    cones = Cones(zero=2, nonnegative=3, second_order=(4, 1), semidefinite=(3, 1), exponential=2)

    def test_size(self):
        assert self.cones.size == 2 + 3 + 4 + 1 + 6 + 1 + 6

    def test_moreau(self):
        """x = Π_K(x) − Π_{K*}(−x), and the parts are orthogonal: both projections at once."""
        x = jnp.asarray(np.random.default_rng(0).normal(size=self.cones.size))
        inside, polar = jax.jit(lambda x: (self.cones.project(x), self.cones.project_dual(-x)))(x)
        np.testing.assert_allclose(inside - polar, x, atol=1e-12)
        assert abs(float(inside @ polar)) < 1e-12
        np.testing.assert_allclose(jax.jit(self.cones.project)(inside), inside, atol=1e-12)

    def test_a_matrix_keeps_its_inner_products(self):
        a, b = (m + m.T for m in np.random.default_rng(0).normal(size=(2, 4, 4)))
        np.testing.assert_allclose(vectorize(jnp.asarray(a)) @ vectorize(jnp.asarray(b)), np.sum(a * b), rtol=1e-12)
        np.testing.assert_allclose(matricize(vectorize(jnp.asarray(a)), 4), a, rtol=1e-12)

    def test_refusals(self):
        with pytest.raises(ValueError, match="must not be negative"):
            Cones(zero=-1)
        with pytest.raises(ValueError, match="has 23 rows"):
            self.cones.project(jnp.zeros(5))


def exact_exponential(v):
    """Bisection for x/y in extended precision."""
    r, s, t = (np.longdouble(a) for a in v)
    with np.errstate(all="ignore"):
        if (s > 0 and s * np.exp(r / s) <= t) or (s == 0 and r <= 0 and t >= 0):
            return np.asarray(v)
        if (r > 0 and r * np.exp(s / r - 1) <= -t) or (r == 0 and s <= 0 and t <= 0):
            return np.zeros(3)
        if r <= 0 and s <= 0:
            return np.array([r, 0, max(t, 0)], float)
        low = 1 - s / r if r > 0 else r / s - 3000
        high = r / s if s > 0 else low + 3000
        for _ in range(200):
            rho = (low + high) / 2
            y, m = ((rho - 1) * r + s) / (rho**2 - rho + 1), (r - rho * s) / (rho**2 - rho + 1)
            low, high = (low, rho) if y * np.exp(rho) - m * np.exp(-rho) > t else (rho, high)
        z = y * np.exp(rho) if rho < 0 else t + m * np.exp(-rho)
        y = z * np.exp(-rho) if rho > 0 else y
        return np.array([rho * y, y, z], float)


class TestPolyhedron:
    @pytest.mark.parametrize("kind", ["generic", "redundant", "integers", "at a vertex"])
    def test_optimal(self, kind):
        rng = np.random.default_rng(7)
        for _ in range(25):
            x, a, b, g, h = PROJECTIONS["projection_polyhedron"].point(rng)
            z = rng.normal(size=x.size)
            if kind == "redundant":
                a[1], g[1], g[2] = 2 * a[0], g[0], g[0]
                b, h = a @ z, g @ z
            if kind == "integers":
                a, g, z, x = rng.integers(-1, 2, a.shape), rng.integers(-1, 2, g.shape), np.round(z), np.round(x)
                b, h = a @ z, g @ z + rng.integers(0, 2, h.shape)
            if kind == "at a vertex":
                x, b, h = z, a @ z, g @ z
            p = np.asarray(value("projection_polyhedron")(x, *(np.asarray(c, float) for c in (a, b, g, h))))
            assert max(np.abs(a @ p - b).max(), (g @ p - h).max()) < 1e-11
            assert optimality_gap(x, p, np.concatenate([g[g @ p > h - 1e-9], a, -a])) < 1e-10

    def test_empty(self):
        x, a, b = np.ones(6), np.zeros((2, 6)), np.zeros(2)
        g = np.concatenate([np.eye(6)[:1], -np.eye(6)[:1]])
        rows = (a, b, g, -np.ones(2))
        assert np.isnan(jax.jit(lambda x: projection.projection_polyhedron(x, rows))(x)).all()
        with pytest.raises(ValueError, match="projection_polyhedron: the polyhedron is empty"):
            projection.projection_polyhedron(x, rows)

    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            ((None, None, np.eye(3), np.ones(3)), [0, 1, 1]),
            ((np.ones((1, 3)), np.zeros(1), None, None), [-1, 0, 1]),
            ((None, None, np.eye(3), np.array([np.inf, 0.5, np.inf])), [0, 0.5, 2]),
        ],
        ids=["inequalities alone", "equalities alone", "infinite bounds"],
    )
    def test_parts(self, rows, expected):
        found = jax.jit(lambda x: projection.projection_polyhedron(x, rows))(np.arange(3.0))
        np.testing.assert_allclose(found, expected, atol=1e-14)


class TestTransport:
    @pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
    @pytest.mark.parametrize("kind", ["generic", "uniform", "ties"])
    def test_optimal(self, scale, kind):
        rng = np.random.default_rng(3)
        sums = np.concatenate([np.kron(np.eye(3), np.ones(4)), np.kron(np.ones(3), np.eye(4))])
        for _ in range(15):
            x, a, b = PROJECTIONS["projection_transport"].point(rng)
            x = scale * (np.round(x) if kind == "ties" else x)
            if kind == "uniform":
                a, b = np.ones(3) / 3, np.ones(4) / 4
            p = np.asarray(value("projection_transport")(x, a, b))
            assert max(np.abs(p.sum(1) - a).max(), np.abs(p.sum(0) - b).max(), -p.min()) < 1e-14
            normals = np.concatenate([-np.eye(12)[p.ravel() < 1e-12], sums, -sums])
            assert optimality_gap(x.ravel(), p.ravel(), normals) < 1e-12 * max(scale, 1)

    @pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
    def test_entropic_optimal(self, scale):
        """log P − X is a sum of potentials: its interactions vanish where P is not negligible."""
        rng = np.random.default_rng(3)
        for _ in range(15):
            x, a, b = PROJECTIONS["kl_projection_transport"].point(rng)
            p = np.asarray(value("kl_projection_transport")(scale * x, a, b))
            assert max(np.abs(p.sum(1) - a).max(), np.abs(p.sum(0) - b).max()) < 1e-11
            seen = p.ravel() > 1e-200
            sums = np.concatenate([np.kron(np.eye(3), np.ones(4)), np.kron(np.ones(3), np.eye(4))])[:, seen].T
            gap = np.log(p.ravel()[seen]) - scale * x.ravel()[seen]
            assert np.abs(gap - sums @ np.linalg.lstsq(sums, gap, rcond=None)[0]).max() < 1e-11 * max(scale, 1)

    @pytest.mark.parametrize("name", ["projection_transport", "kl_projection_transport"])
    def test_forbidden_entries(self, name):
        x = np.array([[0.0, -np.inf, 1, 0], [0, 1, 0, 2], [1, 0, -np.inf, 0]])
        a, b = np.array([0.3, 0.3, 0.4]), np.array([0.1, 0.2, 0.3, 0.4])
        p = np.asarray(value(name)(x, a, b))
        assert (p[np.isinf(x)] == 0).all()
        assert np.abs(p.sum(1) - a).max() < 1e-12
        assert all(np.isfinite(slope).all() for slope in PROJECTIONS[name].pull((x, a, b), np.ones_like(x) * x[0, 2]))

    @pytest.mark.parametrize("name", ["projection_transport", "kl_projection_transport"])
    @pytest.mark.parametrize("a", [[1.0, 1, 1], [-0.5, 1, 0.5]])
    def test_infeasible_is_nan(self, name, a):
        case, point = PROJECTIONS[name], (np.ones((3, 4)), np.array(a), np.full(4, 0.25))
        assert np.isnan(case.value(*point)).all()
        assert np.isnan(case.pull(point, np.ones((3, 4)))[0]).all()

    @pytest.mark.parametrize("name", ["projection_{}", "kl_projection_{}"])
    def test_birkhoff_is_transport_of_ones(self, name):
        x, ones = np.random.default_rng(0).normal(size=(4, 4)), np.ones(4)
        expected = jax.jit(getattr(projection, name.format("transport")))(x, (ones, ones))
        np.testing.assert_allclose(value(name.format("birkhoff"))(x), expected, atol=1e-13)

    def test_refused(self):
        x, a, b = np.ones((3, 4)), np.ones(3) / 3, np.ones(4) / 4
        with pytest.raises(ValueError, match=r"marginal b must have shape \(4,\)"):
            projection.projection_transport(x, (a, a))
        with pytest.raises(ValueError, match="make_solver must be None"):
            projection.kl_projection_transport(x, (a, b), make_solver=len)
        with pytest.raises(ValueError, match=r"sim_matrix must have shape \(3, 3\)"):
            projection.projection_birkhoff(x)


class TestBoxSection:
    def test_against_bisection(self):
        rng = np.random.default_rng(5)
        for trial in range(60):
            x, alpha, beta, w, c = PROJECTIONS["projection_box_section"].point(rng)
            if trial % 3 == 1:
                alpha[1], beta[2], w[3] = -np.inf, np.inf, 0
            if trial % 3 == 2:
                x, alpha, beta, w, c = np.round(x), np.zeros(6), np.ones(6), np.ones(6), 3.0
            low, high = -1e4, 1e4
            for _ in range(100):
                tau = (low + high) / 2
                low, high = (tau, high) if w @ np.clip(x + tau * w, alpha, beta) < c else (low, tau)
            found = value("projection_box_section")(x, alpha, beta, w, c)
            np.testing.assert_allclose(found, np.clip(x + low * w, alpha, beta), atol=1e-10)

    def test_empty(self):
        limits = (0.0, 1.0, 1.0, 10.0)
        assert np.isnan(projection.projection_box_section(np.ones(3), limits)).all()
        with pytest.raises(ValueError, match="projection_box_section: the section of the box is empty"):
            projection.projection_box_section(np.ones(3), limits, check_feasible=True)


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_isotonic_against_scikit_learn(increasing, tied):
    rng = np.random.default_rng(0)
    fit = jax.jit(lambda x: projection.projection_isotonic(x, increasing))
    clipped = jax.jit(lambda x: projection.projection_isotonic(x, increasing, -0.1, 0.2))
    for _ in range(20):
        x = rng.integers(-2, 3, 30).astype(float) if tied else rng.normal(size=30)
        np.testing.assert_allclose(fit(x), isotonic_regression(x, increasing=increasing), atol=1e-13)
        expected = isotonic_regression(x, increasing=increasing, y_min=-0.1, y_max=0.2)
        np.testing.assert_allclose(clipped(x), expected, atol=1e-13)


def test_affine_set_with_redundant_rows():
    rng = np.random.default_rng(0)
    rows, x = rng.normal(size=(2, 5)), rng.normal(size=5)
    expected = projection.projection_affine_set(x, (rows, np.ones(2)))
    found = projection.projection_affine_set(x, (rows[[0, 1, 0]], np.ones(3)))
    np.testing.assert_allclose(found, expected, atol=1e-13)
    assert np.isnan(projection.projection_affine_set(x, (rows[[0, 1, 0]], np.arange(3.0)))).all()


def test_sparse_simplex_is_the_best_of_all_supports():
    x = np.random.default_rng(0).normal(size=6)
    found = projection.projection_sparse_simplex(x, 2)
    best = np.inf
    for support in itertools.combinations(range(6), 2):
        z = np.zeros(6)
        z[list(support)] = projection.projection_simplex(x[list(support)])
        best = min(best, np.linalg.norm(x - z))
    assert np.linalg.norm(x - found) == pytest.approx(best, abs=1e-14)
    approximate = projection.projection_sparse_simplex(x, 2, True)
    assert float(approximate.sum()) == pytest.approx(1.0, abs=1e-14)


class TestTrees:
    @pytest.mark.parametrize("name", ["l2_sphere", "l2_ball", "linf_ball"])
    def test_one_vector_in_two_leaves(self, name):
        project = getattr(projection, f"projection_{name}")
        found = project({"a": jnp.array([3.0, -1.0]), "b": jnp.array([[2.0]])}, 1.5)
        np.testing.assert_allclose(np.append(found["a"], found["b"]), project(jnp.array([3.0, -1.0, 2.0]), 1.5))

    @pytest.mark.parametrize("name", ["hyperplane", "halfspace"])
    def test_flat(self, name):
        project = getattr(projection, f"projection_{name}")
        x, a = (jnp.array([3.0, 1.0]), jnp.array(2.0)), (jnp.array([1.0, 2.0]), jnp.array(-1.0))
        found = project(x, (a, 1.0))
        np.testing.assert_allclose(
            np.append(*found), project(jnp.array([3.0, 1.0, 2.0]), (jnp.array([1.0, 2.0, -1.0]), 1.0)), atol=1e-15
        )

    def test_hypercube(self):
        found = projection.projection_hypercube({"a": jnp.array([-1.0, 0.5, 3.0])}, 2.0)
        assert found["a"].tolist() == [0, 0.5, 2]


class TestRefused:
    @pytest.mark.parametrize("name", ["simplex", "l1_sphere", "l1_ball", "l2_sphere", "l2_ball", "linf_ball"])
    def test_negative_size(self, name):
        project = getattr(projection, f"projection_{name}")
        with pytest.raises(ValueError, match="must be at least 0, got -1"):
            project(jnp.ones(3), -1.0)
        assert np.isnan(project(jnp.ones(3), jnp.array(-1.0))).all()
        assert np.isnan(jax.grad(lambda r: project(jnp.ones(3), r).sum())(-1.0))

    @pytest.mark.parametrize(
        "name", ["simplex", "l1_ball", "isotonic", "second_order_cone", "psd_cone", "exponential_cone"]
    )
    def test_shape(self, name):
        with pytest.raises(ValueError, match=rf"projection_{name}.*use jax.vmap"):
            getattr(projection, f"projection_{name}")(jnp.ones((2, 3)))

    def test_empty_sets(self):
        x = jnp.ones(2)
        assert np.isnan(projection.projection_box(x, (1.0, 0.0))).all()
        assert np.isnan(projection.projection_isotonic(x, True, 1.0, 0.0)).all()
        assert np.isnan(projection.projection_hyperplane(x, (0 * x, 1.0))).all()
        assert np.isnan(projection.projection_halfspace(x, (0 * x, -1.0))).all()

    def test_rows_without_right_side(self):
        with pytest.raises(ValueError, match="A and b go together"):
            projection.projection_polyhedron(jnp.ones(2), (jnp.ones((1, 2)), None, None, None))
        with pytest.raises(ValueError, match=r"h must have shape \(1,\)"):
            projection.projection_polyhedron(jnp.ones(2), (None, None, jnp.ones((1, 2)), jnp.ones(2)))
