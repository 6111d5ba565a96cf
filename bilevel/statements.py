"""Ways to state an inner problem as a whole, from which its parts follow: programs, cone programs, linear models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bilevel.operators.prox import prox_lasso, prox_ridge

if TYPE_CHECKING:
    from bilevel.operators.cones import Cones

Function = Callable[..., Any]


class QP(NamedTuple):
    """minimize ½⟨z, Qz⟩ + ⟨c, z⟩ subject to Ez = d, Mz ≤ h.

    Attributes:
      Q: symmetric, shape (n, n); a `Factored` matrix; or a `jax.tree_util.Partial` that maps z ↦ Qz, as may E and M be. A
        matrix acts along the first axis of z.
      c: of the shape of z: (n,), or (n, k) for k columns that share Q.
      E, d: equalities, shapes (q, n) and (q,); None for none.
      M, h: inequalities, shapes (r, n) and (r,); None for none.
    """

    Q: Any
    c: Any
    E: Any = None
    d: Any = None
    M: Any = None
    h: Any = None

    def loss(self, z: Any) -> jax.Array:
        """½⟨z, Qz⟩ + ⟨c, z⟩."""
        return jnp.vdot(z, apply(self.Q, z)) / 2 + jnp.vdot(self.c, z)

    def equality(self, z: Any) -> Any:
        """Ez − d; None without equalities."""
        return None if self.E is None else apply(self.E, z) - self.d

    def inequality(self, z: Any) -> Any:
        """Mz − h; None without inequalities."""
        return None if self.M is None else apply(self.M, z) - self.h


class ConeProgram(NamedTuple):
    """minimize cᵀz subject to Ez + s = d, s in K.

    Attributes:
      c: shape (n,).
      E: shape (m, n).
      d: shape (m,).
      cones: K, a `bilevel.operators.cones.Cones`, whose sizes add up to m.
    """

    c: Any
    E: Any
    d: Any
    cones: Cones


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
    """The matrix scale · A Aᵀ, known by its factor.

    Attributes:
      factor: A, shape (n, r).
      scale: a scalar.
    """

    factor: Any
    scale: Any

    def __call__(self, z: Any) -> jax.Array:
        """The product with z, along its first axis. Written with z in front, which XLA runs faster on the CPU."""
        return self.scale * (self.factor @ (z.T @ self.factor).T)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearModel:
    """minimize Σᵢ loss(xᵢᵀw, yᵢ) + Σⱼ l1ⱼ|wⱼ| + ½Σⱼ l2ⱼwⱼ², with a sum or a mean over the rows i.

    The rows do not depend on the hyperparameters, so that what solvers prepare from them serves every step. Params are w,
    shape (n,), or (n, k) for k targets or classes; a penalty is a number, or one for each feature, shape (n,).

    Args:
      loss: `"squared"`, ½(p − y)²; `"logistic"`, with y a class number 0 … k−1: log(1 + exp(∓p)) where w is a vector (two
        classes), else the cross-entropy of the softmax; or `"crammer_singer"`, maxⱼ(pⱼ + 1 − δⱼy) − p_y, of which params are
        the dual variables.
      rows: (data) -> (X, y): X of shape (m, n), an array or a `jax.experimental.sparse.BCOO`, and y of shape (m,) or (m, k).
      l1, l2: (hparams) -> the penalty; None for none. At least one.
      mean: average the loss over the rows instead of adding it up.
    """

    loss: Literal["squared", "logistic", "crammer_singer"]
    rows: Function
    l1: Function | None = None
    l2: Function | None = None
    mean: bool = False

    def __post_init__(self):
        if self.loss not in ("squared", "logistic", "crammer_singer"):
            raise ValueError(f"LinearModel: loss must be squared, logistic or crammer_singer, got {self.loss!r}")

    @property
    def smooth(self) -> bool:
        """Whether the primal objective is differentiable."""
        return self.l1 is None and self.loss != "crammer_singer"

    def weight(self, data: Any) -> float:
        """What each row counts: 1, or 1/m for a mean."""
        return 1 / self.rows(data)[1].shape[0] if self.mean else 1.0

    def parts(self) -> dict[str, Function | bool]:
        """The parts of a `Problem` that this statement implies."""
        if self.loss == "crammer_singer":
            return {}
        found: dict[str, Function | bool] = {
            "inner_loss": self.inner_loss,
            "samples": self.samples,
            "batch_loss": self.batch_loss,
        }
        if self.l1 is None:
            if self.loss == "squared":
                found |= {"residuals": self.residuals, "quadratic_program": self.quadratic_program}
            return found
        return found | {
            "datafit": self.datafit,
            "design": self.design,
            "prox": self.prox,
            "block_prox": self.block_prox,
            "separable": True,
        }

    def design(self, hparams: Any, data: Any) -> Any:
        """X."""
        del hparams
        return self.rows(data)[0]

    def datafit(self, prediction: Any, hparams: Any, data: Any) -> jax.Array:
        """The loss of the predictions Xw."""
        del hparams
        return self.weight(data) * self._loss(prediction, self.rows(data)[1])

    def inner_loss(self, params: Any, hparams: Any, data: Any) -> jax.Array:
        """The loss of the rows, and the ℓ2 penalty unless the prox holds it, which is where there is an ℓ1 penalty."""
        value = self.datafit(self.rows(data)[0] @ params, hparams, data)
        return value if self.l1 is not None else value + self._half_square(params, hparams)

    def samples(self, data: Any) -> int:
        """m."""
        return self.rows(data)[1].shape[0]

    def batch_loss(self, params: Any, hparams: Any, data: Any, index: Any) -> jax.Array:
        """What the rows at `index` say of the smooth part of the objective: its mean over all index sets is that part."""
        features, targets = self.rows(data)
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

        def at(name):
            penalty = self._penalty(name, hparams, None)
            return penalty if jnp.ndim(penalty) == 0 else penalty[index]

        return self._prox(block, at("l1"), at("l2"), step)

    def residuals(self, params: Any, hparams: Any, data: Any) -> Any:
        """r with the inner loss ½‖r‖²: the weighted errors, and √l2 · w."""
        features, targets = self.rows(data)
        root = jnp.sqrt(jnp.asarray(self.weight(data), params.dtype))
        penalty = self._penalty("l2", hparams, params)
        return root * (features @ params - targets), jnp.sqrt(penalty).astype(params.dtype) * params

    def quadratic_program(self, hparams: Any, data: Any) -> QP:
        """½⟨w, (X̃ᵀX̃ + diag l2)w⟩ − ⟨X̃ᵀỹ, w⟩ without constraints, up to a constant."""
        features, targets = self.rows(data)
        features = features if isinstance(features, jax.Array) else features.todense()
        weight = jnp.asarray(self.weight(data), features.dtype)
        penalty = jnp.broadcast_to(self._penalty("l2", hparams, None), features.shape[1:]).astype(features.dtype)
        return QP(weight * features.T @ features + jnp.diag(penalty), -weight * (targets.T @ features).T)

    def _loss(self, prediction: Any, targets: Any) -> jax.Array:
        if self.loss == "squared":
            fit = prediction - targets
            return jnp.vdot(fit, fit) / 2
        if prediction.ndim == 1:
            margin = jnp.where(targets > 0, prediction, -prediction)
            return jnp.sum(jax.nn.softplus(-margin))
        chosen = jnp.take_along_axis(prediction, targets[:, None], axis=-1)[:, 0]
        return jnp.sum(jax.nn.logsumexp(prediction, axis=-1) - chosen)

    def _penalty(self, name: str, hparams: Any, like: Any) -> Any:
        """A penalty, shaped to broadcast against w."""
        function = getattr(self, name)
        penalty = jnp.zeros(()) if function is None else jnp.asarray(function(hparams))
        wide = like is not None and like.ndim == 2 and penalty.ndim == 1
        return penalty[:, None] if wide else penalty

    def _half_square(self, params: Any, hparams: Any) -> jax.Array:
        return jnp.sum(self._penalty("l2", hparams, params).astype(params.dtype) * params**2) / 2

    @staticmethod
    def _prox(x: Any, l1: Any, l2: Any, step: Any) -> jax.Array:
        l1, l2 = (jnp.broadcast_to(penalty, x.shape).astype(x.dtype) for penalty in (l1, l2))
        return prox_ridge(prox_lasso(x, l1, step), l2, step)


def apply(matrix: Any, z: Any) -> Any:
    """The product of a matrix, or of a function that stands for one, with z."""
    return matrix(z) if callable(matrix) else matrix @ z
