"""Linear solvers: one conformance suite for every solver that `bilevel.linear` exports."""

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from linear_cases import (
    HONEST,
    INDEFINITE,
    ITERATIVE,
    NEGATIVE,
    NONSYMMETRIC,
    OK,
    PROBLEMS,
    RHS,
    SINGULAR,
    SOLVERS,
    SPD,
    STATUSES,
    STRUCTURES,
    STUCK,
    SYMMETRIC_ONLY,
    N,
    dense,
    each_solver,
    others,
    relative_error,
    solve,
    structures,
    title,
)
from problems import status_of

from bilevel import Status, linear
from bilevel.linear import CG, GMRES, LSMR, MINRES, Auto, Damped, Direct, Neumann, NormalCG, Operator, Wrapped

pytestmark = [pytest.mark.slice(10), pytest.mark.usefixtures("x64")]


def test_every_exported_solver_is_in_the_suite():
    exported = {
        value
        for name in linear.__all__
        if inspect.isclass(value := getattr(linear, name)) and issubclass(value, linear.LinearSolver)
    }
    assert exported - {linear.LinearSolver} == {type(solver) for solver in SOLVERS}
    assert set(SOLVERS) <= set(STATUSES)


class TestAnswer:
    @pytest.mark.slice(3)
    @pytest.mark.parametrize("solver", STATUSES, ids=title)
    def test_status_and_residual_are_the_true_ones(self, solver):
        for (name, (a, b)), expected in zip(PROBLEMS.items(), STATUSES[solver], strict=True):
            solved = a + solver.ridge * np.eye(N) if isinstance(solver, Damped) else a
            for structure in structures(solver):
                found = solve(solver, structure, a, b)
                x, status = np.asarray(found.value), status_of(found)
                residual, rounding = np.linalg.norm(solved @ x - b), 1e-14 * np.linalg.norm(a) * np.linalg.norm(x)
                rtol = np.finfo(float).eps ** (2 / 3) if solver.rtol is None else solver.rtol
                assert bool(found.converged) == (status == OK)
                assert status != OK or residual <= rtol * np.linalg.norm(b) + rounding, (name, structure)
                np.testing.assert_allclose(found.residual, residual, rtol=1e-6, atol=rounding)
                if name == "singular inconsistent" and not isinstance(solver, Damped):
                    assert status != OK
                honest = structures(solver) == ["general"] or structure in HONEST.get(name, ["symmetric"])
                if expected is not None and honest:
                    assert status == expected, (name, structure)
                    if expected == OK and "singular" not in name and rtol < 1e-9:
                        assert relative_error(x, np.linalg.solve(a, b)) <= 1e-9 * np.linalg.cond(a), (name, structure)

    @pytest.mark.parametrize(
        ("solver", "matrix"),
        [(CG(), INDEFINITE), (CG(), -SPD), (Direct(), INDEFINITE), (Auto(), INDEFINITE)],
        ids=["CG", "CG, negative", "Direct", "Auto"],
    )
    def test_negative_curvature_is_named(self, solver, matrix):
        found = solve(solver, "positive_definite", matrix, RHS)
        assert status_of(found) == NEGATIVE
        assert np.isfinite(found.value).all()

    @pytest.mark.parametrize("solver", [MINRES(), LSMR(), NormalCG(), Direct(method="svd")], ids=title)
    @pytest.mark.parametrize("seed", [0, 1])
    def test_inconsistent_system_ends_early_in_least_squares(self, solver, seed):
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.normal(size=(60, 60)))[0]
        values = rng.normal(size=60)
        values[:3] = 0
        a, b = q @ np.diag(values) @ q.T, rng.normal(size=60)
        found = solve(solver, "symmetric", (a + a.T) / 2, b, singular=True)
        assert status_of(found) == STUCK
        assert int(found.steps) < 300
        assert float(found.residual) == pytest.approx(np.linalg.norm(q[:, :3].T @ b), rel=1e-10)

    def test_auto_on_large_singular_systems(self):
        auto = Auto(direct_below=0)
        for structure, a in zip(STRUCTURES, (np.triu(SINGULAR), SINGULAR, SINGULAR), strict=True):
            assert status_of(solve(auto, structure, a, a @ np.arange(1.0, N + 1), singular=True)) == OK
            assert status_of(solve(auto, structure, SINGULAR, np.ones(N), singular=True)) == STUCK

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
            assert status_of(found) == OK
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


