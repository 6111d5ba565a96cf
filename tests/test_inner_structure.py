"""What solvers make of a problem's structure: linear models, factorizations kept, inverses handed on, minibatches, blocks."""

import itertools

import inner_cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from jax.experimental.sparse import BCOO
from problems import status_of

import bilevel as bl
from bilevel import Status, inner
from bilevel.problem import Problem
from bilevel.statements import QP, LinearModel

pytestmark = pytest.mark.slice(8)

RNG = np.random.default_rng(8)
TALL, WIDE = RNG.normal(size=(20, 6)), RNG.normal(size=(6, 20))


def ridge_problem(mean=False):
    def outer(params, hparams, data):
        return jnp.sum(jnp.cos(params))

    return Problem(outer_loss=outer, linear_model=LinearModel(loss="squared", rows=lambda d: d, l2=jnp.exp, mean=mean))


def ridge_closed_form(features, targets, penalty, weight):
    gram = weight * features.T @ features + np.diag(np.broadcast_to(penalty, features.shape[1]))
    return np.linalg.solve(gram, weight * features.T @ targets), np.linalg.inv(gram)


# Linear models


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("mean", [False, True])
def test_a_linear_model_is_its_formula(strict, loss, mean):
    features = jnp.asarray(TALL)
    labels = RNG.integers(0, 2, 20)
    targets = jnp.asarray(labels if loss == "logistic" else RNG.normal(size=20))
    model = LinearModel(loss=loss, rows=lambda d: d, l2=jnp.exp, mean=mean)
    problem = Problem(linear_model=model)
    w, theta = jnp.asarray(RNG.normal(size=6)), jnp.asarray(RNG.normal(size=6))
    p = TALL @ np.asarray(w)
    rows = (p - np.asarray(targets)) ** 2 / 2 if loss == "squared" else np.log1p(np.exp(-(2 * labels - 1) * p))
    expected = (rows.mean() if mean else rows.sum()) + np.sum(np.exp(theta) * np.asarray(w) ** 2) / 2
    np.testing.assert_allclose(problem.parts.inner_loss(w, theta, (features, targets)), expected, rtol=1e-12)
    if loss == "squared":
        r = jnp.concatenate(problem.parts.residuals(w, theta, (features, targets)))
        np.testing.assert_allclose(jnp.vdot(r, r) / 2, expected, rtol=1e-12)
        program = problem.parts.quadratic_program(theta, (features, targets))
        at_zero = problem.parts.inner_loss(jnp.zeros(6), theta, (features, targets))
        np.testing.assert_allclose(program.loss(w), expected - at_zero, rtol=1e-10)


def test_the_softmax_of_a_linear_model_is_optax_s(x64):
    labels = jnp.asarray(RNG.integers(0, 3, 20))
    problem = Problem(linear_model=LinearModel(loss="logistic", rows=lambda d: d, l2=jnp.exp, mean=True))
    w, theta = jnp.asarray(RNG.normal(size=(6, 3))), jnp.asarray(RNG.normal(size=6))
    found = problem.parts.inner_loss(w, theta, (jnp.asarray(TALL), labels))
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(TALL) @ w, labels))
    np.testing.assert_allclose(found, loss + jnp.sum(jnp.exp(theta)[:, None] * w**2) / 2, rtol=1e-12)


def test_minibatches_average_to_the_loss(x64):
    """Over all pairs of rows, with and without an ℓ1 penalty, which the prox holds."""
    data = (jnp.asarray(TALL[:5]), jnp.asarray(RNG.normal(size=5)))
    w = jnp.asarray(RNG.normal(size=6))
    for mean, l1 in itertools.product((False, True), (None, jnp.exp)):
        model = LinearModel(loss="squared", rows=lambda d: d, l1=l1, l2=jnp.exp, mean=mean)
        problem = Problem(linear_model=model)
        pairs = [jnp.array(pair) for pair in itertools.combinations(range(5), 2)]
        found = np.mean([problem.parts.batch_loss(w, jnp.array(0.3), data, pair) for pair in pairs])
        np.testing.assert_allclose(found, problem.parts.inner_loss(w, jnp.array(0.3), data), rtol=1e-12)
        assert problem.parts.samples(data) == 5
        assert problem.parts.smooth == (l1 is None)


