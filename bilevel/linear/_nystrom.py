"""The Nyström method: a low-rank approximation of A, inverted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _iteration, _sketch
from bilevel.linear._base import Attempt, Operator, Prepared, PreparedSolver


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nystrom(PreparedSolver):
    """Invert a low-rank approximation: x = (A_r + ridge I)⁻¹ b with A_r = U Λ Uᵀ ≈ A, for positive semidefinite A.

    For A of low effective rank; r products and no iteration. The answer is judged on A x = b, so that the approximation
    converges only if it is within the tolerance. More `max_steps` correct the residual, which converges if
    A_r + ridge I ≥ A / 2.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      rank: r, 20 by default; that many products, and vectors in memory.
      ridge: absolute; `None` (default) takes the smallest eigenvalue of A_r, or rounding error if the rank is n.
      max_steps: 1 (default) is the method of the paper; each further step is a correction.
      seed: seed of the random projection.

    Statuses besides `CONVERGED`: `MAX_STEPS` or `STAGNATED` (the approximation is too coarse), `NEGATIVE_CURVATURE`.

    Reference: Hataya & Yamada, Nyström method for accurate and scalable implicit differentiation, 2023.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.Nystrom().solve(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    rank: int = 20
    ridge: float | None = None
    max_steps: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive("linear.Nystrom", rank=self.rank, ridge=self.ridge, max_steps=self.max_steps)

    def prepare(self, operator: Operator, like: PyTree) -> Prepared:
        """Sketch A; each right-hand side then takes two products with U."""
        basis, values = _sketch.nystrom(operator, like, self.rank, self.seed)
        definite = jnp.isfinite(values).all() & jnp.isfinite(basis).all()
        ridge = self._ridge(values, basis.shape[0])
        invert = _sketch.low_rank(basis, 1 / (values + ridge), 1 / ridge, like)
        failure = jnp.where(definite, Status.STAGNATED, Status.NEGATIVE_CURVATURE)

        def correct(r: PyTree, goal: jax.Array, left: jax.Array) -> Attempt:
            x = _tree.where(definite, invert(r), _tree.zeros_like(r))
            return Attempt(x, jnp.where(definite & (left <= 1), Status.MAX_STEPS, failure), 1, 0)

        run = functools.partial(_iteration.run, operator, limit=self.max_steps, correct=correct, enough=0.99)
        return Prepared(run, min(self.rank, _tree.size(like)))

    def _ridge(self, values: jax.Array, size: int) -> jax.Array:
        if self.ridge is not None:
            return jnp.asarray(self.ridge, values.dtype)
        if values.size == 0:
            return jnp.ones((), values.dtype)
        smallest = jnp.finfo(values.dtype).eps * values[0]
        ridge = smallest if values.size == size else jnp.maximum(values[-1], smallest)
        return _tree.positive(ridge)
