"""Structure that is declared and does not hold: no solve built on it is called converged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_cases import INDEFINITE, NONSYMMETRIC, RHS, SPD, N, relative_error, title
from problems import status_of

import bilevel as bl
from bilevel import Status, optimality
from bilevel.linear import CG, GMRES, MINRES, Auto, Damped, Direct, Operator, Reduction, RootFunction, System
from bilevel.operators.prox import prox_group_lasso, prox_lasso, prox_total_variation

pytestmark = pytest.mark.usefixtures("x64")

INSTANCES, ROWS, UNKNOWNS, PENALTY, STEP = 50, 10, 8, 3.0, 0.05
RNG = np.random.default_rng(7)
DATA = RNG.normal(size=(INSTANCES, ROWS, UNKNOWNS)), RNG.normal(size=(INSTANCES, ROWS))
WRONG = {Status.WRONG_STRUCTURE, Status.STAGNATED, Status.NEGATIVE_CURVATURE, Status.BREAKDOWN}


def squares(x, hparams, data):
    features, targets = data
    return jnp.sum((features @ x - targets) ** 2) / 2


def lasso(x, hparams, data, step):
    return prox_lasso(x, 5 * hparams, step)


def pairs(x, hparams, data, step):
    return jax.vmap(lambda row: prox_group_lasso(row, hparams, step))(x.reshape(-1, 2)).ravel()


def problem(condition=optimality.ProximalGradient, **parts):
    parts = parts if "inner" in parts else {"inner_loss": squares, **parts}
    return bl.Problem(optimality=condition(step=STEP), **parts)


MISDECLARED = {
    "separable total variation": problem(
        prox=lambda x, hparams, data, step: prox_total_variation(x, hparams, step), separable=True
    ),
    "separable groups": problem(prox=pairs, separable=True),
    "polyhedral ball": problem(
        optimality.ProjectedGradient,
        projection=lambda x, hparams, data: x / jnp.maximum(1, 10 * jnp.linalg.norm(x) / hparams),
        polyhedral=True,
    ),
    "datafit of another loss": problem(
        functools.partial(optimality.ProximalGradient, support=UNKNOWNS // 2),
        inner=bl.Minimization(
            loss=squares,
            datafit=lambda prediction, hparams, data: jnp.sum((prediction - data[1]) ** 2),
            design=lambda hparams, data: data[0],
            prox=lasso,
            separable=True,
        ),
    ),
}


def solves(problem):
    """Status, relative error and misreport of the residual, of both solves with each instance, at a point of the set."""

    def one(start, *data):
        x = bl.At(problem, PENALTY, data).proximal_step(start, STEP)
        system = optimality.bind(problem).system(x, PENALTY, data)
        dense = jax.vmap(system.operator.matvec, out_axes=1)(jnp.eye(UNKNOWNS))
        b = jnp.cos(jnp.arange(1.0, UNKNOWNS + 1))
        found = [(system.solve(Auto(), b), dense), (system.solve_transposed(Auto(), b), dense.T)]
        exact = [jnp.linalg.solve(matrix, b) for _, matrix in found]
        return [
            jnp.stack([solution.status for solution, _ in found]),
            jnp.stack(
                [jnp.linalg.norm(s.value - x) / jnp.linalg.norm(x) for (s, _), x in zip(found, exact, strict=True)]
            ),
            jnp.stack([s.residual - jnp.linalg.norm(matrix @ s.value - b) for s, matrix in found]),
        ]

    starts = np.random.default_rng(8).normal(size=(INSTANCES, UNKNOWNS))
    return [np.ravel(x) for x in jax.jit(jax.vmap(one))(starts, *DATA)]


@pytest.mark.parametrize("name", MISDECLARED)
def test_a_misdeclared_problem_is_found_out(name):
    statuses, errors, misreports = solves(MISDECLARED[name])
    wrong = errors > 1e-2
    assert wrong.sum() >= 10
    assert {Status(int(code)) for code in statuses[wrong]} <= WRONG
    assert Status.WRONG_STRUCTURE in statuses
    assert np.nanmax(np.abs(misreports)) <= 1e-9


def test_an_honest_problem_converges():
    statuses, errors, misreports = solves(problem(prox=lasso, separable=True))
    assert not statuses.any()
    assert errors.max() <= 1e-8
    assert np.abs(misreports).max() <= 1e-12


def test_a_datafit_that_contradicts_the_loss_gives_no_derivative():
    declared = MISDECLARED["datafit of another loss"]
    data = tuple(array[0] for array in DATA)

    @bl.custom_root(optimality.bind(declared))
    def solver(init, hparams, data):
        return lasso(init, hparams, data, STEP)

    start = np.r_[3.0, -4.0, 5.0, np.zeros(UNKNOWNS - 3)]
    slopes = jax.jit(lambda *args: [f(solver, argnums=1)(*args) for f in (jax.jacrev, jax.jacfwd)])
    for slope in slopes(start, PENALTY, data):
        assert np.isnan(slope).any()


def reduced(matrix, of=None):
    """A system with `matrix`, reduced to what would be the identity if the matrix were `of`."""
    inverse = jnp.linalg.inv(jnp.linalg.cholesky(matrix if of is None else of))
    return System(
        Operator(lambda v: matrix @ v),
        Reduction(Operator(lambda z: z, "positive_definite"), lambda b: inverse @ b, lambda z, b: inverse.T @ z),
    )


@pytest.mark.parametrize("solver", [Direct(), CG()], ids=title)
def test_the_residual_is_that_of_the_full_system(solver):
    @jax.jit
    def both(of):
        system = reduced(jnp.asarray(SPD), of)
        return system.solve(solver, RHS), system.solve_transposed(solver, RHS)

    for off, expected in ((0.0, Status.CONVERGED), (1e-9, Status.CONVERGED), (1e-2, Status.WRONG_STRUCTURE)):
        for found in both(SPD + off * np.diag(np.arange(N))):
            residual = np.linalg.norm(SPD @ np.asarray(found.value) - RHS)
            np.testing.assert_allclose(found.residual, residual, atol=1e-13)
            assert status_of(found) == expected
            assert (relative_error(found.value, np.linalg.solve(SPD, RHS)) < 1e-8) == (expected == Status.CONVERGED)


def test_a_residual_that_rounding_keeps_above_the_tolerance_stagnates():
    system = reduced(jnp.asarray(SPD))
    found = jax.jit(lambda b: system.solve(Direct(rtol=3e-17), b))(RHS)
    assert status_of(found) == Status.STAGNATED


def test_a_reduced_residual_that_the_expansion_enlarges_is_solved_for_once_more():
    """M = A / 50: what is within the tolerance of the reduced system is not within that of the full one."""
    system = System(
        Operator(lambda v: jnp.asarray(SPD) @ v),
        Reduction(Operator(lambda z: jnp.asarray(SPD) @ z / 50, "positive_definite"), restrict=lambda b: b / 50),
    )
    solver = CG(rtol=1e-4)
    for found in jax.jit(lambda b: (system.solve(solver, b), system.solve_transposed(solver, b)))(RHS):
        assert status_of(found) == Status.CONVERGED
        assert np.linalg.norm(SPD @ np.asarray(found.value) - RHS) <= 1e-4 * np.linalg.norm(RHS)


def test_an_approximate_reduction_is_judged_by_itself():
    wrong = reduced(jnp.asarray(SPD), SPD + 0.01 * np.diag(np.arange(N)))
    for approximate in (True, jnp.asarray(True)):
        system = dataclasses.replace(wrong, reduction=dataclasses.replace(wrong.reduction, approximate=approximate))
        assert system.approximate
        assert status_of(system.solve(Direct(), jnp.asarray(RHS))) == Status.CONVERGED
    assert not wrong.approximate
    assert not System(wrong.operator).approximate


def test_a_damped_solver_solves_the_full_system():
    """A reduction is equivalent to A x = b, and not to (A + ridge I) x = b."""
    system = reduced(jnp.asarray(SPD))
    for solve in (system.solve, system.solve_transposed):
        found = solve(Damped(ridge=0.5), jnp.asarray(RHS))
        assert status_of(found) == Status.CONVERGED
        assert relative_error(found.value, np.linalg.solve(SPD + 0.5 * np.eye(N), RHS)) < 1e-10


class Misdeclared(RootFunction):
    """F(x, θ) = A x − θ, with an A that is called positive definite, or symmetric, and is not."""

    def __init__(self, matrix, structure):
        self.matrix, self.structure = jnp.asarray(matrix), structure

    def __call__(self, x, theta):
        return self.matrix @ x - theta

    def system(self, x, theta):
        return System(Operator(lambda v: self.matrix @ v, self.structure))


@pytest.mark.parametrize(("solver", "structure"), [(Auto(), "positive_definite"), (MINRES(), "symmetric")], ids=title)
def test_an_operator_that_is_not_symmetric(solver, structure):
    function = Misdeclared(NONSYMMETRIC, structure)
    system = function.system(None, None)
    for found in jax.jit(lambda b: (system.solve(solver, b), system.solve_transposed(solver, b)))(RHS):
        assert status_of(found) != Status.CONVERGED
    root = bl.custom_root(function, solve=solver)(lambda init, theta: theta)
    both = jax.jit(lambda theta: [f(root, argnums=1)(None, theta) for f in (jax.jacrev, jax.jacfwd)])
    assert np.isnan(both(RHS)).all()


def test_an_operator_that_is_not_definite():
    system = Misdeclared(INDEFINITE, "positive_definite").system(None, None)
    assert status_of(system.solve_transposed(Auto(), jnp.asarray(RHS))) == Status.NEGATIVE_CURVATURE


@pytest.mark.parametrize("solver", [Direct(), GMRES()], ids=title)
def test_solvers_that_need_no_symmetry_are_given_the_true_transpose(solver):
    system = Misdeclared(NONSYMMETRIC, "symmetric").system(None, None)
    found = jax.jit(lambda b: system.solve_transposed(solver, b))(RHS)
    assert status_of(found) == Status.CONVERGED
    assert relative_error(found.value, np.linalg.solve(NONSYMMETRIC.T, RHS)) < 1e-8

    def solved(b):
        operator = Operator(lambda v: jnp.asarray(NONSYMMETRIC) @ v, "symmetric")
        return bl.linear.differentiable_solve(solver, operator, b, nan_on_failure=True).value

    np.testing.assert_allclose(jax.jit(jax.jacrev(solved))(RHS), np.linalg.inv(NONSYMMETRIC), atol=1e-8)


def test_a_newton_map_of_misdeclared_symmetry_is_not_silently_wrong():
    condition = optimality.NewtonStep(
        function=lambda x, hparams, data: jnp.asarray(NONSYMMETRIC) @ x - hparams**2,
        structure="symmetric",
        linear=Direct(method="svd"),
    )
    problem = bl.Problem(optimality=condition)
    root = bl.custom_root(optimality.bind(problem))(lambda init, hparams, data: init)
    theta = np.arange(1.0, N + 1)
    found = jax.jit(jax.jacrev(root, argnums=1))(np.linalg.solve(NONSYMMETRIC, theta**2), theta, None)
    assert np.isnan(found).all()
