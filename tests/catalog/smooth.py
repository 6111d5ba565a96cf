"""Smooth unconstrained problems and roots: Stationary, LeastSquares, NewtonStep, Custom."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.optimality import Custom, LeastSquares, NewtonStep, Stationary
from catalog.core import ALL, DIFFERENCES, JIT, Case, Check, Differences, Entry, closed_form
from catalog.solvers import Root

N, M = 24, 60
RNG = np.random.default_rng(5)
FEATURES, TARGETS = RNG.normal(size=(M, N)), RNG.normal(size=M)
LABELS = np.sign(TARGETS + 0.3 * RNG.normal(size=M))
PENALTIES = np.linspace(0.5, 9.0, N)
MATRIX = RNG.normal(size=(N, N)) / 5 + 3 * np.eye(N)
MIXING = RNG.normal(size=(N, 7))
FACTOR, RANK_DEFICIENT = RNG.normal(size=(M, N - 6)), RNG.normal(size=(N - 6, N))
WEIGHTS = RNG.uniform(0.5, 2.0, size=M)


# Ridge regression with a penalty per coordinate.


def ridge_loss(x, penalties, data):
    del data
    return jnp.sum((FEATURES @ x - TARGETS) ** 2) / 2 + jnp.vdot(penalties, x**2) / 2


def ridge_residuals(x, penalties, data):
    del data
    return FEATURES @ x - TARGETS, jnp.sqrt(penalties) * x


def ridge_solution(penalties):
    return jnp.linalg.solve(FEATURES.T @ FEATURES + jnp.diag(penalties), FEATURES.T @ TARGETS)


def ridge(condition, **parts):
    penalties = jnp.asarray(PENALTIES)
    return Case(bl.Problem(**parts, optimality=condition), penalties, jax.jit(ridge_solution)(penalties))


# Logistic regression with a penalty and a weight per example.


def logistic_loss(x, hparams, data):
    del data
    penalty, weights = hparams
    return jnp.vdot(weights, jnp.logaddexp(0.0, -LABELS * (FEATURES @ x))) + penalty * jnp.vdot(x, x) / 2


@functools.cache
def logistic_root():
    return Root(lambda x, hparams: jax.grad(logistic_loss)(x, hparams, None))


def logistic(condition):
    hparams = jnp.asarray(1.5), jnp.asarray(WEIGHTS)
    solution = logistic_root()(np.zeros(N), hparams)
    return Case(bl.Problem(inner_loss=logistic_loss, optimality=condition), hparams, jnp.asarray(solution))


def by_scikit_learn(case):
    from sklearn.linear_model import LogisticRegression

    def solve(hparams):
        penalty, weights = (np.asarray(x) for x in hparams)
        model = LogisticRegression(C=1 / float(penalty), fit_intercept=False, solver="newton-cholesky", tol=1e-13)
        return model.fit(FEATURES, LABELS, sample_weight=weights).coef_[0]

    return Differences(case, solve, 0.05, accuracy=1e-9)


def by_scipy_logistic(case):
    return Differences(case, lambda hparams: logistic_root()(np.zeros(N), hparams), 0.05, accuracy=1e-12)


# Weighted least squares with redundant parameters: a singular Hessian.


def redundant_loss(x, hparams, data):
    del data
    weights, targets = hparams
    return jnp.vdot(weights, (FACTOR @ (RANK_DEFICIENT @ x) - targets) ** 2) / 2


def redundant_fit(hparams):
    """RANK_DEFICIENT @ x, which is unique."""
    weights, targets = hparams
    return jnp.linalg.solve(FACTOR.T @ (weights[:, None] * FACTOR), FACTOR.T @ (weights * targets))


def least_redundant(hparams):
    return np.linalg.pinv(RANK_DEFICIENT) @ redundant_fit(hparams)


def redundant(measure):
    hparams = jnp.asarray(WEIGHTS), jnp.asarray(TARGETS)
    problem = bl.Problem(inner_loss=redundant_loss, optimality=Stationary(singular=True))
    return Case(problem, hparams, least_redundant(hparams), measure=measure)


def fit_of(x, hparams):
    del hparams
    return RANK_DEFICIENT @ x


def least_part(x, hparams):
    del hparams
    return np.linalg.pinv(RANK_DEFICIENT) @ (RANK_DEFICIENT @ x)


# A curve fit: eight bumps of unknown height, place and width.

BUMPS, TIMES = 8, np.linspace(0, 8, 80)
TRUE_CURVE = np.concatenate([RNG.uniform(1.0, 2.0, BUMPS), np.arange(BUMPS) + 0.5, RNG.uniform(0.25, 0.35, BUMPS)])
CURVE_NOISE = 0.1 * RNG.normal(size=TIMES.size)


def curve(x):
    height, place, width = x.reshape(3, BUMPS)
    return jnp.sum(height * jnp.exp(-(((TIMES[:, None] - place) / width) ** 2) / 2), axis=1)


def curve_residuals(x, observed, data):
    del data
    return curve(x) - observed


def curve_loss(x, observed):
    return jnp.sum(curve_residuals(x, observed, None) ** 2) / 2


@functools.cache
def curve_root():
    return Root(jax.grad(curve_loss))


def curve_fit(hessian, noise):
    observed = curve(jnp.asarray(TRUE_CURVE)) + noise
    problem = bl.Problem(residuals=curve_residuals, optimality=LeastSquares(hessian=hessian))
    return Case(problem, observed, jnp.asarray(scipy_curve_fit(observed)))


def scipy_curve_fit(observed):
    from scipy.optimize import least_squares

    found = least_squares(lambda x: np.asarray(_curve_at(x)) - observed, TRUE_CURVE, _curve_slope, method="lm")
    return curve_root()(found.x, observed)


_curve_at, _curve_slope = jax.jit(curve), jax.jit(jax.jacfwd(curve))


def by_scipy_least_squares(case):
    return Differences(case, scipy_curve_fit, 0.02, accuracy=1e-12)


# Roots of functions that are no gradients.


def linear_root(x, hparams, data):
    del data
    diagonal, shift = hparams
    return MATRIX @ x + diagonal * x - MIXING @ shift


def linear_root_solution(hparams):
    diagonal, shift = hparams
    return jnp.linalg.solve(MATRIX + jnp.diag(diagonal), MIXING @ shift)


def nonlinear_root(x, hparams, data):
    return linear_root(x, hparams, data) + jnp.tanh(hparams[0] * x) + jnp.roll(x, 1) ** 2 / 5


def root_case(problem, solution):
    hparams = jnp.asarray(np.linspace(-0.5, 1.0, N)), jnp.asarray(np.linspace(-1.0, 1.0, 7))
    return Case(problem, hparams, solution(hparams))


@functools.cache
def nonlinear_roots():
    return Root(lambda x, hparams: nonlinear_root(x, hparams, None))


def nonlinear_root_solution(hparams):
    return jnp.asarray(nonlinear_roots()(np.zeros(N), hparams))


def by_scipy_root(case):
    return Differences(case, nonlinear_root_solution, 0.05, accuracy=1e-12)


def _of_linear(optimality):
    return functools.partial(root_case, bl.Problem(optimality=optimality), jax.jit(linear_root_solution))


def _of_nonlinear(optimality):
    return functools.partial(root_case, bl.Problem(optimality=optimality), nonlinear_root_solution)


def _ridge(condition, **parts):
    return functools.partial(ridge, condition, **parts)


def _scipy(make):
    return (Check("differences of SciPy, polished by Newton steps", DIFFERENCES, make),)


RIDGE, LOGISTIC = "ridge regression, a penalty per coordinate", "logistic regression, a weight per example"
REDUNDANT = "weighted least squares, redundant parameters (singular)"
BY_RIDGE, BY_ROOT = (closed_form(ridge_solution),), (closed_form(linear_root_solution),)
BY_LEAST = (closed_form(least_redundant),)
BY_SCIKIT = Check("differences of scikit-learn", DIFFERENCES, by_scikit_learn)
ENTRIES = [
    Entry(Stationary, RIDGE, _ridge(Stationary(), inner_loss=ridge_loss), BY_RIDGE, ALL),
    Entry(
        Stationary,
        RIDGE + ', structure="symmetric"',
        _ridge(Stationary(structure="symmetric"), inner_loss=ridge_loss),
        BY_RIDGE,
    ),
    Entry(
        Stationary,
        LOGISTIC,
        functools.partial(logistic, Stationary()),
        (BY_SCIKIT, *_scipy(by_scipy_logistic)),
    ),
    Entry(
        Stationary,
        REDUNDANT + ": the fit",
        functools.partial(redundant, fit_of),
        (closed_form(redundant_fit),),
        (*JIT, "jacfwd, jit", "jacrev, jit"),
    ),
    Entry(
        Stationary,
        REDUNDANT + ": the least solution",
        functools.partial(redundant, lambda x, hparams: x),
        BY_LEAST,
        ("jvp, jit",),
    ),
    Entry(
        Stationary,
        REDUNDANT + ": its part in the row space",
        functools.partial(redundant, least_part),
        BY_LEAST,
        ("vjp, jit",),
    ),
    Entry(LeastSquares, RIDGE, _ridge(LeastSquares(), residuals=ridge_residuals), BY_RIDGE),
    Entry(
        LeastSquares,
        RIDGE + ', hessian="gauss_newton"',
        _ridge(LeastSquares(hessian="gauss_newton"), residuals=ridge_residuals),
        BY_RIDGE,
    ),
    Entry(
        LeastSquares,
        "curve fit of eight bumps",
        functools.partial(curve_fit, "exact", CURVE_NOISE),
        _scipy(by_scipy_least_squares),
    ),
    Entry(
        LeastSquares,
        'curve fit of eight bumps without noise, hessian="gauss_newton"',
        functools.partial(curve_fit, "gauss_newton", 0.0),
        _scipy(by_scipy_least_squares),
    ),
    Entry(NewtonStep, RIDGE, _ridge(NewtonStep(), inner_loss=ridge_loss), BY_RIDGE),
    Entry(NewtonStep, LOGISTIC, functools.partial(logistic, NewtonStep()), _scipy(by_scipy_logistic)),
    Entry(
        NewtonStep,
        "root of a linear, nonsymmetric G",
        _of_linear(NewtonStep(function=linear_root)),
        BY_ROOT,
        (*JIT, "hypergradient, jit"),
    ),
    Entry(
        NewtonStep,
        "root of a nonlinear, nonsymmetric G",
        _of_nonlinear(NewtonStep(function=nonlinear_root)),
        _scipy(by_scipy_root),
    ),
    Entry(Custom, "root of a linear, nonsymmetric F", _of_linear(linear_root), BY_ROOT, ALL),
    Entry(
        Custom,
        "root of a nonlinear, nonsymmetric F",
        _of_nonlinear(Custom(function=nonlinear_root)),
        _scipy(by_scipy_root),
    ),
]
