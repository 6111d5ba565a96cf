"""Linear solvers, one by one: what each method promises beyond the contract."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_cases import (
    BROKEN,
    INDEFINITE,
    LIMIT,
    NEGATIVE,
    NONSYMMETRIC,
    OK,
    PROBLEMS,
    RHS,
    SINGULAR,
    SPD,
    STUCK,
    N,
    null_vector,
    relative_error,
    solve,
    title,
    with_spectrum,
)
from problems import status_of

from bilevel import Status, linear
from bilevel.linear import CG, GMRES, LSMR, MINRES, Damped, Direct, Neumann, NormalCG, Nystrom, Operator, Refined

pytestmark = [pytest.mark.slice(10), pytest.mark.usefixtures("x64")]


class TestOperator:
    def test_transpose(self):
        rng = np.random.default_rng(0)
        a, v, w = rng.normal(size=(N, N)), rng.normal(size=N), rng.normal(size=N)
        transposed = Operator(lambda v: jnp.asarray(a) @ v).transpose(jnp.zeros(N))
        np.testing.assert_allclose(transposed.matvec(w), a.T @ w, rtol=1e-12)
        assert float(w @ (a @ v)) == pytest.approx(float(transposed.matvec(w) @ v))
        assert transposed.structure == "general"

    def test_a_self_adjoint_one_is_its_transpose_and_one_declared_symmetric_is_not_trusted(self):
        operator = Operator(lambda v: v, "symmetric", self_adjoint=True)
        assert operator.transpose(jnp.zeros(N)) is operator
        declared = Operator(lambda v: jnp.asarray(NONSYMMETRIC) @ v, "symmetric").transpose(jnp.zeros(N))
        assert declared.structure == "symmetric"
        np.testing.assert_allclose(declared.matvec(jnp.asarray(RHS)), NONSYMMETRIC.T @ RHS, rtol=1e-12)

    def test_transpose_couples_leaves(self):
        like = {"a": jnp.zeros(2), "b": jnp.zeros(())}
        operator = Operator(lambda v: {"a": v["b"] * jnp.arange(2.0), "b": jnp.sum(v["a"]) * 3})
        found = operator.transpose(like).matvec({"a": jnp.array([0.0, 2.0]), "b": jnp.array(1.0)})
        assert found["a"].tolist() == [3.0, 3.0]
        assert float(found["b"]) == 2.0

    def test_transpose_keeps_the_precision(self):
        """A product that promotes has a transpose all the same."""
        operator = Operator(lambda v: np.ones((2, 2)) @ v)
        found = operator.transpose(jnp.zeros(2, "float32")).matvec(jnp.ones(2, "float32"))
        assert found.dtype == "float32"

    def test_damped(self):
        operator = linear.damped(Operator(lambda v: SPD @ v, "symmetric", singular=True), 0.5)
        np.testing.assert_allclose(operator.matvec(RHS), (SPD + 0.5 * np.eye(N)) @ RHS)
        assert operator.structure == "symmetric"
        assert not operator.singular


class TestDirect:
    @pytest.mark.parametrize("structure", ["general", "symmetric", "positive_definite"])
    def test_singular_systems_have_the_least_answer_of_least_squares(self, structure):
        for name, status, residual in (("singular consistent", OK, 0), ("singular inconsistent", STUCK, np.sqrt(N))):
            a, b = PROBLEMS[name]
            found = solve(Direct(), structure, a, b, singular=True)
            assert status_of(found) == status
            assert relative_error(found.value, np.linalg.pinv(a) @ b) < 1e-10
            assert float(found.residual) == pytest.approx(residual, abs=1e-9)

    def test_singular_values_of_a_nonsymmetric_matrix(self):
        a = np.outer(np.arange(1.0, N + 1), RHS)
        found = solve(Direct(method="svd"), "general", a, 3.0 * np.arange(1, N + 1))
        assert status_of(found) == OK
        assert relative_error(found.value, 3 * RHS / (RHS @ RHS)) < 1e-12

    def test_choice(self):
        def chosen(structure, singular):
            return Direct().choose(Operator(lambda v: v, structure, singular))

        assert [chosen(s, False) for s in ("general", "symmetric", "positive_definite")] == ["lu", "lu", "cholesky"]
        assert [chosen(s, True) for s in ("general", "symmetric", "positive_definite")] == ["svd"] * 3

    @pytest.mark.parametrize("method", ["lu", "qr"])
    def test_zero_pivot(self, method):
        found = solve(Direct(method=method), "general", np.diag(np.r_[0.0, np.ones(N - 1)]), RHS)
        assert status_of(found) == BROKEN

    def test_cholesky_can_be_asked_for(self):
        assert status_of(solve(Direct(method="cholesky"), "general", SPD, RHS)) == OK
        assert status_of(solve(Direct(method="cholesky"), "general", INDEFINITE, RHS)) == NEGATIVE

    def test_unknown_method(self):
        with pytest.raises(
            ValueError, match=r"linear\.Direct: method must be auto, cholesky, lu, qr or svd, got 'eig'"
        ):
            Direct(method="eig")

    def test_zero_matrix(self):
        found = solve(Direct(), "symmetric", np.zeros((N, N)), RHS, singular=True)
        assert status_of(found) == STUCK
        assert np.array_equal(found.value, np.zeros(N))


class TestMinres:
    def test_one_step_for_each_distinct_eigenvalue(self):
        a = with_spectrum(np.r_[-2 * np.ones(4), np.ones(4), 3 * np.ones(4)])
        found = solve(MINRES(), "symmetric", a, RHS)
        assert status_of(found) == OK
        assert int(found.steps) == 3

    def test_residuals_never_rise(self):
        norms = [float(solve(MINRES(max_steps=k), "symmetric", INDEFINITE, RHS).residual) for k in (4, 5, 6)]
        assert np.linalg.norm(RHS) > norms[0] >= norms[1] >= norms[2]
        dimension = 5
        krylov = np.stack([np.linalg.matrix_power(INDEFINITE, k) @ RHS for k in range(dimension)], axis=1)
        best = RHS - INDEFINITE @ krylov @ np.linalg.lstsq(INDEFINITE @ krylov, RHS, rcond=None)[0]
        assert norms[1] == pytest.approx(np.linalg.norm(best), rel=1e-8)

    def test_preconditioner_must_be_definite(self):
        found = MINRES(preconditioner=lambda v: -v).solve(Operator(lambda v: SPD @ v, "symmetric"), jnp.asarray(RHS))
        assert status_of(found) == BROKEN


class TestLeastNorm:
    @pytest.mark.parametrize("solver", [LSMR(), NormalCG()], ids=title)
    def test_nonsymmetric_singular(self, solver):
        rng = np.random.default_rng(3)
        a = rng.normal(size=(N, 5)) @ rng.normal(size=(5, N))
        for b in (a @ rng.normal(size=N), rng.normal(size=N)):
            found = solve(solver, "general", a, b, singular=True)
            assert relative_error(found.value, np.linalg.pinv(a) @ b) < 1e-8
            assert status_of(found) == (OK if np.linalg.matrix_rank(np.c_[a, b]) == 5 else STUCK)

    def test_nothing_to_gain(self):
        found = solve(LSMR(), "symmetric", SINGULAR, null_vector(), singular=True)
        assert status_of(found) == STUCK
        assert np.linalg.norm(found.value) < 1e-10


class TestNeumann:
    def test_truncated_series(self):
        found = solve(Neumann(max_steps=3, step=0.05), "positive_definite", SPD, RHS)
        term, total = RHS, 0
        for _ in range(3):
            total, term = total + 0.05 * term, term - 0.05 * SPD @ term
        np.testing.assert_allclose(found.value, total, rtol=1e-12)
        assert status_of(found) == LIMIT
        assert int(found.matvecs) == 3 + 2

    @pytest.mark.parametrize(
        ("solver", "matrix", "b", "status", "steps"),
        [
            (Neumann(step=1.0), SPD, RHS, BROKEN, range(10)),
            (Neumann(), -SPD, RHS, BROKEN, range(1000)),
            (Neumann(), SINGULAR, null_vector(), STUCK, [1]),
        ],
        ids=["a step that diverges", "a wrong sign", "terms that stay"],
    )
    def test_series_without_a_sum(self, solver, matrix, b, status, steps):
        found = solve(solver, "general", matrix, b)
        assert status_of(found) == status
        assert int(found.steps) in steps
        if status == BROKEN:
            assert np.array_equal(found.value, np.zeros(N))

    def test_garbage(self):
        for name in ("step", "max_steps", "power_steps"):
            with pytest.raises(ValueError, match=f"linear.Neumann: {name} must be positive, got -1"):
                Neumann(**{name: -1})


class TestNystrom:
    low_rank = with_spectrum(np.r_[np.zeros(N - 3), 1.0, 5.0, 9.0])

    def test_exact_on_low_rank_plus_ridge(self):
        found = solve(Nystrom(rank=3, ridge=0.1), "positive_definite", self.low_rank, RHS)
        expected = np.linalg.solve(self.low_rank + 0.1 * np.eye(N), RHS)
        assert relative_error(found.value, expected) < 1e-8
        assert status_of(found) == LIMIT
        assert int(found.matvecs) == 3 + 3

    def test_judged_on_the_system_itself(self):
        found = solve(Nystrom(rank=3, ridge=0.1), "positive_definite", self.low_rank + 0.1 * np.eye(N), RHS)
        residual = np.linalg.norm((self.low_rank + 0.1 * np.eye(N)) @ np.asarray(found.value) - RHS)
        np.testing.assert_allclose(found.residual, residual, rtol=1e-6)
        assert status_of(found) == LIMIT

    def test_corrections(self):
        a = with_spectrum(np.r_[np.linspace(1, 1.5, N - 4), 50, 100, 200, 400])
        found = solve(Nystrom(rank=6, max_steps=100), "positive_definite", a, RHS)
        assert status_of(found) == OK
        assert 1 < int(found.steps) < 100
        assert relative_error(found.value, np.linalg.solve(a, RHS)) < 1e-8

    def test_seed_changes_the_sketch(self):
        first, second = (solve(Nystrom(rank=3, seed=s), "positive_definite", SPD, RHS).value for s in (0, 1))
        assert not np.allclose(first, second)


class TestDamped:
    @pytest.mark.parametrize("solver", [Direct(), CG(), GMRES()], ids=title)
    def test_answer_of_the_damped_system(self, solver):
        found = solve(Damped(solver=solver, ridge=0.5), "positive_definite", SINGULAR, RHS)
        assert status_of(found) == OK
        assert relative_error(found.value, np.linalg.solve(SINGULAR + 0.5 * np.eye(N), RHS)) < 1e-8
        assert float(found.residual) < 1e-9

    @pytest.mark.parametrize(
        ("solver", "ridge"),
        [(Damped(solver=Damped(ridge=0.5), ridge=1.0), 1.5), (Refined(solver=Damped(ridge=0.5)), 0.5)],
    )
    def test_nested(self, solver, ridge):
        found = solve(solver, "positive_definite", SPD, RHS)
        assert status_of(found) == OK
        assert relative_error(found.value, np.linalg.solve(SPD + ridge * np.eye(N), RHS)) < 1e-10

    def test_derivative(self):
        def value(t):
            operator = Operator(lambda v: (jnp.asarray(NONSYMMETRIC) + t * jnp.eye(N)) @ v)
            return linear.differentiable_solve(Damped(ridge=0.5), operator, jnp.asarray(RHS)).value.sum()

        inverse = np.linalg.inv(NONSYMMETRIC + 0.5 * np.eye(N))
        expected = -np.ones(N) @ inverse @ inverse @ RHS
        assert float(jax.grad(value)(0.0)) == pytest.approx(expected, rel=1e-9)

    def test_tolerances_come_from_the_solver(self):
        damped = Damped(solver=CG(rtol=1e-3, atol=1e-5))
        assert damped.tolerances == (1e-3, 1e-5)
        assert Damped(solver=damped, ridge=1.0, atol=1e-2).tolerances == (1e-3, 1e-2)
        assert Damped(solver=CG(rtol=1e-3), rtol=1e-6).tolerances == (1e-6, 0.0)
        assert dataclasses.replace(damped, solver=CG(rtol=1e-7)).tolerances == (1e-7, 0.0)
        assert float(damped.tolerance(jnp.array([3.0, 4.0]))) == pytest.approx(5e-3)

    def test_garbage(self):
        for kind in (Damped, Refined):
            with pytest.raises(TypeError, match=rf"linear\.{kind.__name__}: solver must be"):
                kind(solver="cg")
        with pytest.raises(ValueError, match=r"linear\.Damped: ridge must be positive"):
            Damped(ridge=0.0)


class TestRefined:
    hard = with_spectrum(np.logspace(-5, 0, N))

    def test_low_precision_alone_is_not_enough(self):
        found = solve(Refined(max_steps=1), "positive_definite", self.hard, RHS)
        assert status_of(found) == LIMIT
        assert float(found.residual) > 1e-8

    @pytest.mark.parametrize("solver", [Direct(), CG(), MINRES()], ids=title)
    def test_reaches_the_high_precision(self, solver):
        found = solve(Refined(solver=solver), "positive_definite", self.hard, RHS)
        assert status_of(found) == OK
        assert 2 <= int(found.steps) <= 10
        assert found.value.dtype == "float64"
        assert relative_error(found.value, np.linalg.solve(self.hard, RHS)) < 1e-8

    def test_hopeless_condition_stagnates(self):
        found = solve(
            Refined(solver=Direct(method="lu")), "positive_definite", with_spectrum(np.logspace(-13, 0, N)), RHS
        )
        assert status_of(found) in (STUCK, LIMIT)
        assert int(found.steps) <= 10

    def test_factor_is_made_once_in_low_precision(self):
        operator = Operator(lambda v: jnp.asarray(SPD) @ v, "positive_definite")
        text = str(jax.make_jaxpr(lambda b: Refined().solve(operator, b).value)(jnp.asarray(RHS)))
        (line,) = (line for line in text.splitlines() if "= cholesky" in line)
        assert "f32[12,12]" in line

    def test_plain_correction(self):
        found = solve(Refined(dtype="float64"), "positive_definite", self.hard, RHS)
        assert status_of(found) == OK
        assert int(found.steps) == 1

    def test_garbage(self):
        with pytest.raises(ValueError, match=r"linear\.Refined: dtype must be float64, float32, bfloat16 or float16"):
            Refined(dtype="int8")


class TestBlock:
    columns = np.random.default_rng(4).normal(size=(4, N))

    @pytest.mark.parametrize("solver", [Direct(), CG(), GMRES(), MINRES(), LSMR(), Refined(), linear.Auto()], ids=title)
    def test_as_one_by_one(self, solver):
        operator = Operator(lambda v: jnp.asarray(SPD) @ v, "positive_definite")
        found = jax.jit(lambda b: solver.solve_block(operator, b))(self.columns)
        assert found.status.tolist() == [OK] * 4
        assert found.residual.shape == found.steps.shape == found.matvecs.shape == (4,)
        for i, b in enumerate(self.columns):
            alone = solve(solver, "positive_definite", SPD, b)
            assert (int(found.steps[i]), int(found.matvecs[i])) == (int(alone.steps), int(alone.matvecs))
            assert relative_error(found.value[i], np.linalg.solve(SPD, b)) < 1e-8

    def test_factors_once(self):
        operator = Operator(lambda v: jnp.asarray(SPD) @ v, "positive_definite")
        text = str(jax.make_jaxpr(lambda b: Direct().solve_block(operator, b).value)(self.columns))
        (line,) = (line for line in text.splitlines() if "= cholesky" in line)
        assert "f64[12,12]" in line
        assert "f64[4,12,12]" not in text

    def test_statuses_are_their_own(self):
        bad = np.array(self.columns)
        bad[1, 0], bad[2] = np.nan, 0
        found = CG().solve_block(Operator(lambda v: SPD @ v, "positive_definite"), jnp.asarray(bad))
        assert found.status.tolist() == [OK, Status.NON_FINITE, OK, OK]
        assert found.steps[2] == 0
        assert np.array_equal(found.value[2], np.zeros(N))

    def test_starts(self):
        exact = np.linalg.solve(SPD, self.columns.T).T
        found = CG().solve_block(Operator(lambda v: SPD @ v), jnp.asarray(self.columns), jnp.asarray(exact))
        assert found.steps.tolist() == [0] * 4

    def test_trees_and_damping(self):
        b = {"a": jnp.ones((3, 2)), "b": jnp.arange(3.0)}
        found = Damped(ridge=1.0).solve_block(lambda v: jax.tree.map(lambda x: 3 * x, v), b)
        np.testing.assert_allclose(found.value["a"], 0.25 * np.ones((3, 2)))
        np.testing.assert_allclose(found.value["b"], np.arange(3) / 4)
        assert found.status.tolist() == [OK] * 3

    def test_no_common_axis(self):
        for b in ({"a": np.ones((3, 2)), "b": np.ones(2)}, np.ones(())):
            with pytest.raises(ValueError, match="solve_block: every leaf of b needs the same leading axis"):
                CG().solve_block(lambda v: v, jax.tree.map(jnp.asarray, b))

    def test_starts_of_another_shape(self):
        with pytest.raises(ValueError, match="init must have the structure and shapes of b"):
            CG().solve_block(lambda v: v, jnp.ones((3, 2)), jnp.ones((2, 2)))
