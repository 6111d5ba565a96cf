"""Linear solvers: one conformance suite for every solver that `bilevel.linear` exports."""

from __future__ import annotations

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from linear_cases import (
    INDEFINITE,
    ITERATIVE,
    MORE,
    NONSYMMETRIC,
    PROBLEMS,
    RHS,
    RIGHT_HALF_PLANE_ONLY,
    SOLVERS,
    SPD,
    STRUCTURES,
    SYMMETRIC_ONLY,
    N,
    allowed,
    dense,
    each_solver,
    others,
    posed,
    relative_error,
    settings,
    solve,
    status_of,
    title,
)

from bilevel import Status, linear
from bilevel.linear import (
    CG,
    GMRES,
    LSMR,
    MINRES,
    Auto,
    BiCGStab,
    Damped,
    Direct,
    LinearSolver,
    Neumann,
    NormalCG,
    Nystrom,
    Operator,
    Wrapped,
    as_solver,
)

pytestmark = pytest.mark.slice(6)


def test_every_exported_solver_is_in_the_suite():
    exported = {
        value
        for name in linear.__all__
        if inspect.isclass(value := getattr(linear, name)) and issubclass(value, LinearSolver)
    }
    assert exported - {LinearSolver} == {type(solver) for solver in SOLVERS}


@pytest.mark.usefixtures("x64")
class TestAnswer:
    @each_solver
    def test_positive_definite(self, solver):
        found = solve(solver, "positive_definite", SPD, RHS)
        assert status_of(found) == Status.CONVERGED
        assert relative_error(found.value, np.linalg.solve(SPD, RHS)) < 1e-8

    @pytest.mark.parametrize(
        ("solver", "matrix", "structure"),
        [
            *((solver, "indefinite", "symmetric") for solver in others(*RIGHT_HALF_PLANE_ONLY)),
            *((solver, "nonsymmetric", "general") for solver in others(*SYMMETRIC_ONLY)),
        ],
        ids=title,
    )
    def test_other_matrices(self, solver, matrix, structure):
        a, b = PROBLEMS[matrix]
        found = solve(solver, structure, a, b)
        assert status_of(found) == Status.CONVERGED
        assert relative_error(found.value, np.linalg.solve(a, b)) < 1e-8

    @pytest.mark.parametrize(("solver", "structure"), settings(SOLVERS + MORE), ids=title)
    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_converged_is_never_a_lie(self, solver, structure, problem):
        a, b = PROBLEMS[problem]
        found = solve(solver, structure, a, b)
        a, x = posed(solver, a), np.asarray(found.value)
        residual = np.linalg.norm(a @ x - b)
        rounding = 1e-14 * np.linalg.norm(a) * np.linalg.norm(x)
        converged = status_of(found) == Status.CONVERGED
        assert bool(found.converged) == converged
        assert not converged or residual <= allowed(solver, b) + rounding
        np.testing.assert_allclose(found.residual, residual, rtol=1e-5, atol=rounding)
        if problem == "singular inconsistent" and not isinstance(solver, Damped):
            assert not converged

    def test_cg_names_negative_curvature(self):
        assert status_of(solve(CG(), "symmetric", INDEFINITE, RHS)) == Status.NEGATIVE_CURVATURE
        assert status_of(solve(CG(), "positive_definite", -SPD, RHS)) == Status.NEGATIVE_CURVATURE

    @pytest.mark.parametrize("solver", [Direct(), Auto()], ids=title)
    def test_failed_cholesky_names_negative_curvature(self, solver):
        found = solve(solver, "positive_definite", INDEFINITE, RHS)
        assert status_of(found) == Status.NEGATIVE_CURVATURE
        assert np.isfinite(found.value).all()

    def test_cg_solves_a_rank_deficient_consistent_system(self):
        a, b = PROBLEMS["singular consistent"]
        found = solve(CG(), "positive_definite", a, b)
        assert status_of(found) == Status.CONVERGED
        assert np.linalg.norm(a @ np.asarray(found.value) - b) <= allowed(CG(), b)

    def test_wrong_answer_of_a_function_is_found_out(self):
        found = solve(Wrapped(function=lambda matvec, b: b / 2), "general", NONSYMMETRIC, RHS)
        assert status_of(found) == Status.STAGNATED

    @pytest.mark.parametrize(
        ("solver", "problem"),
        [
            (CG(rtol=1e-3), "spd"),
            (CG(max_steps=1), "spd"),
            (GMRES(rtol=1e-4, restart=2), "nonsymmetric"),
            (Direct(), "nonsymmetric"),
            (Auto(), "nonsymmetric"),
            (Wrapped(function=lambda matvec, b: b / 2), "spd"),
        ],
        ids=title,
    )
    def test_reported_residual_is_the_true_one(self, solver, problem):
        matrix, b = PROBLEMS[problem]
        found = solve(solver, "positive_definite", matrix, b)
        residual = np.linalg.norm(matrix @ np.asarray(found.value) - b)
        assert residual > 1e-8
        np.testing.assert_allclose(found.residual, residual, rtol=1e-6)

    @pytest.mark.parametrize("solver", others(Auto, Damped, Neumann, Wrapped), ids=title)
    def test_zero_tolerance_gives_the_best_answer_at_hand(self, solver):
        exacting = type(solver)(**{**vars(solver), "rtol": 0.0})
        found = solve(exacting, "positive_definite", SPD, RHS)
        assert relative_error(found.value, np.linalg.solve(SPD, RHS)) < 1e-8

    @pytest.mark.parametrize("solver", others(Damped, Wrapped), ids=title)
    def test_size_of_the_matrix_does_not_change_the_cost(self, solver):
        usual = solve(solver, "positive_definite", SPD, RHS)
        for factor in (1e-8, 1e8):
            found = solve(solver, "positive_definite", factor * SPD, RHS)
            assert status_of(found) == Status.CONVERGED
            assert int(found.matvecs) <= 2 * int(usual.matvecs)

    @pytest.mark.parametrize("solver", [*others(Auto, Wrapped), GMRES(restart=2)], ids=title)
    def test_products_are_counted(self, solver):
        """Those with Aᵀ too, which for a symmetric A are products with A."""
        calls = []

        def matvec(v):
            jax.debug.callback(lambda _: calls.append(1), v[0])  # of v, so that a batch of products counts as many
            return SPD @ v

        found = jax.jit(lambda b: solver.solve(Operator(matvec, "positive_definite", self_adjoint=True), b))(RHS)
        jax.effects_barrier()
        assert len(calls) == int(found.matvecs)


