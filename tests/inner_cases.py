"""Inner problems with reference optima by scikit-learn, CVXPY or SciPy: the columns of the solvers' conformance matrix."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    objective, constraints = build(cp, z)
    tight = {"tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-13}
    cp.Problem(cp.Minimize(objective), constraints).solve(solver="CLARABEL", **tight)
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
        "quadratic_program": lambda hparams, data: QP(
            data["Q"],
            hparams * data["c"],
            *(jnp.ones((1, FEATURES)), jnp.ones(1)),
            *(-jnp.eye(FEATURES), jnp.zeros(FEATURES)),
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
        from scipy.optimize import lsq_linear

        factor = np.linalg.cholesky(Q).T
        target = np.linalg.solve(factor.T, -C)
        return lsq_linear(factor, target, bounds=(0, np.inf), tol=1e-14, method="bvls").x

    return dataclasses.replace(qp_case(lambda z: [z >= 0], **parts), reference=reference)


def linear_case(model, hparams, start, targets, reference):
    return Case(bl.Problem(linear_model=model), hparams, start, (jnp.asarray(X), jnp.asarray(targets)), reference)


def rows(data):
    return data


def logistic():
    from sklearn.linear_model import LogisticRegression

    def reference():
        model = LogisticRegression(C=1 / (0.05 * ROWS), fit_intercept=False, tol=1e-13, max_iter=100_000)
        return model.fit(X, CLASSES).coef_.T

    model = LinearModel(loss="logistic", rows=rows, l2=lambda hparams: hparams, mean=True)
    return linear_case(model, jnp.array(0.05), jnp.zeros((FEATURES, 3)), CLASSES, reference)


def lasso():
    from sklearn.linear_model import Lasso

    def reference():
        return Lasso(alpha=0.3, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, Y).coef_

    model = LinearModel(loss="squared", rows=rows, l1=lambda hparams: hparams, mean=True)
    return linear_case(model, jnp.array(0.3), jnp.zeros(FEATURES), Y, reference)


def ridge():
    from sklearn.linear_model import Ridge

    def reference():
        return Ridge(alpha=0.3 * ROWS, fit_intercept=False, tol=1e-14).fit(X, Y).coef_

    model = LinearModel(loss="squared", rows=rows, l2=lambda hparams: hparams, mean=True)
    return linear_case(model, jnp.array(0.3), jnp.zeros(FEATURES), Y, reference)


def elastic_net():
    from sklearn.linear_model import ElasticNet

    def reference():
        model = ElasticNet(alpha=0.4, l1_ratio=0.75, fit_intercept=False, tol=1e-14, max_iter=100_000)
        return model.fit(X, Y).coef_

    model = LinearModel(
        loss="squared", rows=rows, l1=lambda hparams: 0.75 * hparams, l2=lambda hparams: 0.25 * hparams, mean=True
    )
    return linear_case(model, jnp.array(0.4), jnp.zeros(FEATURES), Y, reference)


def svm_dual():
    setup = tasks.SVM(data="iris", theta=20.0).setup(0, "float64")
    train = {name: np.asarray(value) for name, value in setup.data["train"].items()}

    def reference():
        import cvxpy as cp

        x = cp.Variable(train["targets"].shape)
        loss = cp.sum_squares(train["features"].T @ (train["targets"] - x)) / 40 + cp.sum(
            cp.multiply(x, train["targets"])
        )
        tight = {"tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-13}
        cp.Problem(cp.Minimize(loss), [x >= 0, cp.sum(x, axis=1) == 1]).solve(solver="CLARABEL", **tight)
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
        from scipy.optimize import least_squares

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
