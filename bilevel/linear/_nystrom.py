"""The Nyström method: a low-rank approximation of A, inverted."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel.linear import _sketch, _sweeps
from bilevel.linear._base import LinearSolver, Prepared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nystrom(LinearSolver):
    """x = (A_r + ridge I)⁻¹ b with A_r = U Λ Uᵀ ≈ A from r products (Hataya & Yamada 2023), for semidefinite A.

    A non-iterative answer for A of low effective rank; it is judged on A x = b all the same, so that the approximation is
    `CONVERGED` only within `rtol`. Steps of residual correction bring it there where A_r + ridge I ≥ A / 2.

    Args:
      rank: of the approximation; that many products, and vectors of memory.
      ridge: absolute; None takes the smallest eigenvalue of A_r, or rounding error where the rank is n.
      max_steps: 1 is the method of the paper, more are corrections of it.
      seed: of the sketch, a random projection.

    Statuses besides `CONVERGED`: `MAX_STEPS` or `STAGNATED` (the approximation is not that good), `NEGATIVE_CURVATURE`.
    """

    rank: int = 20
    ridge: float | None = None
    max_steps: int = 1
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        _checks.require_positive("linear.Nystrom", rank=self.rank, ridge=self.ridge, max_steps=self.max_steps)

    def attempt(self, operator, b, init, tolerance):
        """Sketch and solve."""
        prepared = self.prepare(operator, b)
        found = prepared(b, init, tolerance)
        return dataclasses.replace(found, matvecs=found.matvecs + prepared.matvecs)

    def prepare(self, operator, like):
        """Sketch A; what is left is two products with U."""
        basis, values = _sketch.nystrom(operator, like, self.rank, self.seed)
        definite = jnp.isfinite(values).all() & jnp.isfinite(basis).all()
        ridge = self._ridge(values, basis.shape[0])
        invert = _sketch.low_rank(basis, 1 / (values + ridge), 1 / ridge, like)
        failure = jnp.where(definite, Status.STAGNATED, Status.NEGATIVE_CURVATURE)

        def sweep(r, goal, left):
            x = _tree.where(definite, invert(r), _tree.zeros_like(r))
            return _sweeps.Sweep(x, jnp.where(definite & (left <= 1), Status.MAX_STEPS, failure), 1, 0)

        def attempt(b, init, tolerance):
            return _sweeps.run(operator, b, init, tolerance, self.max_steps, sweep, enough=0.99)

        return Prepared(attempt, min(self.rank, _tree.size(like)))

    def _ridge(self, values, size):
        if self.ridge is not None:
            return jnp.asarray(self.ridge, values.dtype)
        if values.size == 0:
            return jnp.ones((), values.dtype)
        smallest = jnp.finfo(values.dtype).eps * values[0]
        ridge = smallest if values.size == size else jnp.maximum(values[-1], smallest)
        return jnp.where(ridge > 0, ridge, 1)