@pytest.mark.usefixtures("x64")
class TestStart:
    @pytest.mark.parametrize(("solver", "structure"), settings(SOLVERS), ids=title)
    def test_zero_right_hand_side(self, solver, structure):
        for init in (None, jnp.ones(N)):
            found = solve(solver, structure, SPD, jnp.zeros(N), init)
            assert status_of(found) == Status.CONVERGED
            assert np.array_equal(found.value, np.zeros(N))
            assert float(found.residual) == 0

    @pytest.mark.parametrize("solver", ITERATIVE, ids=title)
    def test_exact_start_takes_no_steps(self, solver):
        b = SPD @ np.ones(N)
        found = solve(solver, "positive_definite", SPD, b, np.ones(N))
        assert int(found.steps) == 0
        assert status_of(found) == Status.CONVERGED
        assert np.array_equal(found.value, np.ones(N))

    @pytest.mark.parametrize("solver", ITERATIVE, ids=title)
    def test_warm_start_saves_steps(self, solver):
        x = np.linalg.solve(SPD, RHS)
        cold = solve(solver, "positive_definite", SPD, RHS, np.zeros(N))
        warm = solve(solver, "positive_definite", SPD, RHS, x + 1e-10 * np.ones(N))
        assert status_of(cold) == status_of(warm) == Status.CONVERGED
        assert int(warm.steps) < int(cold.steps)

    @each_solver
    def test_any_start_leads_to_the_answer(self, solver):
        found = solve(solver, "positive_definite", SPD, RHS, 100 * np.ones(N))
        assert status_of(found) == Status.CONVERGED
        assert relative_error(found.value, np.linalg.solve(SPD, RHS)) < 1e-8

    def test_start_of_another_shape_is_refused(self):
        for solver in SOLVERS:
            with pytest.raises(ValueError, match="init must have the structure and shapes of b"):
                solver.solve(Operator(lambda v: SPD @ v), jnp.ones(N), jnp.ones((N, N)))


