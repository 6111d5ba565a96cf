"""External solvers: derivatives around them, sparse rows, logs, and that nothing hangs. Optima: `test_inner_matrix.py`."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import inner_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from catalog.conic import case_of
from catalog.solvers import equality_qp
from conftest import precision
from jax.experimental.sparse import BCOO

import bilevel as bl
from bilevel import config, inner, tasks
from bilevel._status import Status
from bilevel.inner import external
from bilevel.inner.external import _base, _callback
from bilevel.operators.cones import Cones
from bilevel.optimality import Conic, ConicPoint, KKTSolution
from bilevel.problem import QP, ConeProgram, LinearModel
from bilevel.tasks.ridge import normal_equations

pytestmark = pytest.mark.slice(4)

X, Y, CLASSES = inner_cases.X, inner_cases.Y, inner_cases.CLASSES
NOISY = np.where(np.arange(40) % 5 == 0, np.arange(40) % 3, CLASSES)  # not separable


@pytest.fixture(autouse=True)
def log_anew():
    """Every test may log each message once."""
    _base._said.clear()


def linear_problem(loss="squared", mean=False, **penalties):
    def outer(params, hparams, data):
        return jnp.sum(jnp.sin(params) * jnp.cos(jnp.arange(params.size, dtype=params.dtype)).reshape(params.shape))

    return bl.Problem(
        outer_loss=outer, linear_model=LinearModel(loss=loss, rows=lambda data: data, mean=mean, **penalties)
    )


def target_problem():
    """minimize ‖x − θ‖²/2, whose solution is θ."""
    return bl.Problem(lambda x, h, d: jnp.sum((x - h) ** 2) / 2, lambda x, h, d: jnp.sum(jnp.sin(x)))


def solve(solver, problem, start, hparams, data=None):
    solver.check(problem)
    return jax.jit(lambda *args: solver.solve(problem, *args))(start, hparams, data)


def status(found):
    return Status(int(found.status))


# Derivatives by custom_root, under jit and vmap


def logistic_case():
    """Six Newton steps from zero, differentiated as they stand."""
    problem = linear_problem("logistic", l2=jnp.exp)
    data = jnp.asarray(X), jnp.asarray(NOISY)

    def newton(hparams):
        gradient = jax.grad(lambda w: problem.inner_loss(w.reshape(8, 3), hparams, data))

        def step(w, _):
            return w - jnp.linalg.solve(jax.jacfwd(gradient)(w), gradient(w)), None

        return jax.lax.scan(step, jnp.zeros(24), length=6)[0].reshape(8, 3)

    return inner.SklearnLogisticRegression(), problem, jnp.zeros((8, 3)), jnp.linspace(0.0, 2.0, 8), data, newton


def lasso_case():
    """On its support the solution is that of a linear system."""
    problem, theta = linear_problem(l1=jnp.exp), jnp.linspace(1.0, 3.0, 8)
    data = (jnp.asarray(X), jnp.asarray(Y))
    at = np.asarray(inner.FISTA(rtol=1e-13, max_steps=50_000).solve(problem, jnp.zeros(8), theta, data).params)
    support, signs = np.nonzero(at)[0], np.sign(at[at != 0])
    assert 3 <= len(support) <= 6
    columns = jnp.asarray(X[:, support])

    def closed_form(hparams):
        found = jnp.linalg.solve(columns.T @ columns, columns.T @ Y - signs * jnp.exp(hparams[support]))
        return jnp.zeros(8).at[support].set(found)

    return inner.SklearnLasso(), problem, jnp.zeros(8), theta, data, closed_form


def program_case():
    """With its active rows as equalities the program is a linear system."""
    rng = np.random.default_rng(9)
    rows, columns, pull = rng.normal(size=(2, 8)), rng.normal(size=(12, 8)), rng.normal(size=(8, 4))

    def program(hparams, data):
        matrix = jnp.asarray(inner_cases.Q) + jnp.diag(jnp.exp(hparams[:1])[0] * jnp.ones(8))
        bound = 0.1 + jnp.exp(hparams[1]) * jnp.ones(12) / 4
        return QP(matrix, inner_cases.C + pull @ hparams, jnp.asarray(rows), 0.1 * hparams[2:], columns, bound)

    problem, theta = bl.Problem(quadratic_program=program), jnp.array([-1.0, -1.5, 0.5, 1.0])
    start = KKTSolution(jnp.zeros(8), jnp.zeros(2), jnp.zeros(12))
    at = solve(inner.CVXPY(), problem, start, theta).params
    active = np.nonzero(np.asarray(at.dual_ineq) > 1e-6)[0]
    assert len(active) >= 2

    def closed_form(hparams):
        q, c, e, d, m, h = program(hparams, None)
        z, duals = equality_qp(q, c, jnp.vstack([e, m[active]]), jnp.concatenate([d, h[active]]))
        return KKTSolution(z, duals[:2], jnp.zeros(12).at[active].set(duals[2:]))

    return inner.CVXPY(), problem, start, theta, None, closed_form


def cone_case():
    """minimize cᵀz over ‖z‖ ≤ r: z = −r c/‖c‖, dual (‖c‖, c), slack (r, z)."""

    def program(hparams, data):
        c, radius = hparams[1:], jnp.exp(hparams[0])
        e = -jnp.vstack([jnp.zeros((1, 4)), jnp.eye(4)])
        return ConeProgram(c, e, jnp.zeros(5).at[0].set(radius), Cones(second_order=(5,)))

    def closed_form(hparams):
        c, radius = hparams[1:], jnp.exp(hparams[0])
        norm = jnp.linalg.norm(c)
        z = -radius * c / norm
        return Conic.embed(z, jnp.r_[norm, c], jnp.r_[radius, z])

    problem, theta = bl.Problem(cone_program=program), jnp.array([0.3, 1.0, -2.0, 0.5, 0.1])
    start = ConicPoint(jnp.zeros(4), jnp.zeros(5), jnp.ones(()))
    return inner.CVXPY(), problem, start, theta, None, closed_form


def measure(params):
    return sum(jnp.sum(jnp.sin(x) * jnp.cos(jnp.arange(x.size)).reshape(x.shape)) for x in jax.tree.leaves(params))


def derivatives(function):
    """Gradient, a derivative in forward mode, and that of the gradient, forward over reverse."""

    def at(theta):
        direction = (jnp.cos(3 * jnp.arange(theta.size)),)
        gradient, curved = jax.jvp(jax.grad(function), (theta,), direction)
        return gradient, jax.jvp(function, (theta,), direction)[1], curved

    return at


@pytest.mark.parametrize("make", [logistic_case, lasso_case, program_case, cone_case], ids=lambda f: f.__name__)
def test_derivatives_around_a_black_box_in_lanes(x64, make):
    solver, problem, start, theta, data, reference = make()
    thetas = theta + 1e-3 * jnp.asarray(np.random.default_rng(1).normal(size=(3, theta.size)))

    @bl.custom_root(bl.optimality.bind(problem))
    def black_box(start, hparams, data):
        return solver.solve(problem, start, hparams, data).params

    def function(hparams):
        return measure(black_box(start, hparams, data))

    lanes = jax.jit(jax.vmap(derivatives(function)))(thetas)
    expected = jax.jit(jax.vmap(derivatives(lambda h: measure(reference(h)))))(thetas)
    for found, right in zip(lanes, expected, strict=True):
        assert np.min(np.max(np.abs(right).reshape(3, -1), axis=1)) > 1e-3
        np.testing.assert_allclose(found, right, atol=1e-6 * np.max(np.abs(right)))


@pytest.mark.parametrize(
    "make", [lasso_case, pytest.param(cone_case, marks=pytest.mark.slow)], ids=lambda f: f.__name__
)
def test_hessians_around_a_black_box(x64, make):
    """Without lanes, under jit."""
    solver, problem, start, theta, data, reference = make()

    @bl.custom_root(bl.optimality.bind(problem))
    def black_box(start, hparams, data):
        return solver.solve(problem, start, hparams, data).params

    found = jax.jit(jax.hessian(lambda h: measure(black_box(start, h, data))))(theta)
    expected = jax.jit(jax.hessian(lambda h: measure(reference(h))))(theta)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.max(np.abs(expected)))


# Hypergradients of the tasks


@functools.cache
def setup(task):
    made = {
        "ridge": tasks.Ridge(),
        "lasso": tasks.Lasso(),
        "logistic": tasks.Logistic(data="iris", penalty=0.05),
        "svm": tasks.SVM(data="iris", theta=20.0),
    }[task]
    with precision("float64"):
        return made.setup(0, "float64")


def estimate(problem, solver, start, hparams, data):
    def run(start, hparams, data):
        return bl.hypergrad.Implicit().estimate(problem, solver, start, jnp.zeros_like(start), hparams, data)

    return jax.jit(run)(start, hparams, data)


@functools.cache
def native(task):
    made = setup(task)
    smooth = made.problem.smooth
    solver = inner.LBFGS(rtol=1e-13, max_steps=9000) if smooth else inner.FISTA(rtol=1e-13, max_steps=90_000)
    with precision("float64"):
        return estimate(made.problem, solver, made.params, made.hparams, made.data)


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
    assert status(found) is Status.CONVERGED
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
    assert status(found) is Status.CONVERGED
    assert float(found.residual) <= 1e-11


def test_the_dual_does_not_hang_on_the_accuracy_of_liblinear(x64):
    """The support is told apart at a coarser tolerance, and the equations on it do the rest."""
    made = setup("svm")
    problem, theta = made.problem, made.hparams - 2
    found = solve(inner.SklearnLinearSVC(tol=1e-3), problem, made.params, theta, made.data)
    assert status(found) is Status.CONVERGED
    assert float(found.residual) <= 1e-12
    assert np.sum((found.params > 1e-6) & (found.params < 1 - 1e-6)) >= 4


# Linear models: what is mapped


def l1_of(hparams):
    return jnp.exp(hparams) / 10


def l2_of(hparams):
    return jnp.exp(2 * hparams) / 7


L1, L2 = {"l1": l1_of}, {"l2": l2_of}
TWO = np.stack([Y, Y[::-1]], axis=1)


@pytest.mark.parametrize(
    ("solver", "penalties", "targets", "shape", "flags"),
    [
        (inner.SklearnRidge(), L2, Y, (8,), "mean"),
        (inner.SklearnRidge(), L2, TWO, (8, 2), "per feature, sparse"),
        (inner.SklearnLasso(), L1, Y, (8,), "mean, per feature"),
        (inner.SklearnLasso(), L1, TWO, (8, 2), "sparse"),
        (inner.SklearnElasticNet(), L1 | L2, Y, (8,), "mean, per feature, sparse"),
        (inner.SklearnElasticNet(), L1 | L2, TWO, (8, 2), ""),
        (inner.SklearnElasticNet(), L1, Y, (8,), "per feature"),
        (inner.SklearnLogisticRegression(), L2, NOISY > 1, (8,), "per feature, sparse"),
        (inner.SklearnLogisticRegression(), L2, NOISY > 1, (8, 2), "mean, per feature"),
        (inner.SklearnLogisticRegression(), L2, NOISY, (8, 3), "mean, sparse"),
        (inner.SklearnLogisticRegression(), L2, NOISY, (8, 3), "per feature"),
    ],
)
def test_penalties_and_weights_are_mapped_exactly(x64, solver, penalties, targets, shape, flags):
    """Up to rounding, whereas any factor that is off would be seen."""
    theta = jnp.linspace(-2.0, 1.0, 8) if "per feature" in flags else jnp.array(-1.0)
    features = jnp.asarray(np.where(np.random.default_rng(2).random(X.shape) < 0.6, X, 0))
    x = BCOO.fromdense(features, nse=300) if "sparse" in flags else features  # padded
    loss = "logistic" if isinstance(solver, inner.SklearnLogisticRegression) else "squared"
    problem = linear_problem(loss, mean="mean" in flags, **penalties)
    data = x, jnp.asarray(targets if loss == "squared" else targets.astype("int32"))
    found = solve(solver, problem, jnp.zeros(shape), theta, data)
    assert status(found) is Status.CONVERGED
    assert float(found.residual) <= 1e-11


def test_two_columns_of_a_softmax_are_one_vector_of_scikit_learn(x64):
    """A case of its own, against our L-BFGS: the penalty of v is half of that of W = [−v/2, v/2]."""
    problem = linear_problem("logistic", l2=jnp.exp)
    args = jnp.zeros((8, 2)), jnp.linspace(-1.0, 1.0, 8), (jnp.asarray(X), jnp.asarray(NOISY > 1, jnp.int32))
    found, expected = (
        solve(s, problem, *args) for s in (inner.SklearnLogisticRegression(), inner.LBFGS(rtol=1e-13, max_steps=9000))
    )
    np.testing.assert_allclose(found.params, expected.params, atol=1e-9)
    np.testing.assert_allclose(found.params[:, 0], -found.params[:, 1], atol=1e-12)


def test_a_warm_start_saves_iterations(x64):
    for solver, problem, targets, shape in (
        (inner.SklearnLasso(), linear_problem(l1=jnp.exp), Y, (8,)),
        (inner.SklearnLogisticRegression(), linear_problem("logistic", l2=jnp.exp), NOISY, (8, 3)),
    ):
        args = jnp.array(0.5), (jnp.asarray(X), jnp.asarray(targets))
        cold = solve(solver, problem, jnp.zeros(shape), *args)
        warm = solve(solver, problem, cold.params, *args)
        assert int(warm.steps) < int(cold.steps) / 2, type(solver).__name__
        assert status(warm) is Status.CONVERGED


# Sparse rows


SPARSE = scipy.sparse.random_array((60, 40), density=0.3, rng=np.random.default_rng(4), format="csr")


@pytest.mark.parametrize(
    ("problem", "targets", "shape"),
    [
        (linear_problem(l1=jnp.exp), "real", (40,)),
        (linear_problem("logistic", l2=jnp.exp), "classes", (40, 3)),
    ],
    ids=["lasso", "logistic"],
)
def test_our_own_solvers_take_sparse_rows(x64, problem, targets, shape):
    rng = np.random.default_rng(3)
    y = jnp.asarray(rng.normal(size=60) if targets == "real" else rng.integers(0, 3, 60))
    long = {"rtol": 1e-12, "max_steps": 50_000}
    solver = inner.LBFGS(**long) if problem.smooth and targets == "classes" else inner.FISTA(**long)
    found, dense = (
        estimate(problem, solver, jnp.zeros(shape), jnp.array(0.1), (x, y))
        for x in (BCOO.from_scipy_sparse(SPARSE), jnp.asarray(SPARSE.toarray()))
    )
    assert status(found) is Status.CONVERGED
    np.testing.assert_allclose(found.grad, dense.grad, rtol=1e-10)


def test_the_system_on_the_support_takes_sparse_rows(x64):
    """The lasso's system is gathered from columns, which a sparse matrix does not give."""
    problem, y = linear_problem(l1=jnp.exp), jnp.asarray(np.random.default_rng(3).normal(size=60))
    theta, condition = jnp.array(1.0), bl.optimality.ProximalGradient(support=12)

    def adjoint(params, data):
        system = condition.system(problem, params, theta, data)
        return system.solve_transposed(bl.linear.Auto(rtol=1e-13), jnp.cos(jnp.arange(40.0)), jnp.zeros(40))

    sparse, dense = BCOO.from_scipy_sparse(SPARSE), jnp.asarray(SPARSE.toarray())
    params = solve(inner.SklearnLasso(), problem, jnp.zeros(40), theta, (sparse, y)).params
    assert 4 <= int(jnp.sum(params != 0)) <= 12
    found, expected = (jax.jit(adjoint)(params, (x, y)) for x in (sparse, dense))
    assert status(found) is Status.CONVERGED
    np.testing.assert_allclose(found.value, expected.value, atol=1e-10)


