"""Conformance of the inner solvers: each on each problem that it serves, and a refusal where it does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import problems
import pytest

import bilevel as bl
from bilevel import inner
from bilevel._status import Status

SOLVERS = {
    "FISTA": inner.FISTA(rtol=1e-13, atol=0.0, max_steps=50_000),
    "FISTA plain": inner.FISTA(rtol=1e-13, atol=0.0, max_steps=50_000, acceleration=False),
    "LBFGS": inner.LBFGS(rtol=1e-13, atol=0.0),
    "Quadratic": inner.Quadratic(rtol=1e-12),
    "MirrorDescent": inner.MirrorDescent(rtol=1e-13, atol=0.0),
    "Newton": inner.Newton(rtol=1e-13, atol=0.0),
    "Optax": inner.Optax(optimizer=optax.sgd(0.01, momentum=0.9), rtol=1e-13, atol=0.0),
    "Optimistix": inner.Optimistix(solver=optimistix.BFGS(rtol=1e-10, atol=1e-10), rtol=1e-8, atol=0.0),
}
SERVES = {
    "FISTA": set(problems.ALL),
    "FISTA plain": set(problems.ALL),
    "LBFGS": {"ridge", "logistic"},
    "Quadratic": {"ridge"},
    "MirrorDescent": {"simplex"},
    "Newton": {"ridge", "logistic"},
    "Optax": {"ridge", "logistic", "non_negative", "simplex"},
    "Optimistix": {"ridge", "logistic"},
}
PAIRS = [(solver, problem) for solver in SOLVERS for problem in sorted(SERVES[solver])]


def solve(solver, name, dtype="float64", start=None):
    problem = problems.ALL[name]
    run = jax.jit(lambda p, h, d: solver.solve(problem, p, h, d))
    start = problems.start(dtype) if start is None else start
    return run(start, problems.hparams(name, dtype), problems.data(dtype))


def reference(name):
    """The optimum by scikit-learn or SciPy."""
    from scipy.optimize import lsq_linear, minimize

    theta, (features, targets) = np.asarray(problems.hparams(name)), (problems.FEATURES, problems.TARGETS)
    if name == "ridge":
        return np.asarray(problems.ridge_solution(problems.hparams(name)))
    if name == "lasso":
        from sklearn.linear_model import Lasso

        model = Lasso(alpha=float(np.exp(theta)) / len(targets), fit_intercept=False, tol=1e-14, max_iter=100_000)
        return model.fit(features, targets).coef_
    if name == "non_negative":
        stacked = np.vstack([features, np.diag(np.exp(theta / 2))])
        return lsq_linear(stacked, np.append(targets, np.zeros(8)), bounds=(0, np.inf), tol=1e-14, method="bvls").x
    args = (problems.hparams(name), problems.data())
    loss = jax.jit(lambda x: problems.ALL[name].inner_loss(x, *args))
    grad = jax.jit(jax.grad(loss))
    kwargs = {}
    if name == "simplex":
        kwargs = {
            "bounds": [(0, None)] * 8,
            "constraints": {"type": "eq", "fun": lambda x: x.sum() - 1},
            "method": "SLSQP",
        }
    tight = {"ftol": 1e-16, "maxiter": 1000} if name == "simplex" else {"gtol": 1e-10}
    return minimize(
        lambda x: float(loss(x)), np.full(8, 1 / 8), jac=lambda x: np.asarray(grad(x)), options=tight, **kwargs
    ).x


def test_every_solver_is_listed():
    exported = {
        cls
        for cls in map(inner.__dict__.get, inner.__all__)
        if isinstance(cls, type) and issubclass(cls, inner.InnerSolver) and cls is not inner.InnerSolver
    }
    assert exported == {type(solver) for solver in SOLVERS.values()}


@pytest.mark.parametrize(("solver", "problem"), PAIRS)
def test_reaches_the_reference(x64, solver, problem):
    found = solve(SOLVERS[solver], problem)
    assert Status(int(found.status)) is Status.CONVERGED
    assert float(found.residual) <= max(1e-12, SOLVERS[solver].rtol)
    np.testing.assert_allclose(found.params, reference(problem), atol=1e-6)


@pytest.mark.parametrize(("solver", "problem"), [(s, p) for s in SOLVERS for p in problems.ALL if p not in SERVES[s]])
def test_refuses_what_it_does_not_serve(x64, solver, problem):
    if solver == "Quadratic" and problem == "logistic":
        assert Status(int(solve(SOLVERS[solver], problem).status)) is Status.STAGNATED
        return
    if solver == "MirrorDescent" and problem == "non_negative":
        assert Status(int(solve(inner.MirrorDescent(max_steps=300), problem).status)) is not Status.CONVERGED
        return
    if solver == "Optax" and problem == "lasso":
        return
    needs = "a set with a projection" if solver == "MirrorDescent" else "a smooth unconstrained inner problem"
    with pytest.raises(ValueError, match=rf"inner\.{solver} needs {needs}, and this one has .*: use inner\.FISTA"):
        SOLVERS[solver].check(problems.ALL[problem])


@pytest.mark.parametrize("solver", [inner.FISTA(), inner.LBFGS(), inner.Quadratic()], ids=lambda s: type(s).__name__)
def test_both_precisions(dtype, solver):
    found = solve(solver, "ridge", dtype)
    assert found.params.dtype == dtype
    assert found.residual.dtype == dtype
    assert Status(int(found.status)) is Status.CONVERGED
    with jax.enable_x64(True):
        expected = reference("ridge")
    assert np.linalg.norm(found.params - expected) <= (1e-3 if dtype == "float32" else 1e-4) * np.linalg.norm(expected)


@pytest.mark.parametrize("solver", [inner.FISTA(), inner.LBFGS()], ids=lambda s: type(s).__name__)
def test_a_warm_start_takes_fewer_steps(x64, solver):
    cold = solve(solver, "logistic")
    warm = solve(solver, "logistic", start=cold.params + 1e-6)
    assert int(warm.steps) < int(cold.steps) / 2
    again = solve(solver, "logistic", start=solve(SOLVERS["LBFGS"], "logistic").params)
    assert int(again.steps) == 1
    assert Status(int(again.status)) is Status.CONVERGED


@pytest.mark.parametrize("solver", [inner.FISTA(rtol=1e-8), inner.LBFGS()], ids=lambda s: type(s).__name__)
def test_the_stopping_test_is_scale_free(x64, solver):
    """Multiplying the loss, or the variable, changes neither the steps (but for rounding) nor the answer."""

    def problem(loss_scale, variable_scale):
        def loss(x, h, d):
            return loss_scale * problems.ridge_loss(x / variable_scale, h, d)

        return bl.Problem(loss, problems.validation_loss)

    args = problems.hparams("ridge"), problems.data()
    base = solver.solve(problem(1.0, 1.0), problems.start(), *args)
    for scales in ((1e6, 1.0), (1e-6, 1.0), (1.0, 1e4)):
        other = solver.solve(problem(*scales), problems.start() * scales[1], *args)
        np.testing.assert_allclose(other.params / scales[1], base.params, rtol=1e-5)
        assert abs(int(other.steps) - int(base.steps)) <= 2


@pytest.mark.parametrize(
    "solver", [inner.FISTA(rtol=1e-9), inner.LBFGS(), inner.Quadratic()], ids=lambda s: type(s).__name__
)
def test_pytrees_and_scalars(x64, solver):
    """Two coupled leaves, one of them a scalar: an intercept."""
    features, targets = problems.FEATURES, problems.TARGETS + 5

    def loss(x, h, d):
        fit = d[0] @ x["w"] + x["b"] - d[1]
        return jnp.vdot(fit, fit) / 2 + h * jnp.vdot(x["w"], x["w"]) / 2

    start = {"w": jnp.zeros(8), "b": jnp.zeros(())}
    found = solver.solve(bl.Problem(loss, loss), start, jnp.array(2.0), (jnp.asarray(features), jnp.asarray(targets)))
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=2.0, tol=1e-14).fit(features, targets)
    np.testing.assert_allclose(found.params["w"], model.coef_, rtol=1e-4)
    np.testing.assert_allclose(found.params["b"], model.intercept_, rtol=1e-4)


@pytest.mark.parametrize("solver", [inner.FISTA(), inner.LBFGS()], ids=lambda s: type(s).__name__)
def test_vmap_keeps_finished_lanes(x64, solver):
    """A hard lane does not disturb an easy one, and each has its own status and count."""
    data = problems.data()
    thetas = jnp.stack([jnp.full(8, 8.0), jnp.full(8, -6.0)])
    run = jax.jit(jax.vmap(lambda h: solver.solve(problems.ridge, problems.start(), h, data)))
    batch = run(thetas)
    for lane in range(2):
        alone = solver.solve(problems.ridge, problems.start(), thetas[lane], data)
        np.testing.assert_allclose(batch.params[lane], alone.params, rtol=1e-9)
        assert int(batch.steps[lane]) == int(alone.steps)
    assert int(batch.steps[0]) < int(batch.steps[1])


def test_failures_have_their_own_codes(x64):
    assert Status(int(solve(inner.FISTA(max_steps=3), "ridge").status)) is Status.MAX_STEPS
    assert Status(int(solve(inner.LBFGS(max_steps=3), "ridge").status)) is Status.MAX_STEPS
    assert Status(int(solve(inner.FISTA(step_size=10.0), "ridge").status)) is Status.NON_FINITE
    not_a_number = problems.start().at[0].set(jnp.nan)
    for solver in (inner.FISTA(), inner.LBFGS()):
        assert Status(int(solve(solver, "ridge", start=not_a_number).status)) is Status.NON_FINITE
    concave = bl.Problem(lambda x, h, d: -jnp.sum(x**2) + x[0], lambda x, h, d: jnp.sum(x))
    found = inner.Quadratic().solve(concave, jnp.ones(3), jnp.array(0.0), None)
    assert Status(int(found.status)) is Status.NEGATIVE_CURVATURE


def test_a_solution_at_zero_is_found(x64):
    problem = bl.Problem(lambda x, h, d: jnp.sum(h * x**2), lambda x, h, d: jnp.sum(x))
    for solver in (inner.FISTA(), inner.LBFGS(), inner.Quadratic()):
        found = solver.solve(problem, jnp.array([1.0, -2.0]), jnp.array([1.0, 30.0]), None)
        assert Status(int(found.status)) is Status.CONVERGED
        np.testing.assert_allclose(found.params, 0, atol=1e-10)


def test_a_known_lipschitz_constant_replaces_the_search(x64):
    largest = float(np.linalg.norm(problems.FEATURES, 2) ** 2)

    def no_search(x, h, d):
        return problems.ridge_loss(x, h, d)

    problem = bl.Problem(no_search, problems.validation_loss, lipschitz=lambda h, d: largest + jnp.exp(h).max())
    found = inner.FISTA(rtol=1e-12).solve(problem, problems.start(), problems.hparams("ridge"), problems.data())
    np.testing.assert_allclose(found.params, reference("ridge"), rtol=1e-8)
    assert int(found.progress.hvps) == 0


def test_lbfgs_minimizes_rosenbrock(x64):
    def rosenbrock(x, h, d):
        return jnp.sum(h * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    found = inner.LBFGS().solve(bl.Problem(rosenbrock, rosenbrock), jnp.zeros(6), jnp.array(100.0), None)
    assert Status(int(found.status)) is Status.CONVERGED
    np.testing.assert_allclose(found.params, 1, rtol=1e-6)


def test_strict_promotion(strict):
    for solver in (inner.FISTA(), inner.LBFGS()):
        found = solver.solve(problems.logistic, problems.start(), problems.hparams("logistic"), problems.data())
        assert Status(int(found.status)) is Status.CONVERGED


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"inner\.FISTA: max_steps must be positive, got 0"):
        inner.FISTA(max_steps=0)
    with pytest.raises(ValueError, match=r"inner\.LBFGS: memory must be positive"):
        inner.LBFGS(memory=0)
    with pytest.raises(ValueError, match="rtol and atol must not be negative"):
        inner.Quadratic(rtol=-1.0)


def test_the_closed_form_hands_its_tolerance_to_the_linear_solver(x64):
    found = solve(inner.Quadratic(rtol=1e-13, linear=bl.linear.CG()), "ridge")
    assert Status(int(found.status)) is Status.CONVERGED
    assert float(found.residual) <= 1e-13
