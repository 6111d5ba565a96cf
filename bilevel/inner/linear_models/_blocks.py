"""A smooth loss while single rows (blocks) of the variable change: an image of the variable is updated along with them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCOO

from bilevel._needs import Need
from bilevel._tree import PyTree
from bilevel.problem import At
from bilevel.statements import QP, Factored, LinearModel

# Bounds on the second derivative of the loss of a row in its predictions.
_CURVATURE = {"squared": 1.0, "logistic": 0.25}


BLOCKS = Need(
    "a loss whose blocks are cheap",
    lambda parts: (
        None
        if by_model(parts.linear_model)
        or parts.quadratic_program is not None
        or (parts.datafit is not None and parts.block_lipschitz is not None)
        else "has no linear_model of a smooth loss, no datafit and design with block_lipschitz, and no quadratic program"
    ),
)


SEPARATE = Need(
    "a prox or a projection that acts on each row of params by itself",
    lambda parts: (
        None
        if parts.smooth or parts.separable or parts.block_prox is not None
        else "has neither block_prox nor separable"
    ),
)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The loss f(x) = φ(Rᵀx) + ⟨c, x⟩ seen by blocks, the rows of x; Rᵀx is the image of x.

    Args:
      rows: R, shape (n, m).
      slope: image ↦ ∇φ, of the shape of the image; None for ½⟨x, Rx⟩ in place of φ(Rᵀx).
      shift: c, of the shape of x.
      lipschitz: a constant for each block, shape (n,).
      prox: (block, j, step) ↦ the prox, or projection, of block j alone.
      prox_all: (x, step) ↦ the prox of all blocks.
    """

    rows: jax.Array
    slope: Callable[[jax.Array], jax.Array] | None
    shift: jax.Array
    lipschitz: jax.Array
    prox: Callable[[jax.Array, Any, jax.Array], jax.Array]
    prox_all: Callable[[jax.Array, jax.Array], jax.Array]

    def image(self, x: jax.Array) -> jax.Array:
        """Rᵀx."""
        return (x.T @ self.rows).T

    def gradient(self, image: jax.Array) -> jax.Array:
        """∇f(x), of the shape of x."""
        return (image if self.slope is None else self.rows @ self.slope(image)) + self.shift

    def gradient_of(self, image: jax.Array, j: Any) -> jax.Array:
        """Row j of the gradient."""
        return (image[j] if self.slope is None else self.rows[j] @ self.slope(image)) + self.shift[j]

    def pushed(self, image: jax.Array, j: Any, delta: jax.Array) -> jax.Array:
        """The image after row j of x moved by delta."""
        return image + self.rows[j].reshape(-1, *(1,) * delta.ndim) * delta


def by_model(model: LinearModel | None) -> bool:
    """Whether the blocks are the features of a linear model."""
    return model is not None and model.loss in _CURVATURE


def prepare(at: At) -> PyTree:
    """The columns of a linear model's features as contiguous rows, and their squared norms; None for other problems."""
    if not by_model(at.parts.linear_model):
        return None
    columns = dense(at.parts.linear_model.rows(at.data)[0]).T
    return columns, jnp.sum(columns**2, axis=1)


def blocks_of(at: At, params: jax.Array) -> Blocks:
    """The blocks of the loss of a linear model, of a data fit, or of a quadratic program."""
    model, zero = at.parts.linear_model, jnp.zeros_like(params)
    if by_model(model):
        columns, squares = at.prepared
        curvature = (2 if params.ndim == 2 and model.loss == "logistic" else 1) * _CURVATURE[model.loss]
        return Blocks(
            rows=columns.astype(params.dtype),
            slope=jax.grad(lambda prediction: model.datafit(prediction, at.hparams, at.data)),
            shift=zero,
            lipschitz=(curvature * model.weight(at.data) * squares).astype(params.dtype),
            # The ℓ2 penalty is left to the prox, even if it is part of the problem's own loss.
            prox=lambda block, j, step: model.block_prox(block, j, at.hparams, at.data, step),
            prox_all=lambda x, step: model.prox(x, at.hparams, at.data, step),
        )
    lipschitz = at.block_lipschitz()
    if at.parts.datafit is not None and lipschitz is not None:
        loss = dense(at.design()).T, jax.grad(at.datafit), zero, lipschitz.astype(params.dtype)
    else:
        loss = _of_program(at.quadratic_program(), params.dtype)
    return Blocks(*loss, _prox_of(at, params), at.proximal_step)


def _of_program(program: QP, dtype: Any) -> tuple[jax.Array, Callable[..., jax.Array] | None, jax.Array, jax.Array]:
    """R, ∇φ, c and the Lipschitz constants."""
    c = jnp.asarray(program.c, dtype)
    if isinstance(program.Q, Factored):
        factor, scale = (jnp.asarray(a, dtype) for a in (program.Q.factor, program.Q.scale))
        rows = jnp.sqrt(scale) * factor
        return rows, lambda image: image, c, jnp.sum(rows**2, axis=1)
    if callable(program.Q):
        raise TypeError(
            "inner.BlockCoordinateDescent reads single rows of Q: Q of the quadratic program must be a matrix or a "
            "bilevel.statements.Factored, not a function"
        )
    rows = jnp.asarray(program.Q, dtype)
    return rows, None, c, jnp.diagonal(rows)


def _prox_of(at: At, params: jax.Array) -> Callable[[jax.Array, Any, jax.Array], jax.Array]:
    """The prox of one block: as stated by the problem, or taken from the prox of all blocks."""
    if at.parts.block_prox is not None:
        return at.block_prox
    if at.parts.smooth:
        return lambda block, j, step: block
    return lambda block, j, step: at.proximal_step(params.at[j].set(block), step)[j]


def dense(features: Any) -> jax.Array:
    """The features of a linear model as an array."""
    return features.todense() if isinstance(features, BCOO) else features