class TestStart:
    @each_solver
    def test_zero_right_hand_side(self, solver):
        for structure, init in itertools.product(structures(solver), (np.zeros(N), np.ones(N))):
            found = solve(solver, structure, SPD, np.zeros(N), init)
            assert status_of(found) == OK
            assert np.array_equal(found.value, np.zeros(N))
            assert float(found.residual) == 0

    @pytest.mark.parametrize("solver", ITERATIVE, ids=title)
    def test_a_start_near_the_answer_saves_steps(self, solver):
        exact = solve(solver, "positive_definite", SPD, SPD @ np.ones(N), np.ones(N))
        assert int(exact.steps) == 0
        assert np.array_equal(exact.value, np.ones(N))
        near = np.linalg.solve(SPD, RHS) + 1e-10 * np.ones(N)
        cold, warm = (solve(solver, "positive_definite", SPD, RHS, start) for start in (np.zeros(N), near))
        assert status_of(exact) == status_of(cold) == status_of(warm) == OK
        assert int(warm.steps) < int(cold.steps)

    @each_solver
    def test_any_start_leads_to_the_answer(self, solver):
        found = solve(solver, "positive_definite", SPD, RHS, 100 * np.ones(N))
        assert status_of(found) == OK
        assert relative_error(found.value, np.linalg.solve(SPD, RHS)) < 1e-8

    def test_start_of_another_shape_is_refused(self):
        for solver in SOLVERS:
            with pytest.raises(ValueError, match="init must have the structure and shapes of b"):
                solver.solve(Operator(lambda v: SPD @ v), jnp.ones(N), jnp.ones((N, N)))


class TestTolerance:
    def test_negative_is_refused(self):
        for solver, name in itertools.product(SOLVERS, ("rtol", "atol")):
            with pytest.raises(ValueError, match=f"{type(solver).__name__}: rtol and atol must not be negative"):
                dataclasses.replace(solver, **{name: -1e-3})

    @pytest.mark.parametrize("solver", [type(s)(**{**vars(s), "rtol": 1e-4}) for s in ITERATIVE], ids=title)
    def test_a_tolerance_takes_the_place_of_rtol(self, solver):
        norm = np.linalg.norm(RHS)
        strict, loose = (solve(solver, "positive_definite", SPD, RHS, None, limit) for limit in (None, 1e-1 * norm))
        assert status_of(strict) == status_of(loose) == OK
        assert float(strict.residual) <= 1e-4 * norm < float(loose.residual) <= 1e-1 * norm
        assert int(loose.steps) < int(strict.steps)

    @pytest.mark.parametrize("solver", others(Wrapped), ids=title)
    def test_zero_remainder_of_a_larger_vector(self, solver):
        for tolerance in (0.0, 5.0):
            found = solve(solver, "positive_definite", SPD, np.zeros(N), None, tolerance)
            assert status_of(found) == OK
            assert np.array_equal(found.value, np.zeros(N))

    def test_atol_is_a_floor(self):
        found = solve(CG(rtol=0.0, atol=0.1), "positive_definite", SPD, RHS)
        assert status_of(found) == OK
        assert 1e-6 < float(found.residual) <= 0.1

    @pytest.mark.parametrize("kind", [CG, MINRES, linear.BiCGStab, LSMR, NormalCG, Neumann])
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
        assert status_of(Direct(max_size=N).solve(Operator(lambda v: v), jnp.ones(N))) == OK


@each_solver
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_is_kept_and_nothing_promotes(solver, dtype, strict):
    found = solve(solver, "positive_definite", jnp.asarray(SPD, dtype), jnp.asarray(RHS, dtype))
    assert found.value.dtype == found.residual.dtype == dtype
    assert found.status.dtype == found.steps.dtype == found.matvecs.dtype == jnp.int32
    assert status_of(found) == OK
    assert relative_error(found.value, np.linalg.solve(SPD, RHS)) < {"float32": 1e-4, "float64": 1e-9}[dtype]


@each_solver
def test_size_of_b_does_not_matter(solver, dtype):
    for power in (-0.6, 0.6):
        factor = float(jnp.finfo(dtype).max) ** power
        found = solve(solver, "positive_definite", jnp.asarray(SPD, dtype), jnp.asarray(RHS * factor, dtype))
        assert status_of(found) == OK
        assert relative_error(np.asarray(found.value, "float64") / factor, np.linalg.solve(SPD, RHS)) < 1e-3


