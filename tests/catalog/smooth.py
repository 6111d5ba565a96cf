"""Smooth unconstrained problems and roots: Stationary, LeastSquares, NewtonStep, Custom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.optimality import Custom, LeastSquares, NewtonStep, Stationary
from catalog.core import ALL, DIFFERENCES, JIT, Case, Check, Entry, closed_form, differences
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
    return jnp.sum((FEATURES @ x - TARGETS) ** 2) / 2 + jnp.vdot(penalties, x**2) / 2


def ridge_residuals(x, penalties, data):
    return FEATURES @ x - TARGETS, jnp.sqrt(penalties) * x


def ridge_solution(penalties):
    return jnp.linalg.solve(FEATURES.T @ FEATURES + jnp.diag(penalties), FEATURES.T @ TARGETS)


def ridge(condition, **parts):
    penalties = jnp.asarray(PENALTIES)
    return Case(bl.Problem(**parts, optimality=condition), penalties, jax.jit(ridge_solution)(penalties))


# Logistic regression with a penalty and a weight per example.


def logistic_loss(x, hparams, data):
    penalty, weights = hparams
    return jnp.vdot(weights, jnp.logaddexp(0.0, -LABELS * (FEATURES @ x))) + penalty * jnp.vdot(x, x) / 2


LOGISTIC_ROOT = Root(lambda x, hparams: jax.grad(logistic_loss)(x, hparams, None))


def logistic(condition):
    hparams = jnp.asarray(1.5), jnp.asarray(WEIGHTS)
    solution = LOGISTIC_ROOT(np.zeros(N), hparams)
    return Case(bl.Problem(inner_loss=logistic_loss, optimality=condition), hparams, jnp.asarray(solution))


def by_scikit_learn(case):
    from sklearn.linear_model import LogisticRegression

    def solve(hparams):
        penalty, weights = (np.asarray(x) for x in hparams)
        model = LogisticRegression(C=1 / float(penalty), fit_intercept=False, solver="newton-cholesky", tol=1e-13)
        return model.fit(FEATURES, LABELS, sample_weight=weights).coef_[0]

    return differences(case, solve, 0.05, accuracy=1e-9)


def by_scipy_logistic(case):
    return differences(case, lambda hparams: LOGISTIC_ROOT(np.zeros(N), hparams), 0.05, accuracy=1e-12)


# Weighted least squares with redundant parameters: a singular Hessian.


def redundant_loss(x, hparams, data):
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
    return RANK_DEFICIENT @ x


def least_part(x, hparams):
    return np.linalg.pinv(RANK_DEFICIENT) @ (RANK_DEFICIENT @ x)


# A curve fit: eight bumps of unknown height, place and width.

BUMPS, TIMES = 8, np.linspace(0, 8, 80)
TRUE_CURVE = np.concatenate([RNG.uniform(1.0, 2.0, BUMPS), np.arange(BUMPS) + 0.5, RNG.uniform(0.25, 0.35, BUMPS)])
CURVE_NOISE = 0.1 * RNG.normal(size=TIMES.size)


def curve(x):
    height, place, width = x.reshape(3, BUMPS)
    return jnp.sum(height * jnp.exp(-(((TIMES[:, None] - place) / width) ** 2) / 2), axis=1)


def curve_residuals(x, observed, data):
    return curve(x) - observed


def curve_loss(x, observed):
    return jnp.sum(curve_residuals(x, observed, None) ** 2) / 2


CURVE_ROOT = Root(jax.grad(curve_loss))


def curve_fit(hessian, noise):
    observed = curve(jnp.asarray(TRUE_CURVE)) + noise
    problem = bl.Problem(residuals=curve_residuals, optimality=LeastSquares(hessian=hessian))
    return Case(problem, observed, jnp.asarray(scipy_curve_fit(observed)))


def scipy_curve_fit(observed):
    from scipy.optimize import least_squares

    found = least_squares(lambda x: np.asarray(_curve_at(x)) - observed, TRUE_CURVE, _curve_slope, method="lm")
    return CURVE_ROOT(found.x, observed)


_curve_at, _curve_slope = jax.jit(curve), jax.jit(jax.jacfwd(curve))


def by_scipy_least_squares(case):
    return differences(case, scipy_curve_fit, 0.02, accuracy=1e-12)


# Roots of functions that are no gradients.


def linear_root(x, hparams, data):
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


NONLINEAR_ROOT = Root(lambda x, hparams: nonlinear_root(x, hparams, None))


def nonlinear_root_solution(hparams):
    return jnp.asarray(NONLINEAR_ROOT(np.zeros(N), hparams))


def by_scipy_root(case):
    return differences(case, nonlinear_root_solution, 0.05, accuracy=1e-12)


def _scipy(make):
    return (Check("differences of SciPy, polished by Newton steps", DIFFERENCES, make),)


def _ridge(condition, text="", modes=JIT, **parts):
    name, build = "ridge regression, a penalty per coordinate", functools.partial(ridge, condition, **parts)
    return Entry(type(condition), name + text, build, (closed_form(ridge_solution),), modes)


def _logistic(condition, *more):
    name, build = "logistic regression, a weight per example", functools.partial(logistic, condition)
    return Entry(type(condition), name, build, (*more, *_scipy(by_scipy_logistic)))


def _redundant(text, measure, solution, modes):
    name = f"weighted least squares, redundant parameters (singular): {text}"
    return Entry(Stationary, name, functools.partial(redundant, measure), (closed_form(solution),), modes)


def _curve(name, *args):
    return Entry(LeastSquares, name, functools.partial(curve_fit, *args), _scipy(by_scipy_least_squares))


def _linear(name, condition, modes):
    problem = bl.Problem(optimality=condition)
    build = functools.partial(root_case, problem, jax.jit(linear_root_solution))
    return Entry(type(bl.optimality.of(problem)), name, build, (closed_form(linear_root_solution),), modes)


def _nonlinear(name, condition):
    build = functools.partial(root_case, bl.Problem(optimality=condition), nonlinear_root_solution)
    return Entry(type(condition), name, build, _scipy(by_scipy_root))


BY_SCIKIT = Check("differences of scikit-learn", DIFFERENCES, by_scikit_learn)
ENTRIES = [
    _ridge(Stationary(), modes=ALL, inner_loss=ridge_loss),
    _ridge(Stationary(structure="symmetric"), ', structure="symmetric"', inner_loss=ridge_loss),
    _logistic(Stationary(), BY_SCIKIT),
    _redundant("the fit", fit_of, redundant_fit, (*JIT, "jacfwd, jit", "jacrev, jit")),
    _redundant("the least solution", lambda x, hparams: x, least_redundant, ("jvp, jit",)),
    _redundant("its part in the row space", least_part, least_redundant, ("vjp, jit",)),
    _ridge(LeastSquares(), residuals=ridge_residuals),
    _ridge(LeastSquares(hessian="gauss_newton"), ', hessian="gauss_newton"', residuals=ridge_residuals),
    _curve("curve fit of eight bumps", "exact", CURVE_NOISE),
    _curve('curve fit of eight bumps without noise, hessian="gauss_newton"', "gauss_newton", 0.0),
    _ridge(NewtonStep(), inner_loss=ridge_loss),
    _logistic(NewtonStep()),
    _linear("root of a linear, nonsymmetric G", NewtonStep(function=linear_root), (*JIT, "hypergradient, jit")),
    _nonlinear("root of a nonlinear, nonsymmetric G", NewtonStep(function=nonlinear_root)),
    _linear("root of a linear, nonsymmetric F", linear_root, ALL),
    _nonlinear("root of a nonlinear, nonsymmetric F", Custom(function=nonlinear_root)),
]
