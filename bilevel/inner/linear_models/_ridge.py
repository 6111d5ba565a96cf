"""Ridge regression in closed form, with everything that does not depend on the penalty computed once."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel._needs import LOSS, SMOOTH, linear_model
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner.linear_models._blocks import dense
from bilevel.problem import At


class _Spectrum(NamedTuple):
    """X̃ᵀX̃ = V diag(values) Vᵀ and X̃ᵀỹ, with the rows weighted as in the loss. Thin: V is (n, min(m, n))."""

    vectors: jax.Array
    values: jax.Array
    moments: jax.Array

    @property
    def largest(self) -> jax.Array:
        """The largest eigenvalue of X̃ᵀX̃."""
        return self.values[-1]

    def product(self, w: jax.Array) -> jax.Array:
        """X̃ᵀX̃w."""
        inside = (w.T @ self.vectors).T
        return self.vectors @ (_along(self.values, inside) * inside)

    def inverse(self, penalty: jax.Array) -> jax.tree_util.Partial:
        """v ↦ (X̃ᵀX̃ + penalty I)⁻¹v."""
        return jax.tree_util.Partial(_by_spectrum, self.vectors, self.values, penalty)


class _Normal(NamedTuple):
    """X̃ᵀX̃, its largest eigenvalue, and X̃ᵀỹ; with more features than rows, X̃ itself in place of the matrix."""

    matrix: jax.Array
    largest: jax.Array
    moments: jax.Array

    @property
    def wide(self) -> bool:
        """Whether the matrix is X̃."""
        return self.matrix.shape[0] < self.matrix.shape[1]

    def product(self, w: jax.Array) -> jax.Array:
        """X̃ᵀX̃w."""
        return ((self.matrix @ w).T @ self.matrix).T if self.wide else self.matrix @ w

    def inverse(self, penalty: jax.Array) -> jax.tree_util.Partial:
        """v ↦ (X̃ᵀX̃ + diag penalty)⁻¹v."""
        if not self.wide:
            return jax.tree_util.Partial(_by_cholesky, jnp.linalg.cholesky(self.matrix + jnp.diag(penalty)))
        scaled = self.matrix / penalty
        factor = jnp.linalg.cholesky(scaled @ self.matrix.T + jnp.eye(len(scaled), dtype=scaled.dtype))
        return jax.tree_util.Partial(_by_woodbury, factor, scaled, penalty)


class _State(NamedTuple):
    params: jax.Array
    inverse: jax.tree_util.Partial
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ridge(InnerSolver):
    """w = (X̃ᵀX̃ + diag l2)⁻¹X̃ᵀỹ for a `bilevel.LinearModel` with a squared loss and an ℓ2 penalty.

    X is dense or sparse, shape (m, n); params has shape (n,), or (n, k) for k targets. With one penalty for all features, one
    eigendecomposition serves every penalty of a run: a solve takes two products with an n × min(m, n) matrix. With one per
    feature it is a Cholesky factorization of the n × n matrix, formed once, or with more features than rows of the m × m Gram
    matrix XD⁻¹Xᵀ (Woodbury's identity). The exact inverse Hessian preconditions the adjoint in
    `hypergrad.Implicit(precondition=True)`. The answer is checked: a penalty that leaves the problem singular ends as
    `NON_FINITE` or `STAGNATED`.

    Args:
      rtol, atol: as for `InnerSolver`.
      max_steps: 1; the start has no effect.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner=bl.LinearModel(loss="squared", rows=lambda data: data, l2=lambda hparams: hparams))
      >>> data = jnp.eye(2), jnp.array([2.0, 4.0])
      >>> print(bl.inner.Ridge().solve(problem, jnp.zeros(2), 1.0, data).params.round(3))
      [1. 2.]
    """

    needs = (LOSS, SMOOTH, linear_model("squared", l1=False))
    estimates_inverse = True

    rtol: float = 1e-8
    max_steps: int = 1

    def prepare(self, at: At) -> PyTree:
        """The eigendecomposition for a single penalty, else the normal equations."""
        model: Any = at.parts.linear_model
        features, targets = model.rows(at.data)
        features, weight = dense(features), model.weight(at.data)
        rows, columns = features.shape
        moments = weight * (targets.T @ features).T
        gram = weight * (features.T @ features if columns <= rows else features @ features.T)
        if jnp.ndim(_penalty(at)) > 0:
            matrix = gram if columns <= rows else weight**0.5 * features
            return _Normal(matrix, jnp.linalg.eigvalsh(gram)[-1], moments)
        values, vectors = jnp.linalg.eigh(gram)
        if columns <= rows:
            return _Spectrum(vectors, jnp.maximum(values, 0), moments)
        kept = values > rows * jnp.finfo(values.dtype).eps * values[-1]
        scale = jnp.where(kept, weight**0.5 / jnp.sqrt(jnp.where(kept, values, 1)), 0)
        return _Spectrum(scale * (vectors.T @ features).T, jnp.where(kept, values, 0), moments)

    def init(self, at: At, params: PyTree) -> _State:
        """Factor."""
        prepared, penalty = _in(at, params.dtype)
        return _State(params, prepared.inverse(penalty), SolveProgress.start(params.dtype))

    def step(self, at: At, state: _State) -> _State:
        """Solve, then judge by the gradient."""
        prepared, penalty = _in(at, state.params.dtype)

        def gradient(w: jax.Array) -> jax.Array:
            return prepared.product(w) + _along(penalty, w) * w - prepared.moments

        w = state.inverse(prepared.moments)
        w = w - state.inverse(gradient(w))  # removes the rounding errors of the factorization
        distance = jnp.linalg.norm(gradient(w)) / (prepared.largest + jnp.max(penalty))
        return _State(w, state.inverse, self.advance(state.progress, w, distance, grad_evals=1, failed=True))

    def inverse(self, state: _State) -> jax.tree_util.Partial:
        """H⁻¹, exact."""
        return jax.lax.stop_gradient(state.inverse)


def _in(at: At, dtype: Any) -> tuple[_Spectrum | _Normal, jax.Array]:
    """The prepared arrays and the penalty, in the precision of params."""
    return jax.tree.map(lambda x: x.astype(dtype), (at.prepared, _penalty(at)))


def _penalty(at: At) -> jax.Array:
    return at.parts.linear_model.penalty("l2", at.hparams)


def _by_spectrum(vectors: jax.Array, values: jax.Array, penalty: jax.Array, v: jax.Array) -> jax.Array:
    inside = (v.T @ vectors).T
    rest = v - vectors @ inside
    thin = vectors.shape[0] > vectors.shape[1]
    return vectors @ (inside / _along(values + penalty, inside)) + (rest / penalty if thin else 0)


def _by_cholesky(factor: jax.Array, v: jax.Array) -> jax.Array:
    return jax.scipy.linalg.cho_solve((factor, True), v)


def _by_woodbury(factor: jax.Array, scaled: jax.Array, penalty: jax.Array, v: jax.Array) -> jax.Array:
    direct = v / _along(penalty, v)
    return direct - scaled.T @ _by_cholesky(factor, scaled @ v)


def _along(weights: jax.Array, v: jax.Array) -> jax.Array:
    """One weight for each row of v."""
    return weights[:, None] if weights.ndim and v.ndim == 2 else weights