@pytest.mark.usefixtures("x64")
class TestTolerance:
    def test_negative_is_refused(self):
        for solver, name in itertools.product(SOLVERS, ("rtol", "atol")):
            with pytest.raises(ValueError, match=f"{type(solver).__name__}: rtol and atol must not be negative"):
                dataclasses.replace(solver, **{name: -1e-3})

    @pytest.mark.parametrize("solver", [type(s)(**{**vars(s), "rtol": 1e-4}) for s in ITERATIVE], ids=title)
    def test_a_tolerance_takes_the_place_of_rtol(self, solver):
        norm = np.linalg.norm(RHS)
        strict = solve(solver, "positive_definite", SPD, RHS)
        loose = solve(solver, "positive_definite", SPD, RHS, None, 1e-1 * norm)
        assert status_of(strict) == status_of(loose) == Status.CONVERGED
        assert float(strict.residual) <= 1e-4 * norm < float(loose.residual) <= 1e-1 * norm
        assert int(loose.steps) < int(strict.steps)

    @pytest.mark.parametrize("solver", others(Wrapped), ids=title)
    @pytest.mark.parametrize("tolerance", [0.0, 5.0])
    def test_zero_remainder_of_a_larger_vector(self, solver, tolerance):
        found = solve(solver, "positive_definite", SPD, jnp.zeros(N), None, tolerance)
        assert status_of(found) == Status.CONVERGED
        assert np.array_equal(found.value, np.zeros(N))

    def test_atol_is_a_floor(self):
        found = solve(CG(rtol=0.0, atol=0.1), "positive_definite", SPD, RHS)
        assert status_of(found) == Status.CONVERGED
        assert 1e-6 < float(found.residual) <= 0.1

    @pytest.mark.parametrize("kind", [CG, MINRES, BiCGStab, LSMR, NormalCG, Neumann])
    def test_step_limit(self, kind):
        found = solve(kind(max_steps=1), "positive_definite", SPD, RHS)
        assert status_of(found) == Status.MAX_STEPS
        assert int(found.steps) == 1

    def test_one_full_cycle_of_gmres_is_a_solve(self):
        found = solve(GMRES(max_steps=1), "general", NONSYMMETRIC, RHS)
        assert relative_error(found.value, np.linalg.solve(NONSYMMETRIC, RHS)) < 1e-8

    def test_direct_refuses_a_large_system(self):
        with pytest.raises(ValueError, match=r"12 × 12 matrix, more than max_size=11"):
            Direct(max_size=N - 1).solve(Operator(lambda v: v), jnp.ones(N))
        assert status_of(Direct(max_size=N).solve(Operator(lambda v: v), jnp.ones(N))) == Status.CONVERGED


@each_solver
def test_precision_is_kept(solver, dtype):
    found = solve(solver, "positive_definite", jnp.asarray(SPD, dtype), jnp.asarray(RHS, dtype))
    assert found.value.dtype == found.residual.dtype == dtype
    assert found.status.dtype == found.steps.dtype == found.matvecs.dtype == jnp.int32
    assert status_of(found) == Status.CONVERGED
    assert relative_error(found.value, np.linalg.solve(SPD, RHS)) < {"float32": 1e-4, "float64": 1e-9}[dtype]


@each_solver
@pytest.mark.parametrize("power", [-0.6, 0.6])
def test_size_of_b_does_not_matter(solver, dtype, power):
    factor = float(jnp.finfo(dtype).max) ** power
    found = solve(solver, "positive_definite", jnp.asarray(SPD, dtype), jnp.asarray(RHS * factor, dtype))
    assert status_of(found) == Status.CONVERGED
    assert relative_error(np.asarray(found.value, "float64") / factor, np.linalg.solve(SPD, RHS)) < 1e-3


@pytest.mark.parametrize("solver", others(Wrapped), ids=title)
def test_nothing_promotes(solver, strict):
    found = solve(solver, "positive_definite", jnp.asarray(SPD, "float32"), jnp.asarray(RHS, "float32"))
    assert found.value.dtype == "float32"
    assert status_of(found) == Status.CONVERGED


