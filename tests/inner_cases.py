"""Inner problems with reference optima by scikit-learn, CVXPY or SciPy: the columns of the solvers' conformance matrix."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from catalog.solvers import cvxpy_minimize
from scipy.optimize import least_squares, lsq_linear
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge

import bilevel as bl
from bilevel import tasks
from bilevel.operators.projection import projection_box, projection_non_negative, projection_simplex
from bilevel.statements import QP, LinearModel

RNG = np.random.default_rng(5)
ROWS, FEATURES = 40, 8
X = RNG.normal(size=(ROWS, FEATURES)) * np.linspace(0.5, 2.0, FEATURES)
TRUTH = np.array([1.5, -2.0, 0.0, 0.0, 1.0, 0.0, -0.5, 3.0])
Y = X @ TRUTH + 0.3 * RNG.normal(size=ROWS)
CLASSES = np.digitize(X @ TRUTH, [-2.0, 2.0])
Q = X.T @ X / ROWS + 0.1 * np.eye(FEATURES)
C = -X.T @ Y / ROWS
W = RNG.normal(size=(FEATURES, FEATURES))
W *= 0.8 / np.linalg.norm(W, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem, where to start, and its optimum by another way; arrays in double precision."""

    problem: bl.Problem
    hparams: Any
    start: Any
    data: Any
    reference: Callable[[], np.ndarray]

    @functools.cached_property
    def optimum(self):
        return self.reference()


def cvxpy_minimum(build):
    """The minimizer of a CVXPY objective under constraints, by Clarabel at its tightest."""
    import cvxpy as cp

    z = cp.Variable(FEATURES)
    cvxpy_minimize(*build(cp, z))
    return z.value


def quadratic_loss(z, hparams, data):
    return jnp.vdot(z, data["Q"] @ z) / 2 + hparams * jnp.vdot(data["c"], z)


def program(**constraints):
    """The QP beside the loss: (hparams, data) -> QP."""
    return lambda hparams, data: QP(data["Q"], hparams * data["c"], **constraints)


def qp_case(build, start=None, **parts):
    data = {"Q": jnp.asarray(Q), "c": jnp.asarray(C)}
    program = parts.pop("quadratic_program", None)
    statement = bl.Minimization(
        loss=quadratic_loss,
        lipschitz=lambda hparams, data: float(np.linalg.norm(Q, 2)) * jnp.ones_like(hparams),
        **parts,
    )
    problem = bl.Problem(inner=statement, also=() if program is None else (bl.Program(program),))
    start = jnp.zeros(FEATURES) if start is None else start

    def reference():
        return cvxpy_minimum(lambda cp, z: (cp.quad_form(z, cp.psd_wrap(Q)) / 2 + C @ z, build(z)))

    return Case(problem, jnp.array(1.0), start, data, reference)


def quadratic():
    return dataclasses.replace(
        qp_case(lambda z: [], quadratic_program=program()), reference=lambda: -np.linalg.solve(Q, C)
    )


def simplex_qp():
    parts = {
        "projection": lambda z, hparams, data: projection_simplex(z),
        "polyhedral": True,
        "quadratic_program": program(
            E=jnp.ones((1, FEATURES)), d=jnp.ones(1), M=-jnp.eye(FEATURES), h=jnp.zeros(FEATURES)
        ),
    }
    return qp_case(lambda z: [z >= 0, sum(z) == 1], jnp.full(FEATURES, 1 / FEATURES), **parts)


def box_qp():
    eye, bound = np.eye(FEATURES), 0.8
    parts = {
        "projection": lambda z, hparams, data: projection_box(z, (-bound, bound)),
        "block_prox": lambda block, index, hparams, data, step: jnp.clip(block, -bound, bound),
        "polyhedral": True,
        "quadratic_program": program(M=jnp.asarray(np.vstack([eye, -eye])), h=jnp.full(2 * FEATURES, bound)),
    }
    return qp_case(lambda z: [z <= bound, z >= -bound], **parts)


def nnls():
    parts = {
        "projection": lambda z, hparams, data: projection_non_negative(z),
        "block_prox": lambda block, index, hparams, data, step: jnp.maximum(block, 0),
        "polyhedral": True,
        "quadratic_program": program(M=-jnp.eye(FEATURES), h=jnp.zeros(FEATURES)),
    }

    def reference():
        factor = np.linalg.cholesky(Q).T
        target = np.linalg.solve(factor.T, -C)
        return lsq_linear(factor, target, bounds=(0, np.inf), tol=1e-14, method="bvls").x

    return dataclasses.replace(qp_case(lambda z: [z >= 0], **parts), reference=reference)