def test_minimize_takes_scipy_matrices(x64):
    def outer(params, hparams, data):
        return jnp.mean((data["held"] @ params - 1) ** 2)

    problem = bl.Problem(
        outer_loss=outer, linear_model=LinearModel(loss="squared", rows=lambda d: d["train"], l2=jnp.exp)
    )
    y, held = np.random.default_rng(3).normal(size=60), scipy.sparse.coo_matrix(SPARSE[:9])
    start = jnp.array(0.0), jnp.zeros(40)
    found = bl.minimize(problem, *start, {"train": (SPARSE, y), "held": held}, inner=inner.SklearnRidge(), steps=3)
    dense = bl.minimize(problem, *start, {"train": (SPARSE.toarray(), y), "held": held.toarray()}, steps=3)
    assert found.failures == dense.failures == 0
    np.testing.assert_allclose(found.outer_loss, dense.outer_loss, rtol=1e-6)


def test_python_gets_numpy_and_scipy(x64):
    seen = {}

    def function(params, hparams, data):
        seen.update(params=params, hparams=hparams, rows=data[0], labels=data[1])
        params += 1  # its own copy
        return params * 0 + hparams["a"]

    problem = bl.Problem(lambda x, h, d: jnp.sum((x - h["a"]) ** 2))
    data = (BCOO.from_scipy_sparse(SPARSE), jnp.arange(3))
    start = jnp.zeros(3)
    found = solve(inner.Python(function=function), problem, start, {"a": jnp.array(2.0)}, data)
    assert status(found) is Status.CONVERGED
    np.testing.assert_array_equal(start, 0)
    assert type(seen["params"]) is np.ndarray
    assert seen["params"].dtype == seen["hparams"]["a"].dtype == np.float64
    assert seen["labels"].dtype.kind == "i"
    np.testing.assert_array_equal(seen["rows"].toarray(), SPARSE.toarray())