@pytest.mark.usefixtures("x64")
class TestTrees:
    tree = {"w": {"matrix": np.ones((3, 2)), "bias": np.array(2.0)}, "v": [np.ones(4), np.ones((1, 1))]}  # noqa: RUF012

    def operator(self, matrix, structure):
        unravel = ravel_pytree(self.tree)[1]
        return Operator(lambda v: unravel(matrix @ ravel_pytree(v)[0]), structure)

    @pytest.mark.parametrize(
        ("solver", "structure"),
        [
            (CG(), "positive_definite"),
            (Direct(), "positive_definite"),
            (Auto(), "symmetric"),
            (MINRES(), "symmetric"),
            (Nystrom(max_steps=5), "positive_definite"),
            *((solver, "general") for solver in others(*SYMMETRIC_ONLY, Auto, Damped)),
        ],
        ids=title,
    )
    def test_coupled_leaves(self, solver, structure):
        matrix = {"general": NONSYMMETRIC, "symmetric": INDEFINITE, "positive_definite": SPD}[structure]
        unravel = ravel_pytree(self.tree)[1]
        b = unravel(jnp.asarray(RHS))
        found = jax.jit(lambda b, init: solver.solve(self.operator(matrix, structure), b, init))(b, self.tree)
        assert status_of(found) == Status.CONVERGED
        assert jax.tree.structure(found.value) == jax.tree.structure(b)
        assert jax.tree.map(jnp.shape, found.value) == jax.tree.map(jnp.shape, b)
        assert relative_error(ravel_pytree(found.value)[0], np.linalg.solve(matrix, RHS)) < 1e-8

    @each_solver
    def test_scalar_unknown(self, solver):
        found = jax.jit(lambda b: solver.solve(Operator(lambda v: 4.0 * v, "positive_definite"), b))(2.0)
        assert found.value.shape == ()
        iterates = isinstance(solver, Neumann)  # the others are exact after one step
        assert float(found.value) == pytest.approx(0.5, rel=1e-10 if iterates else 1e-12)
        assert status_of(found) == Status.CONVERGED

    @each_solver
    def test_leaves_of_two_precisions(self, solver):
        b = {"low": jnp.ones(3, "float32"), "high": jnp.ones(2, "float64")}
        operator = Operator(lambda v: {"low": 2 * v["low"], "high": 4 * v["high"]}, "positive_definite")
        found = jax.jit(lambda b: solver.solve(operator, b))(b)
        assert status_of(found) == Status.CONVERGED
        assert (found.value["low"].dtype, found.value["high"].dtype) == ("float32", "float64")
        np.testing.assert_allclose(found.value["low"], 0.5, rtol=1e-4)
        np.testing.assert_allclose(found.value["high"], 0.25, rtol=1e-4)


class TestChoice:
    def test_auto_goes_by_size_and_structure(self):
        auto = Auto(direct_below=10, rtol=1e-4, atol=1e-9)
        for structure in STRUCTURES:
            assert auto.choose(structure, 9) == Direct(rtol=1e-4, atol=1e-9)
            assert auto.choose(structure, 9, singular=True) == Direct(rtol=1e-4, atol=1e-9)
        assert auto.choose("positive_definite", 10) == CG(rtol=1e-4, atol=1e-9)
        assert auto.choose("positive_definite", 10, singular=True) == MINRES(rtol=1e-4, atol=1e-9)
        assert auto.choose("symmetric", 10, singular=True) == MINRES(rtol=1e-4, atol=1e-9)
        assert auto.choose("general", 10, singular=True) == LSMR(rtol=1e-4, atol=1e-9)
        assert auto.choose("symmetric", 10) == MINRES(rtol=1e-4, atol=1e-9)
        assert auto.choose("general", 10) == GMRES(rtol=1e-4, atol=1e-9)

    def test_auto_hands_over(self):
        b = jnp.asarray(RHS, "float32")
        matrix = jnp.asarray(SPD, "float32")
        for below, expected in [(N + 1, Direct()), (N, CG())]:
            chosen = solve(Auto(direct_below=below), "positive_definite", matrix, b)
            assert int(chosen.matvecs) == int(solve(expected, "positive_definite", matrix, b).matvecs)

    def test_as_solver(self):
        default = CG(rtol=1e-3)
        assert as_solver(None, default) is default
        given = Direct()
        assert as_solver(given, default) is given
        assert as_solver(dense, default) == Wrapped(function=dense)

    def test_garbage_is_not_a_solver(self):
        for garbage in ("cg", 3, {"rtol": 1e-3}):
            with pytest.raises(TypeError, match=r"solve must be a solver of bilevel\.linear"):
                as_solver(garbage, CG())

    def test_answer_of_another_shape_is_refused(self):
        for answer in (jnp.ones(N - 1), jnp.ones((N, 1)), jnp.asarray(1.0), (jnp.ones(N),), None):
            solver = Wrapped(function=lambda matvec, b, answer=answer: answer)
            with pytest.raises(ValueError, match=r"answer of solve\(matvec, b\) must have the structure and shapes"):
                solver.solve(Operator(lambda v: v), jnp.ones(N))
