"""The problems of `inner.py`: data, the statement for solvers, and an optimum that a lower bound certifies.

NumPy evaluates each objective in float64 at the nearest feasible point. Gaps are relative to the optimum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.operators.projection import projection_non_negative, projection_simplex
from bilevel.tasks import svm

Array = Any


@dataclasses.dataclass(frozen=True)
class Instance:
    """A problem with its data.

    Attributes:
      name: the name that is printed.
      problem: the problem for our solvers.
      start, hparams, data: the arguments of a solve.
      parts: the inputs of other packages: X, y, the penalty, L, …
      objective: feasible params -> the objective in float64.
      bound: params -> a lower bound of the optimum.
      feasible: params -> the nearest feasible point.
      solution: () -> an accurate solution.
    """

    name: str
    problem: bl.Problem
    start: Array
    hparams: Array
    data: Array
    parts: dict[str, Any]
    objective: Callable[[np.ndarray], float]
    bound: Callable[[np.ndarray], float]
    solution: Callable[[], np.ndarray]
    feasible: Callable[[np.ndarray], np.ndarray] = lambda params: params

    def reference(self) -> float:
        """The optimum, certified to 1e-9."""
        found = self.feasible(np.asarray(self.solution(), np.float64))
        value = self.objective(found)
        assert value - self.bound(found) <= 1e-9 * abs(value), f"{self.name}: the reference is not certified"
        return value

    def gap(self, params: Array, reference: float) -> float:
        """(f − f*)/|f*|."""
        params = self.feasible(np.asarray(params, np.float64))
        return (self.objective(params) - reference) / abs(reference) if np.isfinite(params).all() else np.inf


def logistic(penalty: float = 1e-3) -> Instance:
    """Mean cross-entropy of the digits (1797 × 64, 10 classes, X/16) + penalty/2 ‖W‖²."""
    from sklearn.datasets import load_digits

    features, targets = load_digits(return_X_y=True)
    features, one_hot = features / 16, np.eye(10)[targets]
    rows = np.arange(len(targets))

    def scores(w):
        prediction = features @ w
        largest = prediction.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(prediction - largest).sum(axis=1, keepdims=True)) + largest
        return prediction, log_sum

    def objective(w):
        prediction, log_sum = scores(w)
        return (log_sum[:, 0] - prediction[rows, targets]).mean() + penalty / 2 * (w**2).sum()

    def bound(w):  # strongly convex with modulus `penalty`
        prediction, log_sum = scores(w)
        gradient = features.T @ (np.exp(prediction - log_sum) - one_hot) / len(targets) + penalty * w
        return objective(w) - (gradient**2).sum() / (2 * penalty)

    problem = bl.Problem(
        linear_model=bl.LinearModel(loss="logistic", rows=lambda data: data, l2=lambda h: h, mean=True)
    )
    data = jnp.asarray(features), jnp.asarray(targets, jnp.int32)
    start, hparams = jnp.zeros((64, 10)), jnp.asarray(penalty)
    largest = np.linalg.norm(features, 2) ** 2 / (2 * len(targets)) + penalty
    parts = {"X": data[0], "y": data[1], "L": largest}
    solver = bl.inner.LBFGS(rtol=1e-12)
    solution = lambda: jax.jit(lambda *a: solver.solve(problem, *a).params)(start, hparams, data)  # noqa: E731
    return Instance("logistic ℓ2", problem, start, hparams, data, parts, objective, bound, solution)


def lasso(share: float) -> Instance:
    """‖Xw − y‖²/(2m) + λ‖w‖₁: 1000 × 5000, neighboring columns correlated by ½, 50 true coefficients, λ = share · λ_max."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1000, 5000))
    for j in range(1, 5000):
        features[:, j] = features[:, j - 1] / 2 + np.sqrt(3) / 2 * features[:, j]
    truth = np.zeros(5000)
    truth[rng.choice(5000, 50, replace=False)] = rng.normal(size=50)
    targets = features @ truth + rng.normal(size=1000)
    samples = len(targets)
    penalty = share * np.abs(targets @ features).max() / samples

    def objective(w):
        return ((features @ w - targets) ** 2).sum() / (2 * samples) + penalty * np.abs(w).sum()

    def bound(w):  # the dual objective at the scaled residual
        dual = (targets - features @ w) / samples
        dual = dual * min(1, penalty / np.abs(dual @ features).max())
        return dual @ targets - samples / 2 * dual @ dual

    def solution():
        from sklearn.linear_model import Lasso

        return Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(features, targets).coef_

    largest = np.linalg.norm(features, 2) ** 2 / samples
    problem = bl.Problem(
        linear_model=bl.LinearModel(loss="squared", rows=lambda data: data[:2], l1=lambda h: h, mean=True),
        lipschitz=lambda hparams, data: data[2],
    )
    data = jax.tree.map(jnp.asarray, (features, targets, largest))
    parts = {"X": data[0], "y": data[1], "L": largest, "numpy": (np.asfortranarray(features), targets, penalty)}
    start, hparams = jnp.zeros(5000), jnp.asarray(penalty)
    return Instance(f"lasso, λ_max/{1 / share:.0f}", problem, start, hparams, data, parts, objective, bound, solution)


