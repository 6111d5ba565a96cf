"""The contract of the inner solvers, beyond the optimum (`test_inner_matrix.py`): precisions, lanes, derivatives, failures."""

import dataclasses

import inner_cases
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from problems import status_of

import bilevel as bl
from bilevel import Status, inner

pytestmark = pytest.mark.slice(10)

# Each of our own solvers on a problem that it is for.
OWN = {
    "Anderson": (inner.Anderson(), "fixed_point"),
    "BlockCoordinateDescent": (inner.BlockCoordinateDescent(), "lasso"),
    "BlockCoordinateDescent rows": (inner.BlockCoordinateDescent(), "svm_dual"),
    "EqualityQP": (inner.EqualityQP(), "quadratic"),
    "FIRE": (inner.FIRE(), "logistic"),
    "FISTA": (inner.FISTA(), "lasso"),
    "FixedPointIteration": (inner.FixedPointIteration(), "fixed_point"),
    "LBFGS": (inner.LBFGS(), "logistic"),
    "LevenbergMarquardt": (inner.LevenbergMarquardt(), "nonlinear_least_squares"),
    "MirrorDescent": (inner.MirrorDescent(), "simplex_qp"),
    "Newton": (inner.Newton(), "logistic"),
    "Quadratic": (inner.Quadratic(), "quadratic"),
    "Ridge": (inner.Ridge(), "ridge"),
    "SemismoothNewton": (inner.SemismoothNewton(), "nnls"),
    "TrustRegion": (inner.TrustRegion(), "logistic"),
}
each = pytest.mark.parametrize("name", OWN)


def solve(solver, case, start=None, jit=True):
    def run(p, h, d):
        return solver.solve(case.problem, p, h, d)

    return (jax.jit(run) if jit else run)(case.start if start is None else start, case.hparams, case.data)


def cast(case, dtype):
    def leaf(x):
        return jnp.asarray(x, dtype) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else jnp.asarray(x)

    arrays = (jax.tree.map(leaf, part) for part in (case.hparams, case.start, case.data))
    return dataclasses.replace(case, **dict(zip(("hparams", "start", "data"), arrays, strict=True)))


def test_every_own_solver_is_listed():
    foreign = {"Optax", "Optimistix", "OSQP"}  # the last one has a file of its own: `test_inner_programs.py`
    exported = {
        cls.__name__
        for cls in map(inner.__dict__.get, inner.__all__)
        if isinstance(cls, type) and issubclass(cls, inner.InnerSolver) and "external" not in cls.__module__
    }
    assert exported - foreign - {"InnerSolver"} == {type(solver).__name__ for solver, _ in OWN.values()}


@each
def test_both_precisions_are_kept_without_promotion(dtype, name):
    solver, problem = OWN[name]
    with jax.enable_x64(True):
        optimum = inner_cases.case(problem).optimum
        case = inner_cases.case(problem)
    with jax.numpy_dtype_promotion("strict"):
        found = solve(solver, cast(case, dtype))
    assert found.params.dtype == found.residual.dtype == dtype
    assert status_of(found) is Status.CONVERGED
    assert np.linalg.norm(found.params - optimum) <= (1e-3 if dtype == "float32" else 1e-4) * np.linalg.norm(optimum)


@each
def test_a_warm_start_takes_fewer_steps(x64, name):
    solver, problem = OWN[name]
    case = inner_cases.case(problem)
    cold = solve(solver, case)
    warm = solve(solver, case, jnp.asarray(case.optimum))
    assert status_of(warm) is Status.CONVERGED
    assert int(warm.steps) <= max(int(cold.steps) / 2, 1)


@each
def test_lanes_of_a_batch_end_as_alone(x64, name):
    """Six lanes, so that the batch shrinks on the way; each has its own status and count."""
    solver, problem = OWN[name]
    solver, case = dataclasses.replace(solver, rtol=1e-10), inner_cases.case(problem)
    hparams = jax.tree.map(lambda h: jnp.stack([h * scale for scale in (1.0, 0.9, 1.1, 0.5, 2.0, 1.3)]), case.hparams)
    batch = jax.jit(jax.vmap(lambda h: solver.solve(case.problem, case.start, h, case.data)))(hparams)
    alone = jax.jit(lambda h: solver.solve(case.problem, case.start, h, case.data))
    for lane in range(6):
        single = alone(jax.tree.map(lambda h, lane=lane: h[lane], hparams))
        np.testing.assert_allclose(batch.params[lane], single.params, rtol=1e-6, atol=1e-8)
        assert int(batch.status[lane]) == int(single.status) == Status.CONVERGED


