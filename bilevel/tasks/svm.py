"""The dual of Crammer and Singer's multiclass support vector machine."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from bilevel import datasets
from bilevel.datasets import Split, Table, TablePath
from bilevel.operators.projection import projection_simplex
from bilevel.problem import Problem
from bilevel.statements import QP, Factored, LinearModel, Minimization, Program, apply
from bilevel.tasks._base import Setup
from bilevel.tasks._tables import ClassTask, sizes
from bilevel.tasks.scores import accuracies


def inner_loss(params: jax.Array, hparams: jax.Array, data: Any) -> jax.Array:
    """(θ/2)‖W‖² + ⟨x, Y⟩ with W = Xᵀ(Y − x)/θ and θ = exp(hparams): the dual, x on rows of simplices."""
    targets = data["train"]["targets"]
    return _half_squared_norm(data["train"], targets - params) / jnp.exp(hparams) + jnp.vdot(params, targets)


def outer_loss(params: jax.Array, hparams: jax.Array, data: Any) -> jax.Array:
    """½‖X_val W − Y_val‖²."""
    train, validation = data["train"], data["validation"]
    residual = train["targets"] - params
    if "cross_gram" in validation:
        scores = validation["cross_gram"] @ residual
    else:
        scores = validation["features"] @ (train["features"].T @ residual)
    fit = scores / jnp.exp(hparams) - validation["targets"]
    return jnp.vdot(fit, fit) / 2


def projection(params: jax.Array, hparams: jax.Array, data: Any) -> jax.Array:
    """The projection of each row on the simplex."""
    return jax.vmap(projection_simplex)(params)


def quadratic_program(hparams: jax.Array, data: Any) -> QP:
    """The dual as ½⟨x, Kx⟩/θ + ⟨x, Y − KY/θ⟩ + const subject to row sums 1 and x ≥ 0, K = XXᵀ."""
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


def _row_sums(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=1)


def _rows(data: Any) -> tuple[jax.Array, jax.Array]:
    """Features and class numbers."""
    return data["train"]["features"], jnp.argmax(data["train"]["targets"], axis=1)


problem = Problem(
    inner=Minimization(
        loss=inner_loss,
        projection=projection,
        polyhedral=True,
        lipschitz=lambda hparams, data: data["train"]["top_eigenvalue"] / jnp.exp(hparams),
        block_prox=lambda row, index, hparams, data, step: projection_simplex(row),
    ),
    outer_loss=outer_loss,
    also=(Program(quadratic_program), LinearModel(loss="crammer_singer", rows=_rows, l2=jnp.exp)),
)


def make_data(
    train: ArrayLike, train_targets: ArrayLike, validation: ArrayLike, validation_targets: ArrayLike, dtype: DTypeLike
) -> dict[str, dict[str, jax.Array]]:
    """Make the data from features (m, p) and one-hot targets (m, k).

    Products with XXᵀ use the m × m Gram matrix if that is cheaper than using X (p > m/2).
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
class SVM(ClassTask):
    """Multiclass SVM: the regularization θ chosen on validation error.

    Inner variable: the dual x, shape (samples, classes), with rows on the simplex. hparams: λ = log θ, a scalar;
    scikit-learn's C is 1/θ.

    Args:
      data: a table of scikit-learn by its name, another one by its path (see `datasets.load_table`), or `synthetic`.
      validation, test: shares of the rows, or their numbers; not used for synthetic data.
      theta: start of θ. None: the largest eigenvalue of XXᵀ, a strong regularization at which solves are easy and the
        gradient does not vanish (it vanishes for little regularization and separable data).
      samples, validation_samples, test_samples: numbers of rows of synthetic data.
      features, classes: of synthetic data.
      informative: share of the features of synthetic data that carry signal.

    Reference: Crammer & Singer 2001; Blondel et al. 2022, section 4.1.
    """

    data: Literal["digits", "iris", "wine", "breast_cancer", "synthetic"] | TablePath = "digits"
    theta: float | None = None
    samples: int = 700
    validation_samples: int = 200
    test_samples: int = 200
    features: int = 1000
    classes: int = 5
    informative: float = 0.1

    def __post_init__(self) -> None:
        self.check("theta", self.theta is None or self.theta > 0, "be positive")

    def tables(self, seed: int) -> Split:
        """Load or make the table, split it and scale it."""
        if self.data != "synthetic":
            return super().tables(seed)
        total = self.samples + self.validation_samples + self.test_samples
        table = datasets.make_classification(total, self.features, self.classes, self.informative, seed)
        return datasets.split_rows(table, self.validation_samples, self.test_samples, seed)

    def state(self, tables: Split, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem; validation rows are needed."""
        tables.require("classification", "validation")
        train, validation = tables.train, tables.validation
        (samples, features), classes = train.features.shape, train.classes

        def one_hot(part: Table) -> np.ndarray:
            return np.eye(classes)[part.targets]

        def metrics(hparams: Any, params: Any) -> dict[str, float]:
            residual = one_hot(train) - np.asarray(params, np.float64)
            weights = train.features.T @ residual / np.exp(float(hparams))
            return {
                **accuracies(tables, lambda features: features @ weights),
                "support_vectors": int(np.sum(np.any(residual != 0, axis=1))),
            }

        data = make_data(train.features, one_hot(train), validation.features, one_hot(validation), dtype)
        theta = self.theta or float(data["train"]["top_eigenvalue"])
        return Setup(
            problem=problem,
            hparams=jnp.asarray(np.log(theta), dtype),
            params=jnp.full((samples, classes), 1 / classes, dtype),
            data=data,
            title=f"multiclass SVM on {train.name}, its regularization",
            sizes=sizes(tables.parts, features=features, classes=classes),
            metrics=metrics,
            physical=lambda hparams: {"theta": float(np.exp(hparams)), "C": float(np.exp(-hparams))},
        )


@jax.custom_jvp
def _half_quadratic(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """½⟨x, Mx⟩ for a symmetric, constant M; one product with M gives the value and the gradient."""
    return jnp.vdot(x, matrix @ x) / 2


@_half_quadratic.defjvp
def _half_quadratic_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    matrix, x = primals
    product = matrix @ x
    return jnp.vdot(x, product) / 2, jnp.vdot(product, tangents[1])


def _half_squared_norm(train: Any, residual: jax.Array) -> jax.Array:
    """½‖Xᵀr‖²."""
    if "gram" in train:
        return _half_quadratic(train["gram"], residual)
    weights = train["features"].T @ residual
    return jnp.vdot(weights, weights) / 2


def _top_eigenvalue(matrix: np.ndarray) -> float:
    from scipy.sparse.linalg import eigsh

    if len(matrix) < 3:
        return float(np.linalg.eigvalsh(matrix)[-1])
    start = np.ones(len(matrix))
    return float(eigsh(matrix, k=1, which="LA", return_eigenvectors=False, v0=start)[0])
