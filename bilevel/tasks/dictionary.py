"""Task-driven dictionary learning: atoms chosen for a classifier of the sparse codes."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel import datasets
from bilevel.datasets import Split, Table, TablePath
from bilevel.operators.prox import prox_lasso, prox_ridge
from bilevel.problem import Problem
from bilevel.tasks._base import Setup
from bilevel.tasks._tables import ClassTask, sizes
from bilevel.tasks.pictures import grid, images, is_square, panels
from bilevel.tasks.scores import auc

_LARGEST_SWEEPS = 10_000


def atoms(hparams: dict[str, jax.Array]) -> jax.Array:
    """The dictionary: the rows of θ, scaled to length one."""
    dictionary = hparams["dictionary"]
    return dictionary / jnp.linalg.norm(dictionary, axis=1, keepdims=True)


def inner_loss(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """½‖X − xD‖² − ½‖X‖², from the products of the atoms with each other and with the rows."""
    dictionary = atoms(hparams)
    fit = data["features"] @ dictionary.T
    return jnp.vdot(params, params @ (dictionary @ dictionary.T)) / 2 - jnp.vdot(params, fit)


def prox(params: jax.Array, hparams: Any, data: Any, step: Any) -> jax.Array:
    """The prox of both penalties of the codes."""
    return prox_ridge(prox_lasso(params, data["l1"], step), data["l2"], step)


def lipschitz(hparams: Any, data: Any) -> jax.Array:
    """The largest eigenvalue of DDᵀ."""
    dictionary = atoms(hparams)
    return jnp.linalg.eigvalsh(dictionary @ dictionary.T)[-1]


def outer_loss(params: jax.Array, hparams: Any, data: Any) -> jax.Array:
    """Mean logistic loss of codes·w + b on the training rows, and the penalty of w."""
    weights = hparams["weights"]
    scores = params @ weights + hparams["bias"]
    loss = jnp.mean(jax.nn.softplus(jnp.where(data["targets"] > 0, -scores, scores)))
    return loss + data["weight_penalty"] * jnp.vdot(weights, weights) / 2


problem = Problem(inner_loss, outer_loss, prox=prox, separable=True, lipschitz=lipschitz)


def start(features: np.ndarray, count: int) -> np.ndarray:
    """The right singular vectors of the largest singular values; the largest entry of each is positive."""
    from sklearn.utils.extmath import svd_flip

    left, _, right = np.linalg.svd(features, full_matrices=False)
    return svd_flip(left, right, u_based_decision=False)[1][:count]


def penalty_at(features: np.ndarray, dictionary: np.ndarray, sparsity: float) -> float:
    """The ℓ1 penalty for which this share of the codes is zero if the atoms are orthogonal."""
    return float(np.quantile(np.abs(features @ dictionary.T), sparsity))


def start_hparams(dictionary: np.ndarray, dtype: DTypeLike) -> dict[str, jax.Array]:
    """These atoms, and a classifier whose weights are zero."""
    weights, bias = jnp.zeros(len(dictionary), dtype), jnp.zeros((), dtype)
    return {"dictionary": jnp.asarray(dictionary, dtype), "weights": weights, "bias": bias}


def make_data(part: Table, l1: float, l2: float, weight_penalty: float, dtype: DTypeLike) -> dict[str, jax.Array]:
    """The data: the training rows and the penalties."""
    numbers = {"features": part.features, "l1": l1, "l2": l2, "weight_penalty": weight_penalty}
    found = {name: jnp.asarray(value, dtype) for name, value in numbers.items()}
    return found | {"targets": jnp.asarray(part.targets, jnp.int32)}


def encode(features: np.ndarray, dictionary: np.ndarray, l1: float, l2: float, tol: float = 1e-9) -> np.ndarray:
    """Compute the sparse codes of rows by coordinate descent on all rows at once, for atoms of length one.

    Args:
      features: shape (rows, features).
      dictionary: shape (atoms, features).
      l1, l2: penalties of the codes.
      tol: stop when no code changes in a sweep by more than this share of the largest code.
    """
    gram, fit = dictionary @ dictionary.T, features @ dictionary.T
    codes = np.zeros_like(fit)
    for _ in range(_LARGEST_SWEEPS):
        before = codes.copy()
        for j in range(codes.shape[1]):
            pull = fit[:, j] - codes @ gram[:, j] + codes[:, j] * gram[j, j]
            codes[:, j] = np.sign(pull) * np.maximum(np.abs(pull) - l1, 0) / (gram[j, j] + l2)
        if np.abs(codes - before).max() <= tol * np.abs(codes).max():
            break
    return codes


def require_two_classes(table: Table) -> None:
    """Raise `datasets.DataError` for more than two classes."""
    if table.classes > 2:
        raise datasets.DataError(
            f"{table.name}: y holds {table.classes} classes, and the classifier of the codes is binary: keep two classes"
        )


def pictures_of(dictionary: np.ndarray, weights: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """The atoms in the order of their weights, as images if they are square, and a histogram of the atoms that rows use."""
    order = np.argsort(-weights)
    titles = [f"weight {weights[number]:.2g}" for number in order]
    features = dictionary.shape[1]
    draw = images if features >= 64 and is_square(features) else _bars
    sparsity, axes = panels(1, 1, 4.2)
    used, rows = np.unique(np.count_nonzero(codes, axis=1), return_counts=True)
    axes[0, 0].bar(used, rows)
    axes[0, 0].set(xlim=(-0.6, codes.shape[1] + 0.6), xlabel="atoms in use", ylabel="training rows")
    return {"atoms": draw(dictionary[order], titles, 5), "sparsity": sparsity}


def _bars(dictionary: np.ndarray, titles: list[str], columns: int) -> Any:
    figure, axes = grid(titles, columns, 2.6, 1.9)
    limit = 1.05 * float(np.abs(dictionary).max())
    for axis, atom in zip(axes, dictionary, strict=True):
        axis.bar(np.arange(len(atom)), atom, width=1.0)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set(ylim=(-limit, limit), xlabel="feature")
        axis.label_outer()
    return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dictionary(ClassTask):
    """Task-driven dictionary learning: atoms and a logistic classifier of the sparse codes, chosen together.

    min over codes x of ½‖X − xD‖² + l1‖x‖₁ + ½l2‖x‖². Inner variable: x, shape (training rows, atoms). The outer loss is the
    mean logistic loss of x·w + b on the training rows + ½weight_penalty‖w‖². hparams: `dictionary`, shape (atoms, features),
    whose rows divided by their lengths are D, started at the first right singular vectors of X; `weights` w; `bias` b. The
    task's own tables are standardized by the training rows. Only the metrics use validation and test rows.

    Args:
      data: `breast_cancer` (569 × 30, from scikit-learn), or the path of a table with two classes.
      validation, test: shares of the rows, or their numbers; only the metrics use them.
      atoms: number of atoms, at most the number of features and of training rows.
      sparsity: share of the codes that are zero at the start.
      l1: ℓ1 penalty of the codes. None: the value that gives `sparsity`.
      l2: ℓ2 penalty of the codes.
      weight_penalty: ℓ2 penalty of w.

    Reference: Mairal, Bach & Ponce 2012; Blondel et al. 2022, section 4.3.
    """

    data: Literal["breast_cancer"] | TablePath = "breast_cancer"
    atoms: int = 10
    sparsity: float = 0.5
    l1: float | None = None
    l2: float = 0.1
    weight_penalty: float = 0.001

    def __post_init__(self) -> None:
        self.check("atoms", self.atoms >= 1, "be at least 1")
        self.check("sparsity", 0 <= self.sparsity < 1, "be a share from 0 to below 1")
        self.check("l1", self.l1 is None or self.l1 >= 0, "not be negative")
        for name in ("l2", "weight_penalty"):
            self.check(name, getattr(self, name) >= 0, "not be negative")

    def state(self, tables: Split, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem."""
        tables.require("classification")
        train = tables.train
        require_two_classes(train)
        rows, features = train.features.shape
        if self.atoms > min(rows, features):
            raise ValueError(
                f"task.atoms must be at most the number of features and of training rows, {features} and {rows} in "
                f"{train.name}, got {self.atoms}"
            )
        dictionary = start(train.features, self.atoms)
        l1 = penalty_at(train.features, dictionary, self.sparsity) if self.l1 is None else self.l1

        def physical(hparams: Any) -> dict[str, Any]:
            return {"dictionary": np.asarray(atoms(hparams)), "weights": np.asarray(hparams["weights"]), "l1": l1}

        def metrics(hparams: Any, params: Any) -> dict[str, float]:
            dictionary, weights = (np.asarray(a, np.float64) for a in (atoms(hparams), hparams["weights"]))
            found = {
                f"{name}_auc": auc(part.targets, encode(part.features, dictionary, l1, self.l2) @ weights)
                for name, part in tables.parts.items()
            }
            return found | {"zero_codes": float(np.mean(np.asarray(params) == 0))}

        def pictures(hparams: Any, params: Any) -> dict[str, Any]:
            return pictures_of(*(np.asarray(a) for a in (atoms(hparams), hparams["weights"], params)))

        return Setup(
            problem=problem,
            hparams=start_hparams(dictionary, dtype),
            params=jnp.zeros((rows, self.atoms), dtype),
            data=make_data(train, l1, self.l2, self.weight_penalty, dtype),
            title=f"task-driven dictionary learning on {train.name}",
            sizes=sizes(tables.parts, features=features, atoms=self.atoms),
            metrics=metrics,
            physical=physical,
            pictures=pictures,
        )