@each
def test_unrolled_steps_have_the_derivative_of_the_solution(x64, name):
    """Differentiated through as many steps as it takes from the solution, and by the implicit function theorem."""
    solver, problem = OWN[name]
    case = inner_cases.case(problem)
    solution = jnp.asarray(case.optimum)
    weight = jnp.cos(jnp.arange(solution.size)).reshape(solution.shape)
    stated = dataclasses.replace(case.problem, outer_loss=lambda x, h, d: jnp.vdot(weight, x))
    steps = 1 if solver.max_steps == 1 else 8000 if name.endswith("rows") else 400
    exact = bl.hypergrad.Implicit(linear=bl.linear.Auto(rtol=1e-10))
    slow = bl.hypergrad.Unrolled(steps=steps)
    tight = dataclasses.replace(solver, rtol=0.0, atol=0.0)  # goes on at the solution
    found, expected = (
        jax.jit(lambda p, h, d, e=e, s=s: e.run(stated, s, p, h, d).grad)(solution, case.hparams, case.data)
        for e, s in ((slow, tight), (exact, solver))
    )
    scale = max(float(jnp.abs(jax.flatten_util.ravel_pytree(expected)[0]).max()), 1e-3)
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


def test_a_hard_lane_does_not_cost_the_batch_its_time(x64):
    """Evaluations are counted: 63 easy lanes stop paying when they are done."""
    evaluations = []

    def loss(x, h, d):
        jax.debug.callback(lambda _: evaluations.append(1), x)
        return jnp.vdot(x, h * x) / 2 - jnp.sum(x)

    problem = bl.Problem(loss, lipschitz=lambda h, d: jnp.max(h))
    curvatures = jnp.ones((64, 3)).at[40, 0].set(1e-4)
    solver = inner.FixedPointIteration(rtol=1e-9, max_steps=2000)
    found = jax.jit(jax.vmap(lambda h: solver.solve(problem, jnp.zeros(3), h, None)))(curvatures)
    jax.effects_barrier()
    assert int(found.steps[40]) == 2000
    assert int(found.steps.at[40].set(0).max()) < 5
    assert len(evaluations) < 3 * 2000  # 64 times 2000 if every lane went on


@pytest.mark.parametrize("solver", [inner.FISTA(rtol=1e-8), inner.LBFGS()], ids=lambda s: type(s).__name__)
def test_the_stopping_test_is_scale_free(x64, solver):
    """Multiplying the loss, or the variable, changes neither the steps (but for rounding) nor the answer."""

    def loss(x, h, d):
        return h["loss"] * problems.ridge_loss(x / h["variable"], h["theta"], d)

    problem = bl.Problem(loss)

    def solved(of_loss, of_variable):
        hparams = {"theta": problems.hparams("ridge"), "loss": of_loss, "variable": of_variable}
        return solver.solve(problem, problems.start() * of_variable, hparams, problems.data())

    base = solved(1.0, 1.0)
    for scales in ((1e6, 1.0), (1e-6, 1.0), (1.0, 1e4)):
        other = solved(*scales)
        np.testing.assert_allclose(other.params / scales[1], base.params, rtol=1e-5)
        assert abs(int(other.steps) - int(base.steps)) <= 2


SMOOTH = [
    inner.FISTA(),
    inner.LBFGS(),
    inner.LevenbergMarquardt(),
    inner.LevenbergMarquardt(damping=0.0),
    inner.TrustRegion(),
    inner.FIRE(),
]


def title(solver):
    return f"{type(solver).__name__} {getattr(solver, 'damping', '')}"


def exponential(x, h, d):
    times = jnp.linspace(0.0, 4.0, 30)
    return x[0] * jnp.exp(-x[1] * times) + x[2] - jnp.cos(times), h * x


@pytest.mark.parametrize("solver", [*SMOOTH, inner.Quadratic()], ids=title)
def test_pytrees_in_single_precision_while_double_is_on(x64, solver):
    """Two coupled leaves, one of them a scalar, an intercept; residuals in two leaves as well."""
    features, targets = np.random.default_rng(1).normal(size=(20, 3)), np.random.default_rng(2).normal(size=20) + 3
    problem = bl.Problem(residuals=lambda x, h, d: {"fit": d[0] @ x["w"] + x["b"] - d[1], "size": h * x["w"]})
    args = {"w": np.zeros(3), "b": 0.0}, 0.5, (features, targets)
    with jax.numpy_dtype_promotion("strict"):
        found = solver.solve(problem, *jax.tree.map(lambda a: jnp.asarray(a, "float32"), args))
    assert status_of(found) is Status.CONVERGED
    assert {leaf.dtype.name for leaf in jax.tree.leaves((found.params, found.residual))} == {"float32"}
    stacked = np.block([[features, np.ones((20, 1))], [0.5 * np.eye(3), np.zeros((3, 1))]])
    expected = np.linalg.lstsq(stacked, np.append(targets, np.zeros(3)), rcond=None)[0]
    np.testing.assert_allclose(np.append(found.params["w"], found.params["b"]), expected, atol=1e-4)


@pytest.mark.parametrize("solver", SMOOTH, ids=title)
def test_failures_have_their_own_codes(x64, solver):
    few = dataclasses.replace(solver, max_steps=2)
    problem, start = bl.Problem(residuals=exponential), jnp.array([1.0, 0.1, 0.0])
    assert status_of(few.solve(problem, start, jnp.array(0.1), None)) is Status.MAX_STEPS
    assert status_of(few.solve(problem, start * jnp.nan, jnp.array(0.1), None)) is Status.NON_FINITE


