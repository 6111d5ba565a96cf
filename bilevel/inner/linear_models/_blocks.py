"""How a smooth loss is followed while single rows (blocks) of the variable change: an image of the variable is carried along."""

from __future__ import annotations

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

# A bound on the second derivative of a row's loss in its predictions.
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
    """A loss seen by blocks.

    Args:
      image: x ↦ image, a linear or affine function of x.
      gradient: image ↦ ∇f(x), of the shape of x.
      gradient_of: (image, j) ↦ the gradient's row j.
      pushed: (image, j, delta) ↦ the image after row j of x moved by delta.
      lipschitz: a constant for each block, shape (n,).
      prox: (block, j, step) ↦ the prox, or projection, of block j alone.
      prox_all: (x, step) ↦ the prox of all blocks.
    """

    image: Callable[[jax.Array], jax.Array]
    gradient: Callable[[jax.Array], jax.Array]
    gradient_of: Callable[[jax.Array, Any], jax.Array]
    pushed: Callable[[jax.Array, Any, jax.Array], jax.Array]
    lipschitz: jax.Array
    prox: Callable[[jax.Array, Any, jax.Array], jax.Array]
    prox_all: Callable[[jax.Array, jax.Array], jax.Array]


def by_model(model: LinearModel | None) -> bool:
    """Whether the blocks are the features of a linear model."""
    return model is not None and model.loss in _CURVATURE


def prepare(at: At) -> PyTree:
    """The columns of a linear model's features as contiguous rows, and their squared norms; None for other problems."""
    if not by_model(at.parts.linear_model):
        return None
    columns = _dense(at.parts.linear_model.rows(at.data)[0]).T
    return columns, jnp.sum(columns**2, axis=1)


def blocks_of(at: At, params: jax.Array) -> Blocks:
    """The blocks of a problem's loss: of a linear model, of a data fit, or of a quadratic program."""
    model = at.parts.linear_model
    if by_model(model):
        columns, squares = at.prepared
        curvature = (2 if params.ndim == 2 and model.loss == "logistic" else 1) * _CURVATURE[model.loss]
        return Blocks(
            # The ℓ2 penalty is left to the prox, also where the problem's own loss holds it.
            prox=lambda block, j, step: model.block_prox(block, j, at.hparams, at.data, step),
            prox_all=lambda x, step: model.prox(x, at.hparams, at.data, step),
            lipschitz=(curvature * model.weight(at.data) * squares).astype(params.dtype),
            **_of_prediction(lambda p: model.datafit(p, at.hparams, at.data), columns.astype(params.dtype)),
        )
    lipschitz = at.block_lipschitz()
    if at.parts.datafit is not None and lipschitz is not None:
        loss = _of_prediction(at.datafit, _dense(at.design()).T)
    else:
        program = _cast(at.quadratic_program(), params.dtype)
        loss = _of_factor(program) if isinstance(program.Q, Factored) else _of_matrix(program)
        lipschitz = _diagonal(program.Q)
    return Blocks(
        prox=_prox_of(at, params),
        prox_all=lambda x, step: at.proximal_step(x, step),
        lipschitz=lipschitz.astype(params.dtype),
        **loss,
    )


def _of_prediction(datafit: Callable[[jax.Array], jax.Array], columns: jax.Array) -> dict[str, Callable]:
    """The image is the prediction Xw."""
    slope = jax.grad(datafit)
    return {
        "image": lambda x: (x.T @ columns).T,
        "gradient": lambda prediction: columns @ slope(prediction),
        "gradient_of": lambda prediction, j: columns[j] @ slope(prediction),
        "pushed": lambda prediction, j, delta: prediction + _outer(columns[j], delta),
    }


def _cast(program: QP, dtype: Any) -> QP:
    return QP(*jax.tree.map(lambda a: jnp.asarray(a, dtype), tuple(program[:2])))


def _of_factor(program: QP) -> dict[str, Callable]:
    """The image is Aᵀx, of Q = scale · A Aᵀ."""
    factor, scale = program.Q.factor, program.Q.scale
    return {
        "image": lambda x: (x.T @ factor).T,
        "gradient": lambda image: scale * (factor @ image) + program.c,
        "gradient_of": lambda image, j: scale * (factor[j] @ image) + program.c[j],
        "pushed": lambda image, j, delta: image + _outer(factor[j], delta),
    }


def _of_matrix(program: QP) -> dict[str, Callable]:
    """The image is the gradient Qx + c itself."""
    if callable(program.Q):
        raise TypeError(
            "inner.BlockCoordinateDescent reads single rows of Q: Q of the quadratic program must be a matrix or a "
            "bilevel.statements.Factored, not a function"
        )
    return {
        "image": lambda x: program.Q @ x + program.c,
        "gradient": lambda image: image,
        "gradient_of": lambda image, j: image[j],
        "pushed": lambda image, j, delta: image + _outer(program.Q[j], delta),
    }


def _diagonal(matrix: Any) -> jax.Array:
    if isinstance(matrix, Factored):
        return matrix.scale * jnp.sum(matrix.factor**2, axis=1)
    return jnp.diagonal(matrix)


def _prox_of(at: At, params: jax.Array) -> Callable[[jax.Array, Any, jax.Array], jax.Array]:
    """The prox of one block: as the problem states it, or read off the prox of all."""
    if at.parts.block_prox is not None:
        return at.block_prox
    if at.parts.smooth:
        return lambda block, j, step: block
    return lambda block, j, step: at.proximal_step(params.at[j].set(block), step)[j]


def _outer(column: jax.Array, delta: jax.Array) -> jax.Array:
    return column.reshape(column.shape + (1,) * delta.ndim) * delta


def _dense(features: Any) -> jax.Array:
    return features.todense() if isinstance(features, BCOO) else features
