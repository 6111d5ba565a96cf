"""Conjugate gradients on the normal equations, in the form that never applies AᵀA to a residual (CGLS)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _iteration
from bilevel.linear._base import Attempt, Product


class _State(NamedTuple):
    x: PyTree
    residual: PyTree
    direction: PyTree
    gamma: jax.Array  # ‖Aᵀ r‖²
    norm: jax.Array
    size: jax.Array  # ‖A‖₂, from below
    reason: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalCG(_iteration.LeastSquaresSolver):
    """Conjugate gradients on AᵀA x = Aᵀ b, for general A; the condition number is squared.

    For comparison with libraries that use it by default, and for A near an orthogonal matrix, where nothing is faster. A step
    takes one product with A and one with Aᵀ; `LSMR` works in the same space and is more stable. From a zero start it gives the
    answer of least norm.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      max_steps: limit on iterations; `None` (default) is ten times the number of unknowns.

    Statuses besides `CONVERGED`: `STAGNATED` (an inconsistent system, whose least-squares answer is returned; or the limit of
    the precision), `MAX_STEPS`. `matvecs` includes the products with Aᵀ.

    Reference: Hestenes & Stiefel, Methods of conjugate gradients, 1952.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.NormalCG().solve(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    def correct(self, forward: Product, backward: Product, r: PyTree, goal: jax.Array, left: jax.Array) -> Attempt:
        """One run of the recurrence."""
        eps = _tree.eps(r)

        def step(s: _State) -> _State:
            product = forward(s.direction)
            square = _tree.vdot(product, product)
            alpha = _tree.divide(s.gamma, square)
            x = _tree.add_scaled(s.x, alpha, s.direction)
            residual = _tree.add_scaled(s.residual, -alpha, product)
            gradient = backward(residual)
            gamma, norm = _tree.vdot(gradient, gradient), _tree.norm(residual)
            direction = _tree.add_scaled(gradient, gamma / s.gamma, s.direction)
            size = jnp.maximum(s.size, jnp.sqrt(square) / _tree.norm(s.direction))
            least_squares = (jnp.sqrt(gamma) <= 10 * eps * size * norm) | (square == 0)
            reason = _iteration.reason(jnp.isfinite(gamma) & jnp.isfinite(square), (least_squares, Status.STAGNATED))
            return _State(x, residual, direction, gamma, norm, size, reason, s.steps + 1)

        gradient = backward(r)
        gamma = _tree.vdot(gradient, gradient)
        one = jnp.ones((), _tree.dtype(r))
        reason = jnp.where(gamma > 0, Status.MAX_STEPS, Status.STAGNATED).astype(jnp.int32)
        start = _State(_tree.zeros_like(r), r, gradient, gamma, one, jnp.sqrt(gamma), reason, jnp.int32(0))
        end, reason = _iteration.iterate(step, start, goal, left)
        return Attempt(end.x, reason, end.steps, 2 * end.steps + 1)