def test_a_linear_model_over_a_set_is_its_objective_over_the_set():
    model = LinearModel(loss="squared", rows=lambda d: d, l2=jnp.exp)

    def projection(x, hparams, data):
        return jnp.maximum(x, 0)

    problem = Problem(linear_model=model, projection=projection, polyhedral=True)
    assert problem.parts.projection is projection
    assert problem.parts.inner_loss == model.inner_loss
    assert problem.parts.linear_model is None
    assert problem.parts.residuals is None
    assert problem.parts.quadratic_program is None
    with pytest.raises(ValueError, match="loss must be squared, logistic or crammer_singer, got 'hinge'"):
        LinearModel(loss="hinge", rows=lambda d: d)


# Ridge: one factorization for all penalties


@pytest.mark.parametrize("features", [TALL, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_ridge_is_the_closed_form_at_every_penalty(x64, features, per_feature, mean):
    targets, problem = RNG.normal(size=len(features)), ridge_problem(mean)
    solver, data = inner.Ridge(), (jnp.asarray(features), jnp.asarray(targets))
    shape = (features.shape[1],) if per_feature else ()
    prepared = solver.prepare(bl.At(problem, jnp.zeros(shape), data))
    for shift in (-3.0, 0.0, 2.0):
        theta = shift + jnp.linspace(-1, 1, features.shape[1]) if per_feature else jnp.array(shift)
        found = solver.solve_at(bl.At(problem, theta, data, prepared), jnp.zeros(features.shape[1]))
        expected, inverse = ridge_closed_form(features, targets, np.exp(theta), 1 / len(features) if mean else 1.0)
        assert status_of(found) is Status.CONVERGED
        np.testing.assert_allclose(found.params, expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(jax.vmap(found.inverse)(jnp.eye(len(inverse))), inverse, rtol=1e-7, atol=1e-9)


def test_ridge_takes_several_targets_and_sparse_features(x64):
    problem, solver = ridge_problem(), inner.Ridge()
    targets = jnp.asarray(RNG.normal(size=(20, 3)))
    sparse = (BCOO.fromdense(jnp.asarray(TALL)), targets)
    for theta in (jnp.array(0.5), jnp.linspace(-1, 1, 6)):
        found = solver.solve(problem, jnp.zeros((6, 3)), theta, sparse)
        expected, _ = ridge_closed_form(TALL, np.asarray(targets), np.exp(theta), 1.0)
        np.testing.assert_allclose(found.params, expected, rtol=1e-9)


def test_one_eigendecomposition_serves_every_outer_step(x64):
    problem, data = ridge_problem(), (jnp.asarray(TALL), jnp.asarray(RNG.normal(size=20)))
    algorithm = bl.outer.Nested(problem, inner.Ridge(), bl.hypergrad.Implicit(precondition=True), optax.sgd(0.1))
    state = algorithm.init(jnp.array(0.0), jnp.zeros(6), data)
    assert "eigh" in str(jax.make_jaxpr(lambda: inner.Ridge().prepare(bl.At(problem, jnp.array(0.0), data)))())
    assert "eigh" not in str(jax.make_jaxpr(algorithm.step)(state, data))
    for _ in range(3):
        state, report = jax.jit(algorithm.step)(state, data)
        assert [int(solve.status) for solve in report.solves.values()] == [Status.CONVERGED] * 2
    assert state.prepared is not None


def test_a_singular_ridge_problem_is_reported(x64):
    data = (jnp.zeros((4, 2)), jnp.zeros(4))
    found = inner.Ridge().solve(ridge_problem(), jnp.zeros(2), jnp.array(-jnp.inf), data)
    assert status_of(found) is Status.NON_FINITE


# The inverse Hessian


def quadratic_with_outliers(size=60):
    """Ten directions dominate the Hessian."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    spectrum = jnp.asarray(np.r_[np.geomspace(10, 1e4, 10), np.ones(size - 10)])
    basis = jnp.asarray(basis)

    def inner_loss(x, hparams, data):
        z = basis.T @ x
        return jnp.vdot(spectrum * z, z) / 2 - jnp.vdot(hparams, x)

    return Problem(inner_loss, lambda x, hparams, data: jnp.sum(jnp.sin(x)))


def estimate(problem, solver, hparams, data=None, **settings):
    estimator = bl.hypergrad.Implicit(**settings)
    start = jnp.zeros_like(hparams)
    run = jax.jit(lambda p, h, d: estimator.run(problem, solver, p, h, d))
    return run(start, hparams, data)


def test_the_pairs_of_lbfgs_precondition_the_adjoint(x64):
    problem, theta = quadratic_with_outliers(), jnp.asarray(np.linspace(1, 2, 60))
    solver = inner.LBFGS(memory=40, rtol=1e-10)
    plain = estimate(problem, solver, theta, linear=bl.linear.CG(rtol=1e-10))
    helped = estimate(problem, solver, theta, linear=bl.linear.CG(rtol=1e-10), precondition=True)
    np.testing.assert_allclose(helped.grad, plain.grad, rtol=1e-7)
    assert int(helped.counts["hvps"]) < int(plain.counts["hvps"])
    assert int(helped.solves["adjoint"].status) == Status.CONVERGED


def test_the_inverse_of_lbfgs_satisfies_the_secant_equation(x64):
    problem, theta = quadratic_with_outliers(), jnp.asarray(np.linspace(1, 2, 60))
    solver = inner.LBFGS(max_steps=12)
    at = bl.At(problem, theta, None)
    state, step = jax.jit(lambda: solver.init(at, jnp.zeros(60)))(), jax.jit(lambda state: solver.step(at, state))
    for _ in range(12):
        state = step(state)
    inverse = jax.jit(solver.inverse(state))
    moves, changes, _, ratios = state.estimate[:4]
    np.testing.assert_allclose(inverse(changes[-1]), ratios[-1] * moves[-1], rtol=1e-8, atol=1e-12)
    x, y = jnp.asarray(RNG.normal(size=(2, 60)))
    np.testing.assert_allclose(jnp.vdot(inverse(x), y), jnp.vdot(x, inverse(y)), rtol=1e-9)
    assert jnp.vdot(inverse(x), x) > 0


def test_the_exact_inverse_solves_the_adjoint_at_once(x64):
    problem, data = ridge_problem(), (jnp.asarray(TALL), jnp.asarray(RNG.normal(size=20)))
    theta = jnp.linspace(-2.0, 2.0, 6)
    found = estimate(problem, inner.Ridge(), theta, data, linear=bl.linear.CG(rtol=1e-9), precondition=True)
    plain = estimate(problem, inner.Ridge(), theta, data, linear=bl.linear.Direct())
    np.testing.assert_allclose(found.grad, plain.grad, rtol=1e-8)
    assert int(found.counts["hvps"]) <= 4


@pytest.mark.parametrize(
    ("problem", "solver", "linear", "message"),
    [
        (problems.ridge, inner.FISTA(), bl.linear.Auto(), r"inner\.FISTA does not: use inner\.LBFGS or inner\.Ridge"),
        (
            problems.ridge,
            inner.LBFGS(),
            bl.linear.GMRES(),
            r"linear\.GMRES takes no preconditioner of a symmetric system: use linear\.CG",
        ),
        (
            Problem(problems.ridge_loss, optimality=lambda x, h, d: jax.grad(problems.ridge_loss)(x, h, d)),
            inner.LBFGS(),
            bl.linear.CG(),
            r"not optimality\.Custom: use precondition=False",
        ),
    ],
)
def test_preconditioning_that_cannot_be_is_refused(problem, solver, linear, message):
    with pytest.raises(ValueError, match=message):
        bl.hypergrad.Implicit(linear=linear, precondition=True).check(problem, solver)
    assert bl.hypergrad.misfits(problem, solver, bl.hypergrad.Implicit(linear=linear, precondition=True))


# Minibatches


@pytest.mark.parametrize("batch", [1, 3, 5, 10, 64])
def test_an_epoch_takes_every_sample_once(x64, batch):
    seen = []

    def inner_loss(x, hparams, data):
        rows = data["train"]
        if rows.size < 10 or batch >= 10:
            jax.debug.callback(lambda rows: seen.append(np.asarray(rows)), rows)
        return jnp.mean((x - rows) ** 2)

    problem = Problem(inner_loss, batches=bl.Batches("train"))
    solver = inner.Optax(optimizer=optax.sgd(0.01), batch_size=batch, rtol=0.0, max_steps=2)
    at = bl.At(problem, jnp.array(0.0), {"train": jnp.arange(10.0)})
    jax.jit(solver.solve_at)(at, jnp.array(0.0))
    jax.effects_barrier()
    orders = np.concatenate([rows.ravel() for rows in seen]).reshape(-1, 10)
    assert len(orders) == (2 if batch < 10 else 5)  # as large as all samples, the gradients of the stopping test too
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert batch >= 10 or list(orders[0]) != list(orders[1])


def test_variance_reduction_converges_where_plain_minibatches_hover(x64):
    case = inner_cases.case("logistic")
    settings = {"optimizer": optax.sgd(0.05), "batch_size": 8, "rtol": 1e-9, "max_steps": 3000}
    plain, reduced = (
        inner.Optax(variance_reduction=choice, **settings).solve(case.problem, case.start, case.hparams, case.data)
        for choice in (False, True)
    )
    assert status_of(plain) is Status.MAX_STEPS
    assert status_of(reduced) is Status.CONVERGED
    np.testing.assert_allclose(reduced.params, case.optimum, atol=1e-6)


def test_minibatch_settings_are_checked():
    with pytest.raises(ValueError, match="variance_reduction corrects minibatches: give batch_size too"):
        inner.Optax(optimizer=optax.sgd(0.1), variance_reduction=True)
    with pytest.raises(
        ValueError,
        match=r"inner\.Optax with a batch_size needs minibatches, and this problem states none: add batches=",
    ):
        inner.Optax(optimizer=optax.sgd(0.1), batch_size=4).check(problems.ridge)


# Blocks


def test_block_coordinate_descent_says_what_it_cannot_take(x64):
    solver = inner.BlockCoordinateDescent()
    with pytest.raises(ValueError, match=r"needs a loss whose blocks are cheap, and this one has no linear_model"):
        solver.check(problems.lasso)
    with pytest.raises(ValueError, match=r"acts on each row .* has neither block_prox nor separable"):
        solver.check(inner_cases.case("simplex_qp").problem)
    function = Problem(
        lambda x, h, d: jnp.vdot(x, x) / 2 + jnp.sum(x),
        also=(bl.Program(lambda h, d: QP(jax.tree_util.Partial(lambda z: z), jnp.ones(3))),),
    )
    with pytest.raises(TypeError, match=r"reads single rows of Q: .* a matrix or a bilevel\.statements\.Factored"):
        solver.solve(function, jnp.zeros(3), jnp.array(0.0), None)
    with pytest.raises(TypeError, match="params must be one array, whose rows are the blocks"):
        solver.solve(function, {"a": jnp.zeros(3)}, jnp.array(0.0), None)
    with pytest.raises(ValueError, match="inner_ratio between 0 and 1"):
        inner.BlockCoordinateDescent(inner_ratio=1.0)


def test_blocks_of_a_data_fit_and_of_a_model_agree(x64):
    """The same lasso by `linear_model`, and by `datafit`, `design`, `block_lipschitz`; dense and sparse."""
    case = inner_cases.case("lasso")
    rows = len(inner_cases.Y)

    def datafit(prediction, hparams, data):
        return jnp.sum((prediction - data[1]) ** 2) / (2 * rows)

    by_fit = Problem(
        inner=bl.Minimization(
            datafit=datafit,
            design=lambda hparams, data: data[0],
            prox=case.problem.parts.prox,
            separable=True,
            block_lipschitz=lambda hparams, data: jnp.asarray(np.sum(inner_cases.X**2, axis=0) / rows),
        )
    )
    solver = inner.BlockCoordinateDescent(rtol=1e-12)
    sparse = (BCOO.fromdense(case.data[0]), case.data[1])
    for problem, data in ((by_fit, case.data), (by_fit, sparse), (case.problem, sparse)):
        found = solver.solve(problem, case.start, case.hparams, data)
        assert status_of(found) is Status.CONVERGED
        np.testing.assert_allclose(found.params, case.optimum, atol=1e-9)


def test_a_wide_lasso_takes_few_working_sets(x64):
    """More features than the least working set, and than rows."""
    from sklearn.linear_model import Lasso

    rng = np.random.default_rng(3)
    features = rng.normal(size=(80, 400))
    targets = features[:, :10] @ rng.normal(size=10) + 0.1 * rng.normal(size=80)
    model = LinearModel(loss="squared", rows=lambda d: d, l1=jnp.exp, mean=True)
    data = (jnp.asarray(features), jnp.asarray(targets))
    found = inner.BlockCoordinateDescent(rtol=1e-11).solve(
        Problem(linear_model=model), jnp.zeros(400), jnp.log(0.1), data
    )
    expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(features, targets).coef_
    np.testing.assert_allclose(found.params, expected, atol=1e-8)
    assert int(found.steps) < 15
    assert 5 < int(jnp.sum(found.params != 0)) < 80


# Which parts go together


def test_misfits_name_the_kind_of_point():
    for condition, words in (
        (
            bl.optimality.KKT(),
            "KKT takes a point with its multipliers, and inner.LBFGS returns the minimum over the whole",
        ),
        (
            bl.optimality.MirrorStep(),
            "MirrorStep takes a point of a set, or a minimum with a prox, and inner.LBFGS returns",
        ),
    ):
        (reason,) = bl.hypergrad.misfits(Problem(problems.ridge_loss, optimality=condition), inner.LBFGS())
        assert f"optimality.{words}" in reason
    least_squares = Problem(problems.least_squares, optimality=bl.optimality.LeastSquares())
    assert len(bl.hypergrad.misfits(least_squares, inner.Ridge())) == 2


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (problems.ridge, inner.LBFGS),
        (problems.lasso, inner.FISTA),
        (problems.simplex, inner.FISTA),
        (Problem(fixed_point=lambda x, hparams, data: jnp.cos(x)), inner.Anderson),
        (Problem(inner=bl.Program(lambda hparams, data: QP(jnp.eye(2), hparams))), inner.OSQP),
        (Problem(inner=bl.Program(lambda hparams, data: None, kind="cone")), inner.CVXPY),
    ],
)
def test_the_default_solver_serves_the_problem(problem, expected):
    chosen = inner.default(problem)
    assert type(chosen) is expected
    chosen.check(problem)


def test_a_fixed_point_is_differentiated_through_minimize(x64):
    """An implicit layer: the bias that makes the equilibrium hit a target."""
    weights = 0.4 * jnp.asarray(np.linalg.qr(RNG.normal(size=(4, 4)))[0])
    problem = Problem(
        outer_loss=lambda x, bias, data: jnp.sum((x - data["target"]) ** 2),
        fixed_point=lambda x, bias, data: jnp.tanh(data["weights"] @ x + bias),
    )
    data = {"weights": weights, "target": jnp.linspace(-0.5, 0.5, 4)}
    result = bl.minimize(problem, jnp.zeros(4), jnp.zeros(4), data, steps=60)
    assert result.failures == 0
    assert result.outer_loss < 1e-3
    expected = jnp.arctanh(data["target"]) - weights @ data["target"]
    np.testing.assert_allclose(result.hparams, expected, atol=0.1)
    report = bl.check_hypergradient(problem, jnp.full(4, 0.1), jnp.zeros(4), data, inner=inner.Anderson(rtol=1e-12))
    assert report.ok
