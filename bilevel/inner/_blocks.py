"""How a smooth loss is followed while single rows (blocks) of the variable change: an image of the variable is carried along."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCOO

from bilevel._tree import PyTree
from bilevel.inner._needs import Need
from bilevel.problem import Problem
from bilevel.statements import QP, Factored, LinearModel

# A bound on the second derivative of a row's loss in its predictions.
_CURVATURE = {"squared": 1.0, "logistic": 0.25}


BLOCKS = Need(
    "a loss whose blocks are cheap",
    lambda problem: (
        None
        if by_model(problem.linear_model)
        or problem.quadratic_program is not None
        or (problem.datafit is not None and problem.block_lipschitz is not None)
        else "has no Problem.linear_model of a smooth loss, no datafit and design with block_lipschitz, and no quadratic_program"
    ),
)


SEPARATE = Need(
    "a prox or a projection that acts on each row of params by itself",
    lambda problem: (
        None
        if problem.smooth or problem.separable or problem.block_prox is not None
        else "has neither Problem.block_prox nor Problem.separable"
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


def prepare(problem: Problem, data: PyTree) -> PyTree:
    """The columns of a linear model's features as contiguous rows, and their squared norms; None for other problems."""
    if not by_model(problem.linear_model):
        return None
    assert problem.linear_model is not None
    columns = _dense(problem.linear_model.rows(data)[0]).T
    return columns, jnp.sum(columns**2, axis=1)


def blocks_of(problem: Problem, params: jax.Array, hparams: PyTree, data: PyTree, prepared: PyTree) -> Blocks:
    """The blocks of a problem's loss: of a linear model, of a data fit, or of a quadratic program."""
    model = problem.linear_model
    if by_model(model):
        assert model is not None
        columns, squares = prepare(problem, data) if prepared is None else prepared
        curvature = (2 if params.ndim == 2 and model.loss == "logistic" else 1) * _CURVATURE[model.loss]
        return Blocks(
            # The ℓ2 penalty is left to the prox, also where the problem's own loss holds it.
            prox=lambda block, j, step: model.block_prox(block, j, hparams, data, step),
            prox_all=lambda x, step: model.prox(x, hparams, data, step),
            lipschitz=(curvature * model.weight(data) * squares).astype(params.dtype),
            **_of_prediction(model.datafit, columns, hparams, data),
        )
    lipschitz = problem.block_lipschitz(hparams, data).astype(params.dtype) if problem.block_lipschitz else None
    if problem.datafit is not None and lipschitz is not None:
        loss = _of_prediction(problem.datafit, _dense(problem.design(hparams, data)).T, hparams, data)
    else:
        program = problem.quadratic_program(hparams, data)
        loss = _of_factor(program) if isinstance(program.Q, Factored) else _of_matrix(program)
        lipschitz = _diagonal(program.Q)
    return Blocks(
        prox=_prox_of(problem, params, hparams, data),
        prox_all=lambda x, step: problem.proximal_step(x, hparams, data, step),
        lipschitz=lipschitz,
        **loss,
    )


def _of_prediction(datafit, columns, hparams, data) -> dict[str, Callable]:
    """The image is the prediction Xw."""
    slope = jax.grad(datafit)
    return {
        "image": lambda x: (x.T @ columns).T,
        "gradient": lambda prediction: columns @ slope(prediction, hparams, data),
        "gradient_of": lambda prediction, j: columns[j] @ slope(prediction, hparams, data),
        "pushed": lambda prediction, j, delta: prediction + _outer(columns[j], delta),
    }


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
            "inner.BlockCoordinateDescent reads single rows of Q: Problem.quadratic_program must return a matrix or a "
            "bilevel.problem.Factored, not a function"
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


def _prox_of(problem, params, hparams, data):
    """The prox of one block: as the problem states it, or read off the prox of all."""
    if problem.block_prox is not None:
        return lambda block, j, step: problem.block_prox(block, j, hparams, data, step)
    if problem.smooth:
        return lambda block, j, step: block
    return lambda block, j, step: problem.proximal_step(params.at[j].set(block), hparams, data, step)[j]


def _outer(column, delta):
    return column.reshape(column.shape + (1,) * delta.ndim) * delta


def _dense(features: Any) -> jax.Array:
    return features.todense() if isinstance(features, BCOO) else features
