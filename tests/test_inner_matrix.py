"""The conformance matrix: every solver on every problem reaches the optimum of another code, or refuses it.

A new solver adds itself to `SOLVERS` and says in `FALLS_SHORT` where its status, not its declared needs, tells that it failed.
"""

import dataclasses
import itertools

import inner_cases
import jax
import numpy as np
import optax
import optimistix
import pytest
from inner_cases import MAKERS
from problems import status_of

from bilevel import Status, inner

pytestmark = [pytest.mark.slice(8), pytest.mark.usefixtures("x64")]

TIGHT = {"rtol": 1e-11, "atol": 0.0, "max_steps": 200_000}
SOLVERS = {
    "Anderson": inner.Anderson(**TIGHT),
    "BlockCoordinateDescent": inner.BlockCoordinateDescent(**TIGHT),
    "FISTA": inner.FISTA(**TIGHT),
    "FISTA plain": inner.FISTA(**TIGHT, acceleration=False),
    "FixedPointIteration": inner.FixedPointIteration(**TIGHT),
    "LBFGS": inner.LBFGS(**TIGHT),
    "MirrorDescent": inner.MirrorDescent(**TIGHT),
    "Newton": inner.Newton(**TIGHT),
    "Optax": inner.Optax(optimizer=optax.sgd(0.002, momentum=0.9), prox_step=0.02, **TIGHT),
    "Optax SVRG": inner.Optax(
        optimizer=optax.sgd(0.02), batch_size=7, variance_reduction=True, prox_step=0.02, **TIGHT
    ),
    "Optimistix": inner.Optimistix(solver=optimistix.BFGS(rtol=1e-11, atol=1e-11), rtol=1e-8),
    "Quadratic": inner.Quadratic(rtol=1e-11),
    "Ridge": inner.Ridge(rtol=1e-11),
    "SemismoothNewton": inner.SemismoothNewton(**TIGHT),
    "EqualityQP": inner.EqualityQP(rtol=1e-11),
    "FIRE": inner.FIRE(**TIGHT),
    "LevenbergMarquardt": inner.LevenbergMarquardt(**TIGHT),
    "OSQP": inner.OSQP(rtol=1e-9),
    "TrustRegion": inner.TrustRegion(**TIGHT),
    "CVXPY": inner.CVXPY(),
    "Python": inner.Python(function=lambda z, hparams, data: -np.linalg.solve(data["Q"], data["c"])),
    "SciPyMinimize": inner.SciPyMinimize(),
    "SciPyRoot": inner.SciPyRoot(),
    "SklearnElasticNet": inner.SklearnElasticNet(),
    "SklearnLasso": inner.SklearnLasso(),
    "SklearnLinearSVC": inner.SklearnLinearSVC(),
    "SklearnLogisticRegression": inner.SklearnLogisticRegression(),
    "SklearnRidge": inner.SklearnRidge(),
}
SMOOTH = {"quadratic", "ridge", "logistic", "rosenbrock", "nonlinear_least_squares"}
CONVEX_SETS = {"nnls", "simplex_qp", "box_qp", "svm_dual"}
SPARSE = {"lasso", "elastic_net"}
LOSSES = SMOOTH | CONVEX_SETS | SPARSE
PROGRAMS = CONVEX_SETS | {"quadratic", "ridge"}
SERVES = {
    "Anderson": LOSSES | {"fixed_point"},
    "BlockCoordinateDescent": LOSSES - {"rosenbrock", "nonlinear_least_squares", "simplex_qp"},
    "FISTA": LOSSES,
    "FISTA plain": LOSSES,
    "FixedPointIteration": LOSSES | {"fixed_point"},
    "LBFGS": SMOOTH,
    "MirrorDescent": CONVEX_SETS,
    "Newton": SMOOTH,
    "Optax": LOSSES,
    "Optax SVRG": {"ridge", "logistic", "lasso", "elastic_net"},
    "Optimistix": SMOOTH,
    "Quadratic": SMOOTH - {"logistic"},
    "Ridge": {"ridge"},
    "SemismoothNewton": LOSSES,
    "EqualityQP": {"quadratic", "ridge"},
    "FIRE": SMOOTH,
    "LevenbergMarquardt": {"ridge", "rosenbrock", "nonlinear_least_squares"},
    "OSQP": PROGRAMS,
    "TrustRegion": SMOOTH,
    "CVXPY": PROGRAMS,
    "Python": set(MAKERS),
    "SciPyMinimize": SMOOTH,
    "SciPyRoot": SMOOTH | {"fixed_point"},
    "SklearnElasticNet": {"lasso", "elastic_net"},
    "SklearnLasso": {"lasso"},
    "SklearnLinearSVC": {"svm_dual"},
    "SklearnLogisticRegression": {"logistic"},
    "SklearnRidge": {"ridge"},
}
# What the declared needs cannot tell: the solve ends with a status that says so.
FALLS_SHORT = {
    ("MirrorDescent", "nnls"): "its set is not made of simplices",
    ("MirrorDescent", "box_qp"): "its set is not made of simplices",
    ("Anderson", "rosenbrock"): "the step that suits the start is too long at the solution",
    ("FixedPointIteration", "rosenbrock"): "the step that suits the start is too long at the solution",
    ("SciPyRoot", "rosenbrock"): "MINPACK finds no root from there",
    ("Quadratic", "rosenbrock"): "the loss is not quadratic",
    ("Quadratic", "nonlinear_least_squares"): "the loss is not quadratic",
}
FALLS_SHORT |= {("Python", name): "the function solves another problem" for name in MAKERS if name != "quadratic"}
REACHES = [(solver, name) for solver in SOLVERS for name in MAKERS if name in SERVES[solver]]
REACHES = [pair for pair in REACHES if pair not in FALLS_SHORT]