def svm_dual(share: float) -> Instance:
    """½‖Xᵀ(Y − x)‖²/θ + ⟨x, Y⟩, rows of x on simplices: 700 × 1000, 5 classes, θ = share · λ_max(XXᵀ)."""
    setup = svm.SVM(data="synthetic", features=1000).setup(0, np.float64)
    train = {name: np.asarray(leaf) for name, leaf in setup.data["train"].items()}
    gram, targets = train["gram"], train["targets"]
    theta = share * float(train["top_eigenvalue"])

    def objective(x):
        fit = targets - x
        return np.vdot(fit, gram @ fit) / (2 * theta) + np.vdot(x, targets)

    def bound(x):  # the linear model at x, minimized over the simplices
        gradient = -gram @ (targets - x) / theta + targets
        return objective(x) + gradient.min(axis=1).sum() - np.vdot(gradient, x)

    def feasible(x):
        return np.asarray(jax.vmap(projection_simplex)(jnp.asarray(x)))

    start, hparams = setup.params, jnp.asarray(np.log(theta))
    data = setup.data
    solver = bl.inner.FISTA(rtol=1e-13, max_steps=100_000)
    solution = lambda: jax.jit(lambda *a: solver.solve(svm.problem, *a).params)(start, hparams, data)  # noqa: E731
    parts = {
        "X": data["train"]["features"],
        "Y": data["train"]["targets"],
        "gram": data["train"]["gram"],
        "theta": jnp.asarray(theta),
        "L": 1 / share,
    }
    name = "SVM dual, λ_max" + ("" if share == 1 else f"/{1 / share:.0f}")
    return Instance(name, svm.problem, start, hparams, data, parts, objective, bound, solution, feasible)


def nnls() -> Instance:
    """½‖Xw − y‖², w ≥ 0: 1000 × 500, half of the true coefficients negative."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1000, 500))
    targets = features @ rng.normal(size=500) + 5 * rng.normal(size=1000)
    gram, correlation = features.T @ features, features.T @ targets
    eigenvalues = np.linalg.eigvalsh(gram)

    def objective(w):
        return ((features @ w - targets) ** 2).sum() / 2

    def bound(w):  # strongly convex with modulus μ: the least of ⟨g, d⟩ + μ/2 ‖d‖² over w + d ≥ 0
        gradient, modulus = gram @ w - correlation, eigenvalues[0]
        d = np.maximum(-gradient / modulus, -w)
        return objective(w) + gradient @ d + modulus / 2 * d @ d

    def solution():
        from scipy.optimize import nnls

        return nnls(features, targets)[0]

    problem = bl.Problem(
        lambda w, hparams, data: jnp.sum((data[0] @ w - data[1]) ** 2) / 2,
        projection=lambda w, hparams, data: projection_non_negative(w),
        polyhedral=True,
        lipschitz=lambda hparams, data: data[2],
        also=(
            bl.Program(
                lambda hparams, data: bl.QP(
                    data[3], -data[4], M=jax.tree_util.Partial(jnp.negative), h=jnp.zeros_like(data[4])
                )
            ),
        ),
    )
    arrays = (features, targets, eigenvalues[-1], gram, correlation)
    data = jax.tree.map(jnp.asarray, arrays)
    parts = {"X": data[0], "y": data[1], "L": float(eigenvalues[-1]), "Q": data[3], "c": -data[4]}
    start, hparams = jnp.zeros(500), jnp.zeros(())
    feasible = lambda w: np.maximum(w, 0)  # noqa: E731
    return Instance("NNLS", problem, start, hparams, data, parts, objective, bound, solution, feasible)
