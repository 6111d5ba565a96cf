"""Linear models: a loss of the rows' predictions and penalties of the weights."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bilevel.operators.prox import prox_lasso, prox_ridge
from bilevel.statements._base import Function, Parts, Statement
from bilevel.statements._programs import QP


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearModel(Statement):
    """minimize Σᵢ loss(xᵢᵀw, yᵢ) + Σⱼ l1ⱼ|wⱼ| + ½Σⱼ l2ⱼwⱼ², with a sum or a mean over the rows i.

    The rows do not depend on the hyperparameters, so that what solvers prepare from them serves every step. Params are w,
    shape (n,), or (n, k) for k targets or classes; a penalty is a number, or one for each feature, shape (n,).

    Args:
      loss: `"squared"`, ½(p − y)²; `"logistic"`, with y a class number 0 … k−1: log(1 + exp(∓p)) where w is a vector (two
        classes), else the cross-entropy of the softmax; or `"crammer_singer"`, maxⱼ(pⱼ + 1 − δⱼy) − p_y, whose problem is
        stated by its dual as well: params are then the dual variables.
      rows: (data) -> (X, y): X of shape (m, n), an array or a `jax.experimental.sparse.BCOO`, and y of shape (m,) or (m, k).
      l1, l2: (hparams) -> the penalty, not negative; None for none.
      mean: average the loss over the rows instead of adding it up.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> lasso = bl.LinearModel(loss="squared", rows=lambda data: data, l1=lambda h: h)
      >>> data = jnp.eye(3), jnp.array([3.0, 0.5, -2.0])
      >>> print(bl.inner.FISTA().solve(bl.Problem(linear_model=lasso), jnp.zeros(3), 1.0, data).params.round())
      [ 2.  0. -1.]
    """

    loss: Literal["squared", "logistic", "crammer_singer"]
    rows: Callable[[Any], tuple[Any, Any]]
    l1: Callable[[Any], Any] | None = None
    l2: Callable[[Any], Any] | None = None
    mean: bool = False

    def __post_init__(self) -> None:
        if self.loss not in ("squared", "logistic", "crammer_singer"):
            raise ValueError(f"LinearModel: loss must be squared, logistic or crammer_singer, got {self.loss!r}")

    @property
    def smooth(self) -> bool:
        """Whether the primal objective is differentiable."""
        return self.l1 is None and self.loss != "crammer_singer"

    def weight(self, data: Any) -> float:
        """The weight of each row: 1, or 1/m for a mean."""
        return 1 / self.rows(data)[1].shape[0] if self.mean else 1.0

    def parts(self) -> Parts:
        """The parts; for `"crammer_singer"` none but the model, since the problem states its dual."""
        if self.loss == "crammer_singer":
            return Parts(linear_model=self)
        parts = Parts(inner_loss=self.inner_loss, linear_model=self, samples=self.samples, batch_loss=self.batch_loss)
        if self.l1 is not None:
            return dataclasses.replace(
                parts,
                datafit=self.datafit,
                design=self.design,
                prox=self.prox,
                block_prox=self.block_prox,
                separable=True,
            )
        if self.loss == "squared":
            return dataclasses.replace(parts, residuals=self.residuals, quadratic_program=self.quadratic_program)
        return parts

    def over_a_set(self) -> Function:
        """The objective as the loss of a problem with a set of its own. Raises ValueError where it is not differentiable."""
        if not self.smooth:
            raise ValueError(
                "Problem: a linear_model with an ℓ1 penalty or a Crammer–Singer loss does not go with another prox or "
                "projection: state the loss as inner_loss, or leave the prox or projection out"
            )
        return self.inner_loss

    def penalty(self, name: Literal["l1", "l2"], hparams: Any) -> jax.Array:
        """A penalty as an array, shape () or (n,); 0 where there is none."""
        function = getattr(self, name)
        return jnp.zeros(()) if function is None else jnp.asarray(function(hparams))

    def design(self, hparams: Any, data: Any) -> Any:
        """X."""
        del hparams
        return self.rows(data)[0]

    def datafit(self, prediction: Any, hparams: Any, data: Any) -> jax.Array:
        """The loss of the predictions Xw."""
        del hparams
        return self.weight(data) * self._loss(prediction, _in(self.rows(data)[1], prediction.dtype))

    def inner_loss(self, params: Any, hparams: Any, data: Any) -> jax.Array:
        """The loss of the rows, and the ℓ2 penalty unless the prox holds it, which is where there is an ℓ1 penalty."""
        value = self.datafit(_in(self.rows(data)[0], params.dtype) @ params, hparams, data)
        return value if self.l1 is not None else value + self._half_square(params, hparams)

    def samples(self, data: Any) -> int:
        """m."""
        return self.rows(data)[1].shape[0]

    def batch_loss(self, params: Any, hparams: Any, data: Any, index: Any) -> jax.Array:
        """The smooth part of the objective on the rows at `index`: its mean over all index sets is that part."""
        features, targets = (_in(rows, params.dtype) for rows in self.rows(data))
        weight = self.weight(data) * targets.shape[0] / index.shape[0]
        value = weight * self._loss(features[index] @ params, targets[index])
        return value + self._half_square(params, hparams) if self.l1 is None else value

    def prox(self, params: Any, hparams: Any, data: Any, step: Any) -> jax.Array:
        """The prox of both penalties."""
        del data
        return self._prox(params, self._penalty("l1", hparams, params), self._penalty("l2", hparams, params), step)

    def block_prox(self, block: Any, index: Any, hparams: Any, data: Any, step: Any) -> jax.Array:
        """The prox of the penalties of feature `index`."""
        del data

        def at(name: Literal["l1", "l2"]) -> Any:
            penalty = self.penalty(name, hparams)
            return penalty if jnp.ndim(penalty) == 0 else penalty[index]

        return self._prox(block, at("l1"), at("l2"), step)

    def residuals(self, params: Any, hparams: Any, data: Any) -> Any:
        """r with the inner loss ½‖r‖²: the weighted errors, and √l2 · w."""
        features, targets = (_in(rows, params.dtype) for rows in self.rows(data))
        root = jnp.sqrt(jnp.asarray(self.weight(data), params.dtype))
        penalty = self._penalty("l2", hparams, params)
        return root * (features @ params - targets), jnp.sqrt(penalty).astype(params.dtype) * params

    def quadratic_program(self, hparams: Any, data: Any) -> QP:
        """½⟨w, (X̃ᵀX̃ + diag l2)w⟩ − ⟨X̃ᵀỹ, w⟩ without constraints, up to a constant."""
        features, targets = self.rows(data)
        features = features if isinstance(features, jax.Array) else features.todense()
        weight = jnp.asarray(self.weight(data), features.dtype)
        penalty = jnp.broadcast_to(self.penalty("l2", hparams), features.shape[1:]).astype(features.dtype)
        return QP(weight * features.T @ features + jnp.diag(penalty), -weight * (targets.T @ features).T)

    def _loss(self, prediction: Any, targets: Any) -> jax.Array:
        if self.loss == "squared":
            fit = prediction - targets
            return jnp.vdot(fit, fit) / 2
        if prediction.ndim == 1:
            margin = jnp.where(targets > 0, prediction, -prediction)
            return jnp.sum(jax.nn.softplus(-margin))
        numbers = targets[:, None].astype(jnp.int32)
        chosen = jnp.take_along_axis(prediction, numbers, axis=-1)[:, 0]
        return jnp.sum(jax.nn.logsumexp(prediction, axis=-1) - chosen)

    def _penalty(self, name: Literal["l1", "l2"], hparams: Any, like: jax.Array) -> jax.Array:
        """A penalty, shaped to broadcast against w."""
        penalty = self.penalty(name, hparams)
        return penalty[:, None] if like.ndim == 2 and penalty.ndim == 1 else penalty

    def _half_square(self, params: Any, hparams: Any) -> jax.Array:
        return jnp.sum(self._penalty("l2", hparams, params).astype(params.dtype) * params**2) / 2

    @staticmethod
    def _prox(x: Any, l1: Any, l2: Any, step: Any) -> jax.Array:
        l1, l2 = (jnp.broadcast_to(penalty, x.shape).astype(x.dtype) for penalty in (l1, l2))
        return prox_ridge(prox_lasso(x, l1, step), l2, step)


def _in(rows: Any, dtype: Any) -> Any:
    """Features or targets in the precision of the inner variable; class numbers as they are."""
    return rows if rows.dtype == dtype or not jnp.issubdtype(rows.dtype, jnp.floating) else rows.astype(dtype)
