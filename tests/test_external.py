"""External solvers that fail or do not fit, their page, and that nothing hangs."""

import functools
import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from external_cases import NOISY, X, Y, linear_problem, solve, target_problem
from problems import status_of

import bilevel as bl
from bilevel import Status, config, inner
from bilevel.inner.external import _base, _callback
from bilevel.optimality import KKTSolution
from bilevel.statements import QP

pytestmark = pytest.mark.slice(12)


@pytest.fixture(autouse=True)
def log_anew():
    """Every test may log each message once."""
    _base._said.clear()


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
    assert status_of(found) is status_of(again) is code
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
            bl.Problem(inner=bl.Program(infeasible)),
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
    assert status_of(found) is Status.EXTERNAL_ERROR
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
        (
            inner.CVXPY(solver="OSQP"),
            bl.Problem(inner=bl.Program(lambda h, d: None, kind="cone")),
            "use solver CLARABEL or SCS",
        ),
        (inner.SciPyMinimize(), linear_problem(l1=jnp.exp), "smooth unconstrained.*SklearnLasso"),
        (inner.SciPyRoot(), linear_problem(l1=jnp.exp), r"a fixed-point map or an optimality.*SklearnLasso"),
    ],
)
def test_a_misfit_is_refused_with_what_fits(solver, problem, words):
    with pytest.raises(ValueError, match=rf"inner\.{type(solver).__name__}.* needs .*{words}"):
        solver.check(problem)


def test_settings_are_checked():
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
        inner.CVXPY(solver="SCS").check(bl.Problem(inner=bl.Program(infeasible)))


def test_the_foreign_code_has_no_derivative(x64):
    """Without `custom_root` a derivative is NaN, not zero; the value is untouched."""
    solver, problem = inner.Python(function=lambda p, h, d: h), target_problem()

    def first(theta):
        return solver.solve(problem, jnp.zeros(2), theta, None).params[0]

    theta = jnp.array([1.0, 2.0])
    value, tangent = jax.jvp(first, (theta,), (jnp.ones(2),))
    assert float(value) == 1.0
    assert np.isnan(tangent)
    state = solver.init(bl.At(problem, theta, None), jnp.zeros(2))
    grad = jax.grad(lambda h: solver.step(bl.At(problem, h, None), state).params[0])(theta)
    assert np.all(np.isnan(grad))


def test_the_page_runs_and_names_every_solver(capsys):
    page = (Path(__file__).resolve().parents[1] / "docs" / "external-solvers.md").read_text(encoding="utf-8")
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    found = np.array(capsys.readouterr().out.strip("[]\n").split(), float)
    assert found.shape == (3,)
    assert np.all(found < 0)  # more penalty, smaller weights
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert {name for _, name in rows} == {
        name for name in inner.__all__ if "external" in getattr(inner, name).__module__
    }
    choices = config.groups()["inner"]
    for choice, name in rows:
        assert choice in choices
        assert choice == re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.replace("SciPy", "Scipy")).lower()


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
problem = bl.Problem(linear_model=bl.LinearModel(loss="squared", rows=lambda data: data, l2=jnp.exp))
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