def in_the_gate():
    """Two problems of each solver, so that every problem is met; the other cells are marked slow."""
    chosen = set()
    for number, solver in enumerate(SOLVERS):
        names = [name for each, name in REACHES if each == solver]
        chosen |= {(solver, names[(2 * number + k) % len(names)]) for k in range(2)}
    return chosen


GATE = in_the_gate()
CELLS = [pytest.param(*pair, marks=() if pair in GATE else pytest.mark.slow, id="-".join(pair)) for pair in REACHES]


def solve(solver, case):
    run = jax.jit(lambda p, h, d: solver.solve(case.problem, p, h, d))
    return run(case.start, case.hparams, case.data)


def test_every_solver_is_listed():
    exported = {
        cls
        for cls in map(inner.__dict__.get, inner.__all__)
        if isinstance(cls, type) and issubclass(cls, inner.InnerSolver) and cls is not inner.InnerSolver
    }
    assert exported == {type(solver) for solver in SOLVERS.values()}


def test_the_gate_meets_every_problem():
    assert {name for _, name in GATE} == set(MAKERS)
    assert {solver for solver, _ in GATE} == set(SOLVERS)


@pytest.mark.parametrize(("solver", "name"), CELLS)
def test_reaches_the_reference(solver, name):
    case = inner_cases.case(name)
    SOLVERS[solver].check(case.problem)
    found = solve(SOLVERS[solver], case)
    assert status_of(found) is Status.CONVERGED, f"residual {float(found.residual):.1e}"
    np.testing.assert_allclose(found.params, case.optimum, atol=1e-6)


def test_every_solver_refuses_what_it_does_not_serve():
    for solver, name in itertools.product(SOLVERS, MAKERS):
        if name not in SERVES[solver]:
            kind = type(SOLVERS[solver]).__name__
            with pytest.raises(ValueError, match=rf"inner\.{kind}.* needs .*: (use|add|choose|state) "):
                SOLVERS[solver].check(inner_cases.case(name).problem)


@pytest.mark.parametrize(("solver", "name"), FALLS_SHORT)
def test_says_where_it_falls_short(solver, name):
    few = dataclasses.replace(SOLVERS[solver], max_steps=min(SOLVERS[solver].max_steps, 2000))
    assert Status(int(solve(few, inner_cases.case(name)).status)) is not Status.CONVERGED
