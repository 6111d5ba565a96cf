"""Ridge regression with one penalty per coordinate."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel.datasets import Split, TablePath
from bilevel.problem import Problem
from bilevel.statements import LinearModel
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._tables import held_out, load_numbers, sizes, validation_error
from bilevel.tasks.scores import errors

problem = Problem(
    outer_loss=validation_error, linear_model=LinearModel(loss="squared", rows=lambda data: data["train"], l2=jnp.exp)
)


def normal_equations(params: np.ndarray, hparams: np.ndarray, data: Any) -> np.ndarray:
    """The inner solution in closed form, by NumPy: (XᵀX + diag exp θ)⁻¹Xᵀy."""
    features, targets = data["train"]
    return np.linalg.solve(features.T @ features + np.diag(np.exp(hparams)), features.T @ targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ridge(Task[Split]):
    """Ridge regression: one penalty per feature, chosen on validation error.

    min over w of ½‖Xw − y‖² + ½Σ exp(θᵢ)wᵢ². hparams: θ, log penalties, shape (features,). Without an intercept; the task's
    own tables are standardized by the training rows.

    Args:
      data: `diabetes` (442 × 10, from scikit-learn), or the path of a table (see `datasets.load_table`).
      validation, test: shares of the rows, or their numbers.
      penalty: start of every penalty.
    """

    data: Literal["diabetes"] | TablePath = "diabetes"
    validation: float = 0.2
    test: float = 0.2
    penalty: float = 1.0

    def __post_init__(self) -> None:
        self.check("penalty", self.penalty > 0, "be positive")

    def tables(self, seed: int) -> Split:
        """Load, split and standardize the table."""
        return load_numbers(self.data, self.validation, self.test, seed)

    def state(self, tables: Split, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem; validation rows are needed."""
        tables.require("regression", "validation")
        features = tables.train.features.shape[1]
        return Setup(
            problem=problem,
            hparams=jnp.full(features, np.log(self.penalty), dtype),
            params=jnp.zeros(features, dtype),
            data=held_out(tables, dtype),
            title=f"ridge regression on {tables.train.name}, one penalty per feature",
            sizes=sizes(tables.parts, features=features),
            metrics=lambda hparams, params: errors(tables, params),
            physical=lambda hparams: {"penalty": np.exp(np.asarray(hparams, np.float64))},
        )
