"""What external solvers are handed: linear models, dense and sparse rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from external_cases import NOISY, X, Y, estimate, linear_problem, solve
from jax.experimental.sparse import BCOO
from problems import status_of

import bilevel as bl
from bilevel import Status, inner
from bilevel.statements import LinearModel

pytestmark = pytest.mark.slice(8)


L1, L2 = {"l1": lambda hparams: jnp.exp(hparams) / 10}, {"l2": lambda hparams: jnp.exp(2 * hparams) / 7}
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
    assert status_of(found) is Status.CONVERGED
    assert float(found.residual) <= 1e-11


def test_a_warm_start_saves_iterations(x64):
    for solver, problem, targets, shape in (
        (inner.SklearnLasso(), linear_problem(l1=jnp.exp), Y, (8,)),
        (inner.SklearnLogisticRegression(), linear_problem("logistic", l2=jnp.exp), NOISY, (8, 3)),
    ):
        args = jnp.array(0.5), (jnp.asarray(X), jnp.asarray(targets))
        cold = solve(solver, problem, jnp.zeros(shape), *args)
        warm = solve(solver, problem, cold.params, *args)
        assert int(warm.steps) < int(cold.steps) / 2, type(solver).__name__
        assert status_of(warm) is Status.CONVERGED


SPARSE = scipy.sparse.random_array((60, 40), density=0.3, rng=np.random.default_rng(4), format="csr")


@pytest.mark.parametrize(
    ("problem", "targets", "shape"),
    [(linear_problem(l1=jnp.exp), "real", (40,)), (linear_problem("logistic", l2=jnp.exp), "classes", (40, 3))],
    ids=["lasso", "logistic"],
)
def test_our_own_solvers_take_sparse_rows(x64, problem, targets, shape):
    rng = np.random.default_rng(3)
    y = jnp.asarray(rng.normal(size=60) if targets == "real" else rng.integers(0, 3, 60))
    long = {"rtol": 1e-12, "max_steps": 50_000}
    solver = inner.LBFGS(**long) if problem.parts.smooth and targets == "classes" else inner.FISTA(**long)
    found, dense = (
        estimate(problem, solver, jnp.zeros(shape), jnp.array(0.1), (x, y))
        for x in (BCOO.from_scipy_sparse(SPARSE), jnp.asarray(SPARSE.toarray()))
    )
    assert status_of(found) is Status.CONVERGED
    np.testing.assert_allclose(found.grad, dense.grad, rtol=1e-10)


def test_the_system_on_the_support_takes_sparse_rows(x64):
    """The lasso's system is gathered from columns, which a sparse matrix does not give."""
    problem, y = linear_problem(l1=jnp.exp), jnp.asarray(np.random.default_rng(3).normal(size=60))
    theta, condition = jnp.array(1.0), bl.optimality.ProximalGradient(support=12)

    def adjoint(params, data):
        system = condition.system(bl.At(problem, theta, data), params)
        return system.solve_transposed(bl.linear.Auto(rtol=1e-13), jnp.cos(jnp.arange(40.0)), jnp.zeros(40))

    sparse, dense = BCOO.from_scipy_sparse(SPARSE), jnp.asarray(SPARSE.toarray())
    params = solve(inner.SklearnLasso(), problem, jnp.zeros(40), theta, (sparse, y)).params
    assert 4 <= int(jnp.sum(params != 0)) <= 12
    found, expected = (jax.jit(adjoint)(params, (x, y)) for x in (sparse, dense))
    assert status_of(found) is Status.CONVERGED
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
    assert status_of(found) is Status.CONVERGED
    np.testing.assert_array_equal(start, 0)
    assert type(seen["params"]) is np.ndarray
    assert seen["params"].dtype == seen["hparams"]["a"].dtype == np.float64
    assert seen["labels"].dtype.kind == "i"
    np.testing.assert_array_equal(seen["rows"].toarray(), SPARSE.toarray())
