"""Linear solvers: transformations, derivatives, and what a failure does to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_cases import (
    INDEFINITE,
    NONSYMMETRIC,
    OK,
    PROBLEMS,
    RHS,
    SINGULAR,
    SPD,
    SYMMETRIC_ONLY,
    N,
    each_solver,
    orthogonal,
    others,
    relative_error,
    solve,
    solve_lanes,
    title,
)
from problems import status_of

from bilevel import Status
from bilevel.linear import CG, GMRES, Auto, Damped, Direct, Neumann, Operator, differentiable_solve

pytestmark = [pytest.mark.slice(10), pytest.mark.usefixtures("x64")]


class TestTransformations:
    @each_solver
    def test_one_bad_lane_leaves_the_others_alone(self, solver):
        bad = [np.r_[RHS[:-1], value] for value in (np.nan, np.inf)]
        for alone in bad:
            assert status_of(solve(solver, "positive_definite", SPD, alone)) == Status.NON_FINITE
        b = np.stack([RHS, *bad, RHS[::-1]])
        found = solve_lanes(solver, "positive_definite", np.stack([SPD, SPD, SPD, 2 * SPD]), b)
        assert found.status.tolist() == [OK, Status.NON_FINITE, Status.NON_FINITE, OK]
        assert relative_error(found.value[0], np.linalg.solve(SPD, b[0])) < 1e-8
        assert relative_error(found.value[3], np.linalg.solve(2 * SPD, b[3])) < 1e-8

    @pytest.mark.parametrize("solver", [CG(), Direct(), Auto(), Auto(direct_below=0)], ids=title)
    def test_one_indefinite_lane(self, solver):
        found = solve_lanes(solver, "positive_definite", np.stack([SPD, INDEFINITE, 3 * SPD]), np.stack([RHS] * 3))
        assert found.status.tolist() == [OK, Status.NEGATIVE_CURVATURE, OK]
        assert relative_error(found.value[0], np.linalg.solve(SPD, RHS)) < 1e-8
        assert relative_error(found.value[2], np.linalg.solve(3 * SPD, RHS)) < 1e-8
        true = np.linalg.norm(INDEFINITE @ np.asarray(found.value[1]) - RHS)
        np.testing.assert_allclose(found.residual[1], true, rtol=1e-9)

    @pytest.mark.parametrize("solver", others(*SYMMETRIC_ONLY, Neumann, Damped), ids=title)
    def test_one_singular_lane(self, solver):
        b = np.stack([RHS, PROBLEMS["singular inconsistent"][1], RHS])
        found = solve_lanes(solver, "general", np.stack([NONSYMMETRIC, SINGULAR, INDEFINITE]), b)
        assert (found.status == OK).tolist() == [True, False, True]
        assert relative_error(found.value[0], np.linalg.solve(NONSYMMETRIC, RHS)) < 1e-8
        assert relative_error(found.value[2], np.linalg.solve(INDEFINITE, RHS)) < 1e-8

    @pytest.mark.parametrize("solver", [Direct(), CG()], ids=title)
    def test_jit_changes_nothing(self, solver):
        eager = solver.solve(Operator(lambda v: jnp.asarray(SPD) @ v, "positive_definite"), jnp.asarray(RHS))
        jitted = solve(solver, "positive_definite", SPD, RHS)
        assert int(eager.status) == int(jitted.status) == Status.CONVERGED
        assert (int(eager.steps), int(eager.matvecs)) == (int(jitted.steps), int(jitted.matvecs))
        np.testing.assert_allclose(eager.value, jitted.value, rtol=1e-9)


@functools.partial(jax.jit, static_argnums=(0, 1))
def differentiable(solver, structure, a, b, init=None):
    return differentiable_solve(solver, Operator(lambda v: a @ v, structure), b, init).value


class TestDerivatives:
    @each_solver
    def test_matrix_and_right_hand_side(self, solver):
        """Both modes against dx = A⁻¹ (db − dA x); A is nonsymmetric where the solver takes it."""
        definite = isinstance(solver, SYMMETRIC_ONLY)
        a, structure = (SPD, "positive_definite") if definite else (NONSYMMETRIC, "general")
        rng = np.random.default_rng(2)
        da, db, w = rng.normal(size=(N, N)), rng.normal(size=N), rng.normal(size=N)

        @jax.jit
        def both(a, b):
            _, pull = jax.vjp(functools.partial(differentiable, solver, structure), a, b)
            return jax.jvp(functools.partial(differentiable, solver, structure), (a, b), (da, db))[1], *pull(w)

        forward, wrt_a, wrt_b = both(a, RHS)
        x, u = np.linalg.solve(a, RHS), np.linalg.solve(a.T, w)
        np.testing.assert_allclose(forward, np.linalg.solve(a, db - da @ x), atol=1e-8)
        np.testing.assert_allclose(wrt_b, u, atol=1e-8)
        np.testing.assert_allclose(wrt_a, -np.outer(u, x), atol=1e-8)

    @pytest.mark.parametrize("solver", [Direct(), CG(), GMRES()], ids=title)
    def test_whole_jacobian(self, solver):
        """And none with respect to the start."""
        a, structure = (SPD, "positive_definite") if isinstance(solver, CG) else (NONSYMMETRIC, "general")
        answer = functools.partial(differentiable, solver, structure, a)
        both = jax.jit(lambda *args: [f(answer, argnums=(0, 1))(*args) for f in (jax.jacfwd, jax.jacrev)])
        for wrt_b, wrt_init in both(RHS, np.ones(N)):
            np.testing.assert_allclose(wrt_b, np.linalg.inv(a), atol=1e-8)
            assert np.array_equal(wrt_init, np.zeros((N, N)))

    @pytest.mark.parametrize(
        ("solver", "structure", "matrix", "jacobian"),
        [(CG(), "positive_definite", SPD, jax.jacfwd), (Direct(), "general", NONSYMMETRIC, jax.jacrev)],
        ids=["CG-jacfwd", "Direct-jacrev"],
    )
    def test_second_derivative(self, solver, structure, matrix, jacobian):
        def along(t):
            return differentiable(solver, structure, matrix + t * jnp.eye(N), RHS) @ jnp.ones(N)

        inverse = np.linalg.inv(matrix)
        expected = 2 * np.ones(N) @ inverse @ inverse @ inverse @ RHS
        assert float(jax.jit(jacobian(jax.grad(along)))(0.0)) == pytest.approx(expected, rel=1e-7)

    def test_lanes(self):
        def one(t, b):
            return jax.jacrev(lambda t: differentiable(Direct(), "general", t * jnp.asarray(NONSYMMETRIC), b))(t)

        scales = np.array([1.0, 2.0])
        found = jax.vmap(one)(scales, np.stack([RHS, RHS[::-1]]))
        for i, b in enumerate([RHS, RHS[::-1]]):
            assert relative_error(found[i], -np.linalg.solve(NONSYMMETRIC, b) / scales[i] ** 2) < 1e-8

    def test_record_of_the_solve(self):
        operator = Operator(lambda v: SPD @ v, "positive_definite")
        found = jax.jit(lambda b: differentiable_solve(CG(max_steps=1), operator, b))(RHS)
        assert status_of(found) == Status.MAX_STEPS
        np.testing.assert_allclose(found.residual, np.linalg.norm(SPD @ np.asarray(found.value) - RHS), rtol=1e-9)


class TestNanOnFailure:
    """One step of CG is enough for an eigenvector and for nothing else."""

    easy = orthogonal()[:, 0]
    hard = RHS

    @staticmethod
    @functools.partial(jax.jit, static_argnames="nan")
    def value(b, nan=True):
        operator = Operator(lambda v: SPD @ v, "positive_definite")
        return differentiable_solve(CG(max_steps=1), operator, b, nan_on_failure=nan).value

    def test_value(self):
        assert np.isfinite(self.value(self.easy)).all()
        assert np.isnan(self.value(self.hard)).all()
        assert np.isfinite(self.value(self.hard, nan=False)).all()

    @pytest.mark.parametrize("mode", ["forward", "reverse"])
    def test_derivative(self, mode):
        def slope(way, nan):
            function = functools.partial(self.value, nan=nan)
            if mode == "forward":
                value, slope = jax.jvp(function, (self.easy,), (way,))
            else:
                value, pullback = jax.vjp(function, self.easy)
                (slope,) = pullback(jnp.asarray(way))
            assert np.isfinite(value).all()
            return slope

        assert np.isnan(slope(self.hard, True)).all()
        assert np.isfinite(slope(self.easy, True)).all()
        assert np.isfinite(slope(self.hard, False)).all()