# What fails


@functools.cache
def run_current():
    """A solve by a function that is exchanged without compiling anew."""
    current = []
    solver, problem = inner.Python(function=lambda *args: current[-1](*args)), target_problem()
    compiled = jax.jit(lambda start, hparams: solver.solve(problem, start, hparams, None))

    def run(start, hparams, function):
        current.append(function)
        return jax.block_until_ready(compiled(start, hparams))

    return run


def raises(params, hparams, data):
    raise ArithmeticError("the sky fell in 3 places")


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        (raises, Status.EXTERNAL_ERROR, "ArithmeticError: the sky fell in 3 places"),
        (lambda p, h, d: h[:2], Status.WRONG_OUTPUT, r"float64\[4\], and is float64\[2\]"),
        (lambda p, h, d: h[None], Status.WRONG_OUTPUT, r"float64\[1, 4\]"),
        (lambda p, h, d: (h,), Status.WRONG_OUTPUT, r"\(float64\[4\],\)"),
        (lambda p, h, d: None, Status.WRONG_OUTPUT, "and is None"),
        (lambda p, h, d: "nothing", Status.WRONG_OUTPUT, "and is str"),
        (lambda p, h, d: np.arange(4), Status.WRONG_OUTPUT, r"int64\[4\]"),
        (lambda p, h, d: h + 0j, Status.WRONG_OUTPUT, r"complex128\[4\]"),
        (lambda p, h, d: [*h[:3], "x"], Status.WRONG_OUTPUT, "str"),
        (lambda p, h, d: h * np.nan, Status.NON_FINITE, None),
        (lambda p, h, d: h + 1e-4, Status.NOT_A_SOLUTION, None),
        (lambda p, h, d: h + 1e-9, Status.CONVERGED, None),
    ],
)
def test_what_comes_back_is_checked(x64, caplog, function, code, words):
    start, hparams = jnp.full(4, 7.0), jnp.array([1.0, -2.0, 3.0, 0.5])
    with caplog.at_level(logging.WARNING, "bilevel"):
        found = run_current()(start, hparams, function)
        again = run_current()(start, hparams + 1, function)
    assert status(found) is status(again) is code
    if words is None:
        assert not caplog.records
        return
    np.testing.assert_array_equal(found.params, start)
    (record,) = caplog.records
    assert record.getMessage().startswith("inner.Python: ")
    assert "not logged" in record.getMessage()
    assert re.search(words, record.getMessage())