class TestTrees:
    tree = {"w": {"matrix": np.ones((3, 2)), "bias": np.array(2.0)}, "v": [np.ones(4), np.ones((1, 1))]}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("solver", "structure"),
        [
            (CG(), "positive_definite"),
            (Direct(), "positive_definite"),
            (Auto(), "symmetric"),
            (MINRES(), "symmetric"),
            (linear.Nystrom(max_steps=5), "positive_definite"),
            *((solver, "general") for solver in others(*SYMMETRIC_ONLY, Auto, Damped)),
        ],
        ids=title,
    )
    def test_coupled_leaves(self, solver, structure):
        matrix = {"general": NONSYMMETRIC, "symmetric": INDEFINITE, "positive_definite": SPD}[structure]
        unravel = ravel_pytree(self.tree)[1]
        operator, b = Operator(lambda v: unravel(matrix @ ravel_pytree(v)[0]), structure), unravel(jnp.asarray(RHS))
        found = jax.jit(lambda b, init: solver.solve(operator, b, init))(b, self.tree)
        assert status_of(found) == OK
        assert jax.tree.structure(found.value) == jax.tree.structure(b)
        assert jax.tree.map(jnp.shape, found.value) == jax.tree.map(jnp.shape, b)
        assert relative_error(ravel_pytree(found.value)[0], np.linalg.solve(matrix, RHS)) < 1e-8

    @each_solver
    def test_odd_leaves(self, solver):
        """A scalar; leaves of two precisions; an empty leaf, a leaf of one and a scalar, coupled."""

        def coupled(v):
            return {"empty": v["empty"], "one": 2 * v["one"] + v["scalar"], "scalar": v["one"][0] + 2 * v["scalar"]}

        cases = [
            (lambda v: 4.0 * v, 2.0),
            (
                lambda v: {"low": 2 * v["low"], "high": 4 * v["high"]},
                {"low": jnp.ones(3, "float32"), "high": jnp.ones(2, "float64")},
            ),
            (coupled, {"empty": jnp.zeros((0, 3)), "one": jnp.ones(1), "scalar": 2.0}),
        ]
        scalar, mixed, odd = jax.jit(
            lambda *sides: [
                solver.solve(Operator(matvec, "positive_definite"), b)
                for (matvec, _), b in zip(cases, sides, strict=True)
            ]
        )(*(b for _, b in cases))
        assert status_of(scalar) == status_of(mixed) == status_of(odd) == OK
        iterates = isinstance(solver, Neumann)  # the others are exact after one step
        assert scalar.value.shape == ()
        assert float(scalar.value) == pytest.approx(0.5, rel=1e-10 if iterates else 1e-12)
        assert (mixed.value["low"].dtype, mixed.value["high"].dtype) == ("float32", "float64")
        np.testing.assert_allclose(mixed.value["low"], 0.5, rtol=1e-4)
        np.testing.assert_allclose(mixed.value["high"], 0.25, rtol=1e-4)
        assert odd.value["empty"].shape == (0, 3)
        np.testing.assert_allclose([odd.value["one"][0], odd.value["scalar"]], [0, 1], atol=1e-9)


class TestChoice:
    def test_auto_goes_by_size_and_structure(self):
        settings = {"rtol": 1e-4, "atol": 1e-9}
        auto = Auto(direct_below=10, **settings)
        for structure, singular in itertools.product(STRUCTURES, (False, True)):
            assert auto.choose(structure, 9, singular=singular) == Direct(**settings)
        for structure, regular, singular in zip(STRUCTURES, (GMRES, MINRES, CG), (LSMR, MINRES, MINRES), strict=True):
            assert auto.choose(structure, 10) == regular(**settings)
            assert auto.choose(structure, 10, singular=True) == singular(**settings)

    def test_auto_hands_over(self):
        b, matrix = jnp.asarray(RHS, "float32"), jnp.asarray(SPD, "float32")
        for below, expected in [(N + 1, Direct()), (N, CG())]:
            chosen = solve(Auto(direct_below=below), "positive_definite", matrix, b)
            assert int(chosen.matvecs) == int(solve(expected, "positive_definite", matrix, b).matvecs)

    def test_as_solver(self):
        default, given = CG(rtol=1e-3), Direct()
        assert linear.as_solver(None, default) is default
        assert linear.as_solver(given, default) is given
        assert linear.as_solver(dense, default) == Wrapped(function=dense)
        for garbage in ("cg", 3, {"rtol": 1e-3}):
            with pytest.raises(TypeError, match=r"solve must be a solver of bilevel\.linear"):
                linear.as_solver(garbage, default)

    def test_answer_of_another_shape_is_refused(self):
        for answer in (jnp.ones(N - 1), jnp.ones((N, 1)), jnp.asarray(1.0), (jnp.ones(N),), None):
            solver = Wrapped(function=lambda matvec, b, answer=answer: answer)
            with pytest.raises(ValueError, match=r"answer of solve\(matvec, b\) must have the structure and shapes"):
                solver.solve(Operator(lambda v: v), jnp.ones(N))
