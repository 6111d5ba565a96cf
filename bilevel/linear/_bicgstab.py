"""BiCGStab, for general systems if GMRES takes too much memory.

Why not lineax's (measured with 0.1.1): with x64 off its breakdown test treats every negative coefficient as a breakdown, so
that a well-conditioned system ends after two steps at a residual of 0.39 ‖b‖; its tolerance is relative to each entry of b,
so that a b with zeros never passes; and a singular system ends in NaN.
"""

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
    rho: jax.Array  # ⟨first residual, residual⟩
    norm: jax.Array
    reason: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiCGStab(_iteration.Corrected):
    """Stabilized biconjugate gradients, for general A.

    Stores eight vectors and takes two products a step; the residual falls irregularly. After a breakdown the method restarts
    from the current residual, as long as every restart halves it.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      max_steps: limit on iterations; `None` (default) is ten times the number of unknowns.
      preconditioner: one of `bilevel.linear`, or a linear function v ↦ M⁻¹ v; it acts from the right.

    Statuses besides `CONVERGED`: `BREAKDOWN` (a coefficient vanished, or the residual exploded), `STAGNATED`, `MAX_STEPS`.

    Reference: van der Vorst, Bi-CGSTAB, 1992.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.BiCGStab().solve(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    def correct(self, matvec: Product, precondition: Product, r: PyTree, goal: jax.Array, left: jax.Array) -> Attempt:
        """One run of the recurrence."""
        eps, shadow = _tree.eps(r), r

        def step(s: _State) -> _State:
            p = precondition(s.direction)
            v = matvec(p)
            along = _tree.vdot(shadow, v)
            alpha = _tree.divide(s.rho, along)
            half = _tree.add_scaled(s.residual, -alpha, v)
            q = precondition(half)
            t = matvec(q)
            omega = _tree.divide(_tree.vdot(t, half), _tree.vdot(t, t))
            x = _tree.add_scaled(_tree.add_scaled(s.x, alpha, p), omega, q)
            residual = _tree.add_scaled(half, -omega, t)
            norm, rho = _tree.norm(residual), _tree.vdot(shadow, residual)
            beta = _tree.divide(rho, s.rho) * _tree.divide(alpha, omega)
            direction = _tree.add_scaled(residual, beta, _tree.add_scaled(s.direction, -omega, v))
            broken = (
                (jnp.abs(along) <= eps * _tree.norm(v)) | (jnp.abs(rho) <= eps * norm) | (omega == 0) | (norm > 1 / eps)
            )
            reason = _iteration.reason(jnp.isfinite(norm) & jnp.isfinite(rho), (broken, Status.BREAKDOWN))
            return _State(x, residual, direction, rho, norm, reason, s.steps + 1)

        one = jnp.ones((), _tree.dtype(r))
        start = _State(_tree.zeros_like(r), r, r, _tree.vdot(r, r), one, jnp.int32(Status.MAX_STEPS), jnp.int32(0))
        end, reason = _iteration.iterate(step, start, goal, left)
        return Attempt(end.x, reason, end.steps, 2 * end.steps)