def linear_case(hparam, targets, estimator, loss="squared", **penalties):
    """A linear model with the objective of a scikit-learn estimator: penalties at the hyperparameter, a mean over the rows."""
    start = jnp.zeros((FEATURES, 3) if loss == "logistic" else FEATURES)
    problem = bl.Problem(linear_model=LinearModel(loss=loss, rows=lambda data: data, mean=True, **penalties))

    def reference():
        return estimator.set_params(fit_intercept=False).fit(X, targets).coef_.T

    return Case(problem, jnp.array(hparam), start, (jnp.asarray(X), jnp.asarray(targets)), reference)


def logistic():
    estimator = LogisticRegression(C=1 / (0.05 * ROWS), tol=1e-13, max_iter=100_000)
    return linear_case(0.05, CLASSES, estimator, "logistic", l2=lambda hparams: hparams)


def lasso():
    return linear_case(0.3, Y, Lasso(alpha=0.3, tol=1e-14, max_iter=100_000), l1=lambda hparams: hparams)


def ridge():
    return linear_case(0.3, Y, Ridge(alpha=0.3 * ROWS, tol=1e-14), l2=lambda hparams: hparams)


def elastic_net():
    estimator = ElasticNet(alpha=0.4, l1_ratio=0.75, tol=1e-14, max_iter=100_000)
    return linear_case(0.4, Y, estimator, l1=lambda hparams: 0.75 * hparams, l2=lambda hparams: 0.25 * hparams)


def svm_dual():
    setup = tasks.SVM(data="iris", theta=20.0).setup(0, "float64")
    train = {name: np.asarray(value) for name, value in setup.data["train"].items()}

    def reference():
        import cvxpy as cp

        x, targets = cp.Variable(train["targets"].shape), train["targets"]
        loss = cp.sum_squares(train["features"].T @ (targets - x)) / 40 + cp.sum(cp.multiply(x, targets))
        cvxpy_minimize(loss, [x >= 0, cp.sum(x, axis=1) == 1])
        return x.value

    return Case(setup.problem, setup.hparams, setup.params, setup.data, reference)


def rosenbrock():
    def residuals(z, hparams, data):
        return jnp.concatenate([jnp.sqrt(hparams) * (z[1:] - z[:-1] ** 2), 1 - z[:-1]])

    return Case(bl.Problem(residuals=residuals), jnp.array(20.0), jnp.zeros(4), None, lambda: np.ones(4))


def nonlinear_least_squares():
    """An exponential decay fitted to noisy values."""
    t = np.linspace(0, 3, 25)
    noisy = 2.5 * np.exp(-1.3 * t) + 0.4 + 0.05 * np.random.default_rng(1).normal(size=25)

    def residuals(z, hparams, data):
        return z[0] * jnp.exp(-z[1] * data[0]) + z[2] - data[1]

    def reference():
        def fit(z):
            return z[0] * np.exp(-z[1] * t) + z[2] - noisy

        return least_squares(fit, [1.0, 1.0, 0.0], xtol=1e-15, ftol=1e-15, gtol=1e-15, method="lm").x

    data = (jnp.asarray(t), jnp.asarray(noisy))
    return Case(bl.Problem(residuals=residuals), jnp.array(0.0), jnp.array([1.0, 1.0, 0.0]), data, reference)


def fixed_point():
    """x = tanh(Wx + b), as in a deep equilibrium layer."""

    def layer(x, hparams, data):
        return jnp.tanh(data @ x + hparams)

    bias = np.linspace(-1, 1, FEATURES)

    def reference():
        x = np.zeros(FEATURES)
        for _ in range(500):
            x = np.tanh(W @ x + bias)
        return x

    return Case(bl.Problem(fixed_point=layer), jnp.asarray(bias), jnp.zeros(FEATURES), jnp.asarray(W), reference)


MAKERS = {
    maker.__name__: maker
    for maker in (
        quadratic,
        logistic,
        ridge,
        lasso,
        elastic_net,
        nnls,
        svm_dual,
        simplex_qp,
        box_qp,
        rosenbrock,
        nonlinear_least_squares,
        fixed_point,
    )
}


@functools.cache
def case(name: str) -> Case:
    """A case by name; call it in double precision."""
    assert jax.config.jax_enable_x64
    return MAKERS[name]()
