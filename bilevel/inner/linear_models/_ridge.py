"""Ridge regression in closed form, with everything that does not depend on the penalty computed once."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCOO

from bilevel._needs import LOSS, SMOOTH, Need, linear_model
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.problem import At


class _Spectrum(NamedTuple):
    """X̃ᵀX̃ = V diag(values) Vᵀ and X̃ᵀỹ, with rows weighted as the loss weights them. Thin: V is (n, min(m, n))."""

    vectors: jax.Array
    values: jax.Array
    moments: jax.Array


class _Normal(NamedTuple):
    """X̃ᵀX̃, its largest eigenvalue, and X̃ᵀỹ; where there are more features than rows, X̃ itself in place of the matrix."""

    matrix: jax.Array
    largest: jax.Array
    moments: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    params: jax.Array
    inverse: jax.tree_util.Partial
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ridge(InnerSolver):
    """w = (X̃ᵀX̃ + diag l2)⁻¹X̃ᵀỹ for a `bilevel.LinearModel` with a squared loss and an ℓ2 penalty.

    With one penalty for all features, one eigendecomposition serves every penalty of a run: a solve takes two products with an
    n × min(m, n) matrix. With one per feature it is a Cholesky factorization of the n × n matrix, formed once, or where there
    are more features than rows of the m × m Gram matrix XD⁻¹Xᵀ (Woodbury's identity). The exact inverse Hessian that it
    leaves preconditions the adjoint: `hypergrad.Implicit(precondition=True)`. The answer is checked: a penalty that
    leaves the problem singular ends as `NON_FINITE` or `STAGNATED`.
    """

    needs: ClassVar[tuple[Need, ...]] = (LOSS, SMOOTH, linear_model("squared", l1=False))
    estimates_inverse: ClassVar[bool] = True

    rtol: float = 1e-8
    max_steps: int = 1

    def prepare(self, at: At) -> PyTree:
        """The eigendecomposition for a single penalty, else the normal equations."""
        model: Any = at.parts.linear_model
        features, targets = model.rows(at.data)
        features = features.todense() if isinstance(features, BCOO) else features
        weight = model.weight(at.data)
        rows, columns = features.shape
        moments = weight * (targets.T @ features).T
        if jnp.ndim(_penalty(at)) == 0:
            if columns <= rows:
                values, vectors = jnp.linalg.eigh(weight * features.T @ features)
                return _Spectrum(vectors, jnp.maximum(values, 0), moments)
            values, left = jnp.linalg.eigh(weight * features @ features.T)
            kept = values > rows * jnp.finfo(values.dtype).eps * values[-1]
            scale = jnp.where(kept, weight**0.5 / jnp.sqrt(jnp.where(kept, values, 1)), 0)
            return _Spectrum(scale * (left.T @ features).T, jnp.where(kept, values, 0), moments)
        small = weight * (features.T @ features if columns <= rows else features @ features.T)
        matrix = small if columns <= rows else weight**0.5 * features
        return _Normal(matrix, jnp.linalg.eigvalsh(small)[-1], moments)

    def init(self, at: At, params: PyTree) -> _State:
        """Nothing is known of the inverse yet."""
        like = _inverse(*_in(at, params.dtype))
        return _State(params, jax.tree.map(jnp.zeros_like, like), SolveProgress.start(params.dtype))

    def step(self, at: At, state: _State) -> _State:
        """Solve, then judge by the gradient."""
        prepared, penalty = _in(at, state.params.dtype)
        inverse = _inverse(prepared, penalty)

        def gradient(w: jax.Array) -> jax.Array:
            return _product(prepared, w) + _along(penalty, w) * w - prepared.moments

        w = inverse(prepared.moments)
        w = w - inverse(gradient(w))  # what rounding in the factorization cost
        distance = jnp.linalg.norm(gradient(w)) / (_largest(prepared) + jnp.max(penalty))
        progress = self.advance(state.progress, w, distance, grad_evals=1, failed=True, failure=Status.STAGNATED)
        return _State(w, jax.lax.stop_gradient(inverse), progress)

    def inverse(self, state: _State) -> jax.tree_util.Partial:
        """H⁻¹, exact."""
        return state.inverse


def _in(at: At, dtype: Any) -> tuple[_Spectrum | _Normal, jax.Array]:
    """What was prepared, and the penalty, in the precision of params."""
    return jax.tree.map(lambda x: x.astype(dtype), (at.prepared, _penalty(at)))


def _penalty(at: At) -> jax.Array:
    return at.parts.linear_model.penalty("l2", at.hparams)


def _inverse(prepared: _Spectrum | _Normal, penalty: jax.Array) -> jax.tree_util.Partial:
    """v ↦ (X̃ᵀX̃ + diag penalty)⁻¹v."""
    if isinstance(prepared, _Spectrum):
        return jax.tree_util.Partial(_by_spectrum, prepared.vectors, prepared.values, penalty)
    rows, columns = prepared.matrix.shape
    if rows == columns:
        factor = jnp.linalg.cholesky(prepared.matrix + jnp.diag(penalty))
        return jax.tree_util.Partial(_by_cholesky, factor)
    scaled = prepared.matrix / penalty
    factor = jnp.linalg.cholesky(scaled @ prepared.matrix.T + jnp.eye(rows, dtype=scaled.dtype))
    return jax.tree_util.Partial(_by_woodbury, factor, scaled, penalty)


def _by_spectrum(vectors, values, penalty, v):
    inside = (v.T @ vectors).T
    rest = v - vectors @ inside
    thin = vectors.shape[0] > vectors.shape[1]
    return vectors @ (inside / _along(values + penalty, inside)) + (rest / penalty if thin else 0)


def _by_cholesky(factor, v):
    return jax.scipy.linalg.cho_solve((factor, True), v)


def _by_woodbury(factor, scaled, penalty, v):
    direct = v / _along(penalty, v)
    return direct - scaled.T @ jax.scipy.linalg.cho_solve((factor, True), scaled @ v)


def _product(prepared: _Spectrum | _Normal, w: jax.Array) -> jax.Array:
    """X̃ᵀX̃w."""
    if isinstance(prepared, _Spectrum):
        inside = (w.T @ prepared.vectors).T
        return prepared.vectors @ (_along(prepared.values, inside) * inside)
    rows, columns = prepared.matrix.shape
    if rows == columns:
        return prepared.matrix @ w
    return ((prepared.matrix @ w).T @ prepared.matrix).T


def _largest(prepared: _Spectrum | _Normal) -> jax.Array:
    """The largest eigenvalue of X̃ᵀX̃."""
    return prepared.values[-1] if isinstance(prepared, _Spectrum) else prepared.largest


def _along(weights: jax.Array, v: jax.Array) -> jax.Array:
    """One weight for each row of v."""
    return weights[:, None] if weights.ndim and v.ndim == 2 else weights
