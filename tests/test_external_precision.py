"""External solvers end at a solution as exact as the precision allows, whatever their own accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalog.conic import case_of
from conftest import precision
from external_cases import estimate, native, program_case, setup, solve
from jax.experimental.sparse import BCOO
from problems import status_of

import bilevel as bl
from bilevel import Status, inner
from bilevel.operators.cones import Cones
from bilevel.optimality import KKTSolution
from bilevel.statements import QP, LinearModel
from bilevel.tasks.ridge import normal_equations

pytestmark = pytest.mark.slice(8)


@pytest.mark.parametrize(
    ("task", "solver"),
    [
        ("ridge", inner.Python(function=normal_equations)),
        ("ridge", inner.SciPyMinimize()),
        ("lasso", inner.SklearnLasso()),
        ("logistic", inner.SklearnLogisticRegression()),
        ("svm", inner.SklearnLinearSVC()),
        ("svm", inner.CVXPY(solver="OSQP")),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_the_hypergradient_is_that_of_our_own_solvers(x64, task, solver):
    made, expected = setup(task), native(task)
    found = estimate(made.problem, solver, made.params, made.hparams, made.data)
    assert status_of(found) is Status.CONVERGED
    np.testing.assert_allclose(found.outer_loss, expected.outer_loss, rtol=1e-7)
    np.testing.assert_allclose(found.grad, expected.grad, atol=1e-6 * np.max(np.abs(expected.grad)))


@pytest.mark.parametrize(("theta", "classes", "sparse"), [(1.0, 2, False), (0.03, 3, True), (0.003, 3, False)])
def test_the_dual_of_liblinear_is_exact(x64, theta, classes, sparse):
    """x solves the dual of a mean over rows that overlap, to eleven digits."""
    made = setup("svm")
    features, labels = made.data["train"]["features"], jnp.argmax(made.data["train"]["targets"], axis=1)
    keep = np.nonzero(np.asarray(labels) < classes)[0]
    x, y = features[keep] + 0.3 * np.random.default_rng(1).normal(size=(len(keep), features.shape[1])), labels[keep]
    eye = jnp.eye(classes)
    model = LinearModel(loss="crammer_singer", rows=lambda d: d, l2=lambda h: h, mean=True)

    def dual(params, hparams, data):
        weights = (eye[data[1]] - params).T @ data[0]
        return jnp.sum(weights**2) / (2 * hparams * len(data[1])) + jnp.sum(params * eye[data[1]])

    problem = bl.Problem(
        dual,
        linear_model=model,
        polyhedral=True,
        projection=lambda p, h, d: jax.vmap(bl.operators.projection.projection_simplex)(p),
    )
    data = (BCOO.fromdense(x) if sparse else x, y)
    found = solve(
        inner.SklearnLinearSVC(), problem, jnp.full((len(keep), classes), 1 / classes), jnp.array(theta), data
    )
    assert status_of(found) is Status.CONVERGED
    assert float(found.residual) <= 1e-11


def test_the_dual_does_not_hang_on_the_accuracy_of_liblinear(x64):
    """The support is told apart at a coarser tolerance, and the equations on it do the rest."""
    made = setup("svm")
    problem, theta = made.problem, made.hparams - 2
    found = solve(inner.SklearnLinearSVC(tol=1e-3), problem, made.params, theta, made.data)
    assert status_of(found) is Status.CONVERGED
    assert float(found.residual) <= 1e-12
    assert np.sum((found.params > 1e-6) & (found.params < 1 - 1e-6)) >= 4


@pytest.mark.parametrize(
    ("task", "solver"),
    [
        ("ridge", inner.SklearnRidge()),
        ("ridge", inner.SciPyMinimize()),
        ("lasso", inner.SklearnLasso()),
        ("svm", inner.SklearnLinearSVC()),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_single_precision_is_that_of_the_answer_alone(task, solver):
    """The foreign code works in double: the answer is the exact one, rounded."""
    made, expected = setup(task), native(task)
    with precision("float32"), jax.numpy_dtype_promotion("strict"):

        def single(x):
            return jnp.asarray(np.asarray(x), jnp.float32 if np.asarray(x).dtype.kind == "f" else None)

        start, hparams, data = (jax.tree.map(single, part) for part in (made.params, made.hparams, made.data))
        found = solve(solver, made.problem, start, hparams, data)
        assert found.params.dtype == found.residual.dtype == jnp.float32
        assert status_of(found) is Status.CONVERGED
    scale = np.max(np.abs(expected.params))
    np.testing.assert_allclose(found.params, expected.params, atol=(1e-4 if task == "svm" else 3e-6) * scale)


def test_statements_of_programs_for_cvxpy(x64):
    """Functions, factors and matrices that act on several columns state one program; every solver finds its KKT point."""
    rng = np.random.default_rng(6)
    factor, c = rng.normal(size=(5, 3)), jnp.asarray(rng.normal(size=(5, 2)))
    matrix, rows = jnp.asarray(factor @ factor.T), jnp.asarray(rng.normal(size=(1, 5)))
    sides = {"E": rows, "d": jnp.ones((1, 2)), "h": jnp.full((5, 2), 0.4)}
    partial = jax.tree_util.Partial
    statements = [
        QP(matrix, c, M=jnp.eye(5), **sides),
        QP(partial(jnp.matmul, matrix), c, M=partial(jnp.asarray), **sides),
        QP(bl.statements.Factored(jnp.asarray(factor), jnp.array(1.0)), c, M=BCOO.fromdense(jnp.eye(5)), **sides),
    ]
    start = KKTSolution(jnp.zeros((5, 2)), jnp.zeros((1, 2)), jnp.zeros((5, 2)))
    found = []
    for program, solver in zip(statements, ("CLARABEL", "SCS", "OSQP"), strict=True):
        problem = bl.Problem(inner=bl.Program(lambda h, d, program=program: program))
        solution = solve(inner.CVXPY(solver=solver), problem, start, jnp.array(0.0))
        assert status_of(solution) is Status.CONVERGED
        assert float(solution.residual) <= 1e-9
        residual = bl.optimality.KKT().residual(bl.At(problem, jnp.array(0.0), None), solution.params)
        assert max(float(jnp.max(jnp.abs(x))) for x in residual) <= 1e-9
        found.append(solution.params)
    assert float(jnp.max(found[0].dual_ineq)) > 0.01
    for other in found[1:]:
        np.testing.assert_allclose(other.primal, found[0].primal, atol=1e-8)


def test_quadratic_programs_are_polished(x64):
    """An answer at four digits knows the active constraints; the equations on them give the rest."""
    _, problem, start, theta, _, closed_form = program_case()
    coarse = inner.CVXPY(solver="SCS", options={"eps_abs": 1e-4, "eps_rel": 1e-4})
    found = solve(coarse, problem, start, theta)
    assert status_of(found) is Status.CONVERGED
    for a, b in zip(found.params, closed_form(theta), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_cone_programs_are_refined(x64):
    """Clarabel leaves curved cones at five digits; the answer is exact."""
    case = case_of(Cones(zero=4, nonnegative=8, second_order=(8,), semidefinite=(5,), exponential=4))
    start = jax.tree.map(jnp.zeros_like, case.solution)._replace(w=jnp.ones(()))
    found = solve(inner.CVXPY(), case.problem, start, case.hparams)
    assert status_of(found) is Status.CONVERGED
    for a, b in zip(found.params, case.solution, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)
