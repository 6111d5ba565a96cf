"""The multiclass support vector machine of Crammer and Singer, by its dual."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import datasets
from bilevel.datasets import TablePath
from bilevel.operators.projection import projection_simplex
from bilevel.problem import Problem
from bilevel.statements import QP, Factored, LinearModel, Minimization, Program, apply
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._classification import accuracy, load


def inner_loss(params, hparams, data):
    """(θ/2)‖W‖² + ⟨x, Y⟩ with W = Xᵀ(Y − x)/θ and θ = exp(hparams): the dual, x on rows of simplices."""
    targets = data["train"]["targets"]
    return _half_squared_norm(data["train"], targets - params) / jnp.exp(hparams) + jnp.vdot(params, targets)


def outer_loss(params, hparams, data):
    """½‖X_val W − Y_val‖²."""
    fit = _scores(data, data["train"]["targets"] - params) / jnp.exp(hparams) - data["validation"]["targets"]
    return jnp.vdot(fit, fit) / 2


def projection(params, hparams, data):
    """Each row on the simplex."""
    return jax.vmap(projection_simplex)(params)


def lipschitz(hparams, data):
    """λ_max(XXᵀ)/θ."""
    return data["train"]["top_eigenvalue"] / jnp.exp(hparams)


def quadratic_program(hparams, data):
    """The same dual as ½⟨x, Kx⟩/θ + ⟨x, Y − KY/θ⟩ + const subject to row sums 1 and x ≥ 0, K = XXᵀ."""
    train, theta = data["train"], jnp.exp(hparams)
    targets = train["targets"]
    gram = train["gram"] / theta if "gram" in train else Factored(train["features"], 1 / theta)
    return QP(
        Q=gram,
        c=targets - apply(gram, targets),
        E=jax.tree_util.Partial(_row_sums),
        d=jnp.ones(targets.shape[:1], targets.dtype),
        M=jax.tree_util.Partial(jnp.negative),
        h=jnp.zeros_like(targets),
    )


def _row_sums(x):
    return jnp.sum(x, axis=1)


def _rows(data):
    """Features and class numbers."""
    return data["train"]["features"], jnp.argmax(data["train"]["targets"], axis=1)


problem = Problem(
    inner=Minimization(
        loss=inner_loss,
        projection=projection,
        polyhedral=True,
        lipschitz=lipschitz,
        block_prox=lambda row, index, hparams, data, step: projection_simplex(row),
    ),
    outer_loss=outer_loss,
    also=(Program(quadratic_program), LinearModel(loss="crammer_singer", rows=_rows, l2=jnp.exp)),
)


def make_data(train, train_targets, validation, validation_targets, dtype):
    """The data pytree from arrays: features (m, p) and one-hot targets (m, k).

    Products with XXᵀ go through the m × m Gram matrix where that is cheaper than going through X (p > m/2).
    """
    train, validation = np.asarray(train, np.float64), np.asarray(validation, np.float64)
    samples, features = train.shape
    use_gram = 2 * features > samples
    small = train @ train.T if features > samples else train.T @ train
    parts = {"features": train, "targets": train_targets, "top_eigenvalue": 1.0001 * _top_eigenvalue(small)}
    held_out = {"targets": validation_targets}
    if use_gram:
        parts["gram"] = small if features > samples else train @ train.T
        held_out["cross_gram"] = validation @ train.T
    else:
        held_out["features"] = validation
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), {"train": parts, "validation": held_out})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVM(Task):
    """Multiclass SVM: the regularization θ chosen on validation error.

    Inner variable: the dual x, shape (samples, classes), rows on simplices. hparams: λ = log θ, a scalar; scikit-learn's
    C is 1/θ.

    Args:
      data: `digits`, `iris`, `wine`, `breast_cancer` (scikit-learn), `synthetic`, or a table by path.
      validation: share of the rows (or their number) for validation; not used by synthetic data.
      test: share of the rows (or their number) for the test; not used by synthetic data.
      theta: start of θ. None: the largest eigenvalue of XXᵀ, a strong regularization, where solves are easy and the
        gradient does not vanish (with little regularization and separable data it does).
      samples: synthetic data: training rows.
      validation_samples: synthetic data: validation rows.
      test_samples: synthetic data: test rows.
      features: synthetic data: features.
      classes: synthetic data: classes.
      informative: synthetic data: share of the features that carry signal.

    Reference: Crammer & Singer 2001; Blondel et al. 2022, section 4.1.
    """

    data: Literal["digits", "iris", "wine", "breast_cancer", "synthetic"] | TablePath = "digits"
    validation: float = 0.2
    test: float = 0.2
    theta: float | None = None
    samples: int = 700
    validation_samples: int = 200
    test_samples: int = 200
    features: int = 1000
    classes: int = 5
    informative: float = 0.1

    def __post_init__(self):
        if self.theta is not None and not self.theta > 0:
            raise ValueError(f"task.theta must be positive, got {self.theta}")

    def setup(self, seed, dtype):
        """Load or make the data, scale it, and state the problem."""
        split = self._split(seed)
        classes = split.train.classes

        def one_hot(part):
            return np.eye(classes)[part.targets]

        def metrics(hparams, params):
            residual = one_hot(split.train) - np.asarray(params, np.float64)
            weights = split.train.features.T @ residual / np.exp(float(hparams))
            return {
                "train_accuracy": accuracy(split.train, weights),
                "validation_accuracy": accuracy(split.validation, weights),
                "test_accuracy": accuracy(split.test, weights),
                "support_vectors": int(np.sum(np.any(residual != 0, axis=1))),
            }

        samples, features = split.train.features.shape
        train, validation = split.train, split.validation
        data = make_data(train.features, one_hot(train), validation.features, one_hot(validation), dtype)
        theta = self.theta or float(data["train"]["top_eigenvalue"])
        return Setup(
            problem=problem,
            hparams=jnp.asarray(np.log(theta), dtype),
            params=jnp.full((samples, classes), 1 / classes, dtype),
            data=data,
            title=f"multiclass SVM on {self.data}, its regularization",
            sizes={
                "training rows": samples,
                "validation rows": len(split.validation.features),
                "test rows": len(split.test.features),
                "features": features,
                "classes": classes,
            },
            metrics=metrics,
            physical=lambda hparams: {"theta": float(np.exp(hparams)), "C": float(np.exp(-hparams))},
        )

    def _split(self, seed: int) -> datasets.Split:
        if self.data == "synthetic":
            total = self.samples + self.validation_samples + self.test_samples
            table = datasets.make_classification(total, self.features, self.classes, self.informative, seed)
            return datasets.split_rows(table, self.validation_samples, self.test_samples, seed)
        return load(self.data, self.validation, self.test, seed)


@jax.custom_jvp
def _half_quadratic(matrix, x):
    """½⟨x, Mx⟩ for a symmetric M that is not differentiated: one product with M serves the value and the gradient."""
    return jnp.vdot(x, matrix @ x) / 2


@_half_quadratic.defjvp
def _half_quadratic_jvp(primals, tangents):
    matrix, x = primals
    product = matrix @ x
    return jnp.vdot(x, product) / 2, jnp.vdot(product, tangents[1])


def _half_squared_norm(train, residual):
    """½‖Xᵀr‖²."""
    if "gram" in train:
        return _half_quadratic(train["gram"], residual)
    weights = train["features"].T @ residual
    return jnp.vdot(weights, weights) / 2


def _scores(data, residual):
    """X_val Xᵀ r."""
    if "cross_gram" in data["validation"]:
        return data["validation"]["cross_gram"] @ residual
    return data["validation"]["features"] @ (data["train"]["features"].T @ residual)


def _top_eigenvalue(matrix: np.ndarray) -> float:
    from scipy.sparse.linalg import eigsh

    if len(matrix) < 3:
        return float(np.linalg.eigvalsh(matrix)[-1])
    start = np.ones(len(matrix))
    return float(eigsh(matrix, k=1, which="LA", return_eigenvectors=False, v0=start)[0])
