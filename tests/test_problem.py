"""Statements of one problem: their parts follow from them, and they cannot contradict each other unseen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.operators.projection import projection_non_negative, projection_simplex
from bilevel.operators.prox import prox_lasso
from bilevel.optimality import ConicPoint, KKTSolution

N = 6
RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(12, N)), RNG.normal(size=12)
Q, C = X.T @ X + np.eye(N), RNG.normal(size=N)
ZERO = np.zeros(N)


def typed(array, like):
    return jnp.asarray(array, jnp.result_type(like))


def loss(x, h, data):
    return jnp.vdot(x, typed(Q, x) @ x) / 2 + h * jnp.vdot(typed(C, x), x)


def squares(x, h, data):
    return jnp.sum((data[0] @ x - data[1]) ** 2) / 2


def shifted(x, h, data):
    return loss(x, h, data) - 3 * jnp.sum(x)


def prox(x, h, data, step):
    return prox_lasso(x, 0.3, step)


def model(l2, l1=None):
    return bl.LinearModel(loss="squared", rows=lambda data: data, l1=l1, l2=l2)


def program(shift=0.0, **constraints):
    def numbers(h, data):
        arrays = {name: typed(array, h) for name, array in {"Q": Q, "c": C, **constraints}.items()}
        return bl.QP(**{**arrays, "c": h * arrays["c"] + shift})

    return bl.Program(numbers)


def cone(shift):
    cones = bl.operators.cones.Cones(nonnegative=2 * N)
    rows = np.vstack([np.eye(N), -np.eye(N)])
    return bl.Program(lambda h, data: bl.ConeProgram(jnp.asarray(C) + shift, rows, jnp.ones(2 * N), cones), kind="cone")


KKT_START = KKTSolution(ZERO, None, ZERO)
BOUNDS = {"M": -np.eye(N), "h": np.zeros(N)}
POSITIVE = {"projection": lambda x, h, data: projection_non_negative(x), "polyhedral": True}
SIMPLEX = {"projection": lambda x, h, data: projection_simplex(x), "polyhedral": True}
FIRST_ORDER = [bl.inner.FISTA(rtol=1e-10), bl.inner.SemismoothNewton()]
REPLACED = {
    # the parts of a problem, those that are replaced, the solvers, the start
    "inner_loss": ({"inner_loss": loss}, {"inner_loss": shifted}, [bl.inner.LBFGS(), bl.inner.Newton()], ZERO),
    "prox": (
        {"inner_loss": loss, "prox": prox, "separable": True},
        {"prox": lambda x, h, data, step: prox_lasso(x, 1.5, step)},
        FIRST_ORDER,
        ZERO,
    ),
    "projection": ({"inner_loss": loss, **SIMPLEX}, POSITIVE, FIRST_ORDER, np.full(N, 1 / N)),
    "residuals": (
        {"residuals": lambda x, h, data: data[0] @ x - data[1]},
        {"residuals": lambda x, h, data: (data[0] @ x - data[1], x)},
        [bl.inner.LBFGS(), bl.inner.LevenbergMarquardt(), bl.inner.Quadratic()],
        ZERO,
    ),
    "linear_model": (
        {"linear_model": model(lambda h: h)},
        {"linear_model": model(lambda h: 20 * h)},
        [
            bl.inner.Ridge(),
            bl.inner.LBFGS(),
            bl.inner.LevenbergMarquardt(),
            bl.inner.EqualityQP(),
            bl.inner.SklearnRidge(),
        ],
        ZERO,
    ),
    "linear_model, l1": (
        {"linear_model": model(None, lambda h: h)},
        {"linear_model": model(None, lambda h: 4 * h)},
        [bl.inner.FISTA(rtol=1e-10), bl.inner.BlockCoordinateDescent(rtol=1e-10), bl.inner.SklearnLasso()],
        ZERO,
    ),
    "fixed_point": (
        {"fixed_point": lambda x, h, data: jnp.cos(x) / 2},
        {"fixed_point": lambda x, h, data: jnp.cos(x) / 3},
        [bl.inner.FixedPointIteration(), bl.inner.Anderson()],
        ZERO,
    ),
    "inner, program": (
        {"inner": program(**BOUNDS)},
        {"inner": program(-3.0, **BOUNDS)},
        [bl.inner.OSQP(), bl.inner.CVXPY()],
        KKT_START,
    ),
    "inner, cone program": (
        {"inner": cone(0.0)},
        {"inner": cone(3.0)},
        [bl.inner.CVXPY()],
        ConicPoint(ZERO, np.zeros(2 * N), np.ones(())),
    ),
    "inner and also": (
        {"inner": bl.Minimization(loss=loss, **POSITIVE), "also": (program(**BOUNDS),)},
        {"inner": bl.Minimization(loss=shifted, **POSITIVE), "also": (program(-3.0, **BOUNDS),)},
        [bl.inner.FISTA(rtol=1e-10), bl.inner.OSQP()],
        ZERO,
    ),
}


@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.slice(2)
@pytest.mark.usefixtures("x64")
def test_a_replaced_statement_is_what_every_solver_solves(name):
    """Nothing that was computed for the old problem is in the new one, which is as one of its own."""
    parts, changes, solvers, start = REPLACED[name]
    problem, (start, data) = bl.Problem(**parts), jax.tree.map(jnp.asarray, (start, (X, Y)))
    before = [solver.solve(problem, start, jnp.array(0.5), data) for solver in solvers]
    replaced = dataclasses.replace(problem, **changes)
    assert vars(replaced) == vars(bl.Problem(**parts | changes))
    for solver, old in zip(solvers, before, strict=True):
        found = solver.solve(replaced, start, jnp.array(0.5), data)
        assert int(found.status) == bl.Status.CONVERGED, solver
        assert np.linalg.norm(ravel_pytree(found.params)[0] - ravel_pytree(old.params)[0]) > 1e-2, solver


def contradictions():
    """Second statements with other numbers, of each kind."""
    smooth, positive = bl.Problem(loss), bl.Problem(inner=bl.Minimization(loss=loss, **POSITIVE))
    ridge = bl.Problem(
        lambda x, h, data: squares(x, h, data) + h * jnp.vdot(x, x) / 2, linear_model=model(lambda h: 1.1 * h)
    )
    sparse = {"prox": lambda x, h, data, step: prox_lasso(x, h, step), "separable": True}

    def with_program(problem, **parts):
        return dataclasses.replace(problem, also=(program(**parts),))

    yield "Q and c", with_program(smooth, shift=0.1)
    yield "the first of two programs", dataclasses.replace(smooth, also=(program(shift=0.1), program()))
    yield "bounds", with_program(positive, M=-np.eye(N), h=np.full(N, 0.1))
    yield "too few bounds", with_program(positive, M=-np.eye(N)[:4], h=np.zeros(4))
    yield "no bounds", with_program(positive)
    yield "too many bounds", with_program(positive, M=np.vstack([-np.eye(N), np.ones((1, N))]), h=np.r_[ZERO, 0.1])
    yield "an equality", with_program(positive, E=np.ones((1, N)), d=np.ones(1), **BOUNDS)
    yield "ridge of another penalty", ridge
    yield "lasso of another penalty", bl.Problem(squares, linear_model=model(None, lambda h: 1.1 * h), **sparse)
    yield "a model without the set", bl.Problem(squares, linear_model=model(None), **POSITIVE)
    yield "residuals", bl.Problem(squares, residuals=lambda x, h, data: 1.1 * (data[0] @ x - data[1]))
    yield (
        "a data fit",
        bl.Problem(
            inner=bl.Minimization(
                loss=squares, datafit=lambda p, h, data: jnp.sum((p - data[1]) ** 2), design=lambda h, data: data[0]
            )
        ),
    )
    yield (
        "a sum over rows",
        bl.Problem(lambda x, h, data: jnp.sum((data[0][0] @ x - data[0][1]) ** 2), batches=bl.Batches(0)),
    )


CONTRADICTION = r"contradict each other: at the start .* has the value .* a gradient of norm"


def in_both_precisions(problems):
    """By default each problem in one of them, in turns."""
    return [
        pytest.param(problem, dtype, id=f"{name}, {dtype}", marks=() if (i + j) % 2 else pytest.mark.slow)
        for i, (name, problem) in enumerate(problems)
        for j, dtype in enumerate(("float32", "float64"))
    ]


@pytest.mark.parametrize(("problem", "dtype"), in_both_precisions(contradictions()), indirect=["dtype"])
def test_a_contradiction_is_refused_with_both_values(problem, dtype):
    data = tuple(jnp.asarray(a, dtype) for a in (X, Y))
    data = (data, data[1]) if problem.batches else data
    with pytest.raises(ValueError, match=CONTRADICTION):
        bl.inner.default(problem).solve(problem, jnp.asarray(ZERO, dtype), jnp.asarray(0.5, dtype), data)


def test_minimize_refuses_a_contradiction_too():
    problem = dataclasses.replace(dict(contradictions())["Q and c"], outer_loss=lambda x, h, data: jnp.sum(x))
    with pytest.raises(ValueError, match=CONTRADICTION):
        bl.minimize(problem, jnp.array(0.5), jnp.zeros(N), (jnp.asarray(X), jnp.asarray(Y)), steps=1)


def agreements():
    """The same problems stated once more, as they should be."""
    penalty = lambda x, h: h * jnp.vdot(x, x) / 2  # noqa: E731
    yield bl.Problem(loss, also=(program(),))
    yield bl.Problem(inner=bl.Minimization(loss=loss, **POSITIVE), also=(program(**BOUNDS),))
    yield bl.Problem(lambda x, h, data: squares(x, h, data) + penalty(x, h), linear_model=model(lambda h: h))
    # One splits the elastic net's ℓ2 term off to the prox, the other leaves it in the loss.
    yield bl.Problem(
        lambda x, h, data: squares(x, h, data) + penalty(x, h),
        prox=lambda x, h, data, step: prox_lasso(x, 0.3, step),
        separable=True,
        linear_model=model(lambda h: h, lambda h: 0.3),
    )
    yield bl.Problem(squares, residuals=lambda x, h, data: data[0] @ x - data[1])
    yield bl.Problem(
        lambda x, h, data: jnp.mean((data[0][0] @ x - data[0][1]) ** 2) + penalty(x, h), batches=bl.Batches(0)
    )


@pytest.mark.parametrize(("problem", "dtype"), in_both_precisions(enumerate(agreements())), indirect=["dtype"])
def test_statements_that_agree_pass(problem, dtype):
    data = tuple(jnp.asarray(a, dtype) for a in (X, Y))
    data = (data, data[1]) if problem.batches else data
    for start in (ZERO, np.ones(N)):
        bl.inner.check_statements(problem, jnp.asarray(start, dtype), jnp.asarray(0.5, dtype), data)


def test_statements_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="inner states the inner problem, and so does inner_loss"):
        bl.Problem(loss, inner=program())
    with pytest.raises(ValueError, match="fixed_point states the inner problem alone, and inner_loss was given too"):
        bl.Problem(loss, fixed_point=loss)
    with pytest.raises(TypeError, match="inner must be a statement"):
        bl.Problem(inner=loss)
    with pytest.raises(TypeError, match="inner_loss must be a function, got 3"):
        bl.Problem(inner_loss=3)
    with pytest.raises(ValueError, match="kind must be 'quadratic' or 'cone'"):
        bl.Program(loss, kind="linear")
    with pytest.raises(TypeError, match=r"function must return a bilevel\.QP, got tuple"):
        bl.inner.OSQP().solve(bl.Problem(inner=bl.Program(lambda h, d: (1, 2))), KKT_START, jnp.array(0.0))
    with pytest.raises(ValueError, match=r"linear_model with an ℓ1 penalty .* does not go with another prox"):
        bl.Problem(linear_model=model(None, lambda h: h), prox=prox).parts  # noqa: B018
    with pytest.raises(TypeError, match="crammer_singer loss needs its dual"):
        bl.Problem(linear_model=bl.LinearModel(loss="crammer_singer", rows=lambda d: d, l2=jnp.exp))
    with pytest.raises(ValueError, match="every array in data\\['train'\\] needs the same first axis"):
        bl.Batches("train").rows({"train": (np.ones((3, 2)), np.ones(2))})
    with pytest.raises(ValueError, match="data has no entry 'tain'"):
        bl.Batches("tain").rows({"train": np.ones(3)})


@pytest.mark.parametrize(
    ("l2", "solvers"),
    [
        (2.0, [bl.inner.Ridge(), bl.inner.LBFGS(), bl.inner.SklearnRidge()]),
        (0.0, [bl.inner.Ridge(), bl.inner.LBFGS(), bl.inner.Quadratic()]),
    ],
    ids=["a number", "missing"],
)
@pytest.mark.usefixtures("x64")
def test_a_penalty_may_be_missing_or_a_number(l2, solvers):
    problem = bl.Problem(linear_model=model((lambda h: l2) if l2 else None))
    for solver in solvers:
        found = solver.solve(problem, jnp.zeros(N), jnp.array(0.0), (jnp.asarray(X), jnp.asarray(Y)))
        np.testing.assert_allclose(found.params, np.linalg.solve(X.T @ X + l2 * np.eye(N), X.T @ Y), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_class_numbers_may_be_floats():
    labels = RNG.integers(0, 3, 12)
    problem = bl.Problem(linear_model=bl.LinearModel(loss="logistic", rows=lambda d: d, l2=lambda h: h))
    found = [
        bl.inner.LBFGS().solve(problem, jnp.zeros((N, 3)), jnp.array(1.0), (jnp.asarray(X), jnp.asarray(labels, dtype)))
        for dtype in (int, float)
    ]
    np.testing.assert_array_equal(found[0].params, found[1].params)


@pytest.mark.parametrize(
    "solver", [bl.inner.Ridge(), bl.inner.BlockCoordinateDescent(), bl.inner.LBFGS(), bl.inner.FISTA()]
)
@pytest.mark.usefixtures("x64")
def test_single_precision_params_take_double_precision_data(solver):
    l1 = None if isinstance(solver, bl.inner.Ridge | bl.inner.LBFGS) else (lambda h: h)
    problem = bl.Problem(linear_model=model(lambda h: h, l1))
    for features in (jnp.asarray(X), BCOO.fromdense(jnp.asarray(X))):
        found = solver.solve(problem, jnp.zeros(N, "float32"), jnp.array(0.5), (features, jnp.asarray(Y)))
        assert found.params.dtype == jnp.float32
        assert int(found.status) == bl.Status.CONVERGED


@pytest.mark.usefixtures("x64")
def test_a_hull_is_solved_in_its_weights():
    vertices = jnp.asarray(RNG.normal(size=(2, 4)))
    hull = bl.optimality.ConvexHull(vertices=lambda h, data: vertices)
    problem = bl.Problem(
        lambda x, h, data: jnp.sum((x - h) ** 2), lambda p, h, data: jnp.sum((vertices @ p) ** 2), optimality=hull
    )
    start = jnp.full(4, 0.25), jnp.array([3.0, 0.2])
    with pytest.raises(
        ValueError, match=r"ConvexHull takes the weights of vertices.*ConvexHull\.in_weights\(problem\)"
    ):
        bl.minimize(problem, start[1], start[0], None, steps=2)
    found = bl.minimize(hull.in_weights(problem), start[1], start[0], None, steps=2)
    assert float(jnp.sum(found.params)) == pytest.approx(1, abs=1e-9)
    assert float(jnp.min(found.params)) >= 0


def test_sparse_data_of_scipy_are_taken_by_the_checks():
    import scipy.sparse

    data = scipy.sparse.csr_array(X.astype("float32")), Y.astype("float32")
    problem = bl.Problem(
        linear_model=model(jnp.exp), outer_loss=lambda x, h, data: jnp.sum((data[0] @ x - data[1]) ** 2)
    )
    hparams, params = jnp.array(0.0), jnp.asarray(np.linalg.solve(X.T @ X + np.eye(N), X.T @ Y))
    assert bl.check_optimality(problem, params, hparams, data).ok
    assert bl.check_hypergradient(problem, hparams, params, data, inner=bl.inner.Ridge(), directions=1).ok