def test_one_lane_may_fail(x64, caplog):
    def function(params, hparams, data):
        if hparams[0] < 0:
            raise ValueError("negative")
        return hparams

    thetas = jnp.array([[1.0, 2.0], [-1.0, 2.0], [3.0, 4.0]])
    solver, problem, start = inner.Python(function=function), target_problem(), jnp.zeros(2)
    found = jax.jit(jax.vmap(lambda h: solver.solve(problem, start, h, None)))(thetas)
    assert [Status(int(code)) for code in found.status] == [Status.CONVERGED, Status.EXTERNAL_ERROR, Status.CONVERGED]
    np.testing.assert_array_equal(found.params, [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])


def infeasible(hparams, data):
    return QP(jnp.eye(2), jnp.ones(2), M=jnp.array([[1.0, 0.0], [-1.0, 0.0]]), h=jnp.array([-1.0, -1.0]))


@pytest.mark.parametrize(
    ("solver", "problem", "start", "hparams", "words"),
    [
        (
            inner.SklearnElasticNet(),
            linear_problem(l1=jnp.exp, l2=lambda h: jnp.exp(h / 2)),
            jnp.zeros(8, "float32"),
            jnp.linspace(-1, 1, 8),
            "the same l2/l1² for every feature",
        ),
        (
            inner.SklearnRidge(),
            linear_problem(l2=lambda h: h),
            jnp.zeros(8, "float32"),
            jnp.zeros(8),
            "a per-feature penalty is not positive",
        ),
        (
            inner.SklearnLogisticRegression(),
            linear_problem("logistic", l2=jnp.exp),
            jnp.zeros((8, 5), "float32"),
            jnp.array(0.0),
            "3 of the 5 classes",
        ),
        (
            inner.CVXPY(),
            bl.Problem(quadratic_program=infeasible),
            KKTSolution(jnp.zeros(2, "float32"), None, jnp.zeros(2, "float32")),
            jnp.array(0.0),
            "CLARABEL ended with the status infeasible",
        ),
        (
            inner.SciPyMinimize(options={"gtoll": 1.0}),
            target_problem(),
            jnp.zeros(2, "float32"),
            jnp.ones(2),
            "Unknown solver options: gtoll",
        ),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, inner.InnerSolver) else None,
)
def test_what_a_solver_does_not_take_is_logged(x64, caplog, solver, problem, start, hparams, words):
    data = (jnp.asarray(X), jnp.asarray(NOISY if solver.needs and "logistic" in solver.needs[0].requirement else Y))
    start, hparams = jax.tree.map(lambda x: x.astype("float64"), (start, hparams))
    with caplog.at_level(logging.WARNING, "bilevel"):
        found = solve(solver, problem, start, hparams, data)
    assert status(found) is Status.EXTERNAL_ERROR
    (record,) = caplog.records
    assert words in record.getMessage()
    assert record.getMessage().startswith(f"inner.{type(solver).__name__}: ")