def solve_ridge(solver):
    return solver.solve(problems.ridge, problems.start(), problems.hparams("ridge"), problems.data())


def test_divergence_and_negative_curvature_have_their_own_codes(x64):
    assert status_of(solve_ridge(inner.FISTA(step_size=10.0))) is Status.NON_FINITE
    concave = bl.Problem(lambda x, h, d: -jnp.sum(x**2) + x[0], lambda x, h, d: jnp.sum(x))
    found = inner.Quadratic().solve(concave, jnp.ones(3), jnp.array(0.0), None)
    assert status_of(found) is Status.NEGATIVE_CURVATURE


def test_a_solution_at_zero_is_found(x64):
    problem = bl.Problem(lambda x, h, d: jnp.sum(h * x**2), lambda x, h, d: jnp.sum(x))
    for solver in (inner.FISTA(), inner.LBFGS(), inner.Quadratic()):
        found = solver.solve(problem, jnp.array([1.0, -2.0]), jnp.array([1.0, 30.0]), None)
        assert status_of(found) is Status.CONVERGED
        np.testing.assert_allclose(found.params, 0, atol=1e-10)


def test_a_known_lipschitz_constant_replaces_the_search(x64):
    largest = float(np.linalg.norm(problems.FEATURES, 2) ** 2)

    def no_search(x, h, d):
        return problems.ridge_loss(x, h, d)

    problem = bl.Problem(no_search, problems.validation_loss, lipschitz=lambda h, d: largest + jnp.exp(h).max())
    found = inner.FISTA(rtol=1e-12).solve(problem, problems.start(), problems.hparams("ridge"), problems.data())
    np.testing.assert_allclose(found.params, problems.ridge_solution(problems.hparams("ridge")), rtol=1e-8)
    assert int(found.progress.hvps) == 0


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"inner\.FISTA: max_steps must be positive, got 0"):
        inner.FISTA(max_steps=0)
    with pytest.raises(ValueError, match=r"inner\.LBFGS: memory must be positive"):
        inner.LBFGS(memory=0)
    with pytest.raises(ValueError, match="rtol and atol must not be negative"):
        inner.Quadratic(rtol=-1.0)


def test_the_closed_form_hands_its_tolerance_to_the_linear_solver(x64):
    found = solve_ridge(inner.Quadratic(rtol=1e-13, linear=bl.linear.CG()))
    assert status_of(found) is Status.CONVERGED
    assert float(found.residual) <= 1e-13


def test_a_solve_outside_jit_is_traced_once():
    traced = []

    def loss(params, hparams, data):
        traced.append(params)
        return jnp.sum((params - hparams) ** 2) / 2

    problem, solver = bl.Problem(inner_loss=loss), bl.inner.LBFGS()
    np.testing.assert_allclose(solver.solve(problem, jnp.zeros(3), 1.0, None).params, np.ones(3))
    assert traced
    traced.clear()
    for target in (2.0, 3.0):
        again = dataclasses.replace(solver).solve(dataclasses.replace(problem), np.ones(3, "float32"), target, None)
        np.testing.assert_allclose(again.params, np.full(3, target), rtol=1e-6)
    assert not traced
    _, slope = jax.jvp(lambda target: solver.solve(problem, jnp.zeros(3), target, None).params[0], (1.0,), (1.0,))
    assert slope == pytest.approx(1.0)
    assert traced


def test_a_problem_without_a_hash_is_solved():
    class Loss:
        __hash__ = None

        def __call__(self, params, hparams, data):
            return jnp.sum((params - hparams) ** 2) / 2

    found = bl.inner.LBFGS().solve(bl.Problem(inner_loss=Loss()), jnp.zeros(3), 1.0, None)
    np.testing.assert_allclose(found.params, np.ones(3))


def test_minibatches_are_drawn_anew_in_every_outer_step():
    """A repeated run draws the same permutations: they follow from the key of each outer step."""

    def inner_loss(params, hparams, data):
        return jnp.mean((params - data["train"]) ** 2)

    problem = bl.Problem(inner_loss, lambda params, hparams, data: 0.0 * hparams, batches=bl.Batches("train"))
    solver = inner.Optax(optimizer=optax.sgd(0.25), batch_size=1, max_steps=1)

    def visited(estimator):
        algorithm = bl.outer.Nested(problem, solver, estimator, optax.sgd(0.0))
        data, found = {"train": jnp.arange(8.0)}, []
        state, step = algorithm.init(jnp.array(0.0), jnp.array(0.0), data), jax.jit(algorithm.step)
        for _ in range(4):
            state, _ = step(dataclasses.replace(state, params=jnp.array(0.0)), data)
            found.append(float(state.params))
        return found

    for estimator in (bl.hypergrad.Implicit(), bl.hypergrad.Unrolled(steps=1)):
        first = visited(estimator)
        assert len(set(first)) == 4
        assert visited(estimator) == first