@pytest.mark.parametrize(
    ("solver", "problem", "words"),
    [
        (inner.SklearnLasso(), linear_problem(l1=jnp.exp, l2=jnp.exp), r"without an ℓ2 penalty.*SklearnElasticNet"),
        (inner.SklearnLasso(), linear_problem(l2=jnp.exp), r"an ℓ1 penalty, and this one has no ℓ1.*SklearnRidge"),
        (inner.SklearnRidge(), linear_problem(l1=jnp.exp), r"no ℓ1 penalty, and this one has an ℓ1.*SklearnLasso"),
        (inner.SklearnRidge(), target_problem(), r"has no Problem\.linear_model.*SciPyMinimize"),
        (inner.SklearnLogisticRegression(), linear_problem(l2=jnp.exp), "has a squared loss.*SklearnRidge"),
        (
            inner.SklearnLinearSVC(),
            linear_problem("logistic", l2=jnp.exp),
            "a logistic loss.*SklearnLogisticRegression",
        ),
        (inner.CVXPY(), target_problem(), "a quadratic or a cone program"),
        (inner.CVXPY(solver="OSQP"), bl.Problem(cone_program=lambda h, d: None), "use solver CLARABEL or SCS"),
        (inner.SciPyMinimize(), linear_problem(l1=jnp.exp), "smooth unconstrained.*SklearnLasso"),
        (inner.SciPyRoot(), linear_problem(l1=jnp.exp), r"a fixed-point map or an optimality.*SklearnLasso"),
    ],
)
def test_a_misfit_is_refused_with_what_fits(solver, problem, words):
    with pytest.raises(ValueError, match=rf"inner\.{type(solver).__name__}.* needs .*{words}"):
        solver.check(problem)


def test_settings_are_checked():
    with pytest.raises(TypeError, match=r"inner\.Python: function must be a function"):
        inner.Python(function="normal_equations")
    with pytest.raises(TypeError, match=r"inner\.Python: function must be a function .* got None"):
        inner.Python(function=None)
    with pytest.raises(TypeError, match=r"inner\.CVXPY: options must be a mapping"):
        inner.CVXPY(options="tight")
    with pytest.raises(ValueError, match=r"inner\.CVXPY: solver must be CLARABEL, SCS or OSQP"):
        inner.CVXPY(solver="ECOS")
    with pytest.raises(ValueError, match=r"inner\.SciPyMinimize: .*'Nelder-Mead'"):
        inner.SciPyMinimize(method="Nelder-Mead")
    with pytest.raises(ValueError, match=r"inner\.SklearnLasso: tol must be positive"):
        inner.SklearnLasso(tol=0.0)


@pytest.mark.parametrize("missing", ["cvxpy", "scs"])
def test_a_missing_package_is_named_before_anything_runs(monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(ImportError, match=rf'package {missing}.*pip install "bilevel\[external\]"'):
        inner.CVXPY(solver="SCS").check(bl.Problem(quadratic_program=infeasible))


def test_the_foreign_code_has_no_derivative(x64):
    """Without `custom_root` a derivative is NaN, not zero; the value is untouched."""
    solver, problem = inner.Python(function=lambda p, h, d: h), target_problem()

    def first(theta):
        return solver.solve(problem, jnp.zeros(2), theta, None).params[0]

    theta = jnp.array([1.0, 2.0])
    value, tangent = jax.jvp(first, (theta,), (jnp.ones(2),))
    assert float(value) == 1.0
    assert np.isnan(tangent)
    state = solver.init(problem, jnp.zeros(2), theta, None)
    grad = jax.grad(lambda h: solver.step(problem, state, h, None).params[0])(theta)
    assert np.all(np.isnan(grad))


# Precision


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
        assert status(found) is Status.CONVERGED
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
        QP(bl.problem.Factored(jnp.asarray(factor), jnp.array(1.0)), c, M=BCOO.fromdense(jnp.eye(5)), **sides),
    ]
    start = KKTSolution(jnp.zeros((5, 2)), jnp.zeros((1, 2)), jnp.zeros((5, 2)))
    found = []
    for program, solver in zip(statements, ("CLARABEL", "SCS", "OSQP"), strict=True):
        problem = bl.Problem(quadratic_program=lambda h, d, program=program: program)
        solution = solve(inner.CVXPY(solver=solver), problem, start, jnp.array(0.0))
        assert status(solution) is Status.CONVERGED
        assert float(solution.residual) <= 1e-9
        residual = bl.optimality.KKT().residual(problem, solution.params, jnp.array(0.0), None)
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
    assert status(found) is Status.CONVERGED
    for a, b in zip(found.params, closed_form(theta), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_cone_programs_are_refined(x64):
    """Clarabel leaves curved cones at five digits; the answer is exact."""
    case = case_of(Cones(zero=4, nonnegative=8, second_order=(8,), semidefinite=(5,), exponential=4))
    start = jax.tree.map(jnp.zeros_like, case.solution)._replace(w=jnp.ones(()))
    found = solve(inner.CVXPY(), case.problem, start, case.hparams)
    assert status(found) is Status.CONVERGED
    for a, b in zip(found.params, case.solution, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


# The page


def test_the_page_runs_and_names_every_solver(capsys):
    page = (Path(__file__).resolve().parents[1] / "docs" / "external-solvers.md").read_text(encoding="utf-8")
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    found = np.array(capsys.readouterr().out.strip("[]\n").split(), float)
    assert found.shape == (3,)
    assert np.all(found < 0)  # more penalty, smaller weights
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert {name for _, name in rows} == set(external.__all__)
    choices = config.groups()["inner"]
    for choice, name in rows:
        assert choice in choices
        assert choice == re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.replace("SciPy", "Scipy")).lower()


# One thread


@pytest.mark.parametrize("solver", [inner.SklearnRidge(), inner.SciPyMinimize()], ids=lambda s: type(s).__name__)
def test_arguments_handed_over_in_place(x64, monkeypatch, solver):
    monkeypatch.setattr(_callback, "pool_size", lambda: 1)
    problem, data = linear_problem(l2=jnp.exp), (jnp.asarray(X), jnp.asarray(Y))
    thetas = jnp.linspace(-1.0, 1.0, 5)
    found = jax.jit(jax.vmap(lambda h: solver.solve(problem, jnp.zeros(8), h, data)))(thetas)
    assert np.all(found.status == Status.CONVERGED)
    expected = [np.linalg.solve(X.T @ X + np.exp(h) * np.eye(8), X.T @ Y) for h in thetas]
    np.testing.assert_allclose(found.params, expected, atol=1e-7)


def test_the_pool_is_as_large_as_the_environment_says(monkeypatch):
    monkeypatch.setenv("NPROC", "3")
    assert _callback.pool_size() == 3
    monkeypatch.delenv("NPROC")
    assert _callback.pool_size() >= 1


ONE_CORE = """
import faulthandler, os, sys
faulthandler.dump_traceback_later(60, exit=True)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
import bilevel as bl
jax.config.update("jax_enable_x64", True)
n = 300
matrix = jnp.asarray(np.random.default_rng(0).normal(size=(n, n)) / n**0.5)
problem = bl.Problem(linear_model=bl.problem.LinearModel(loss="squared", rows=lambda data: data, l2=jnp.exp))
for solver in (bl.inner.SciPyMinimize(), bl.inner.SklearnRidge()):
    run = jax.jit(lambda start, data: solver.solve(problem, start, jnp.array(0.0), data).status)
    jax.block_until_ready(run(jnp.zeros(n), (matrix, jnp.ones(n))))
    later = matrix
    for _ in range(100):
        later = later @ matrix  # still being computed when the solve is dispatched
    print(run(jnp.zeros(n), (later / jnp.linalg.norm(later), jnp.ones(n))))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be held to one core here")
def test_nothing_hangs_on_one_core():
    done = subprocess.run([sys.executable, "-c", ONE_CORE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["0", "0"]
