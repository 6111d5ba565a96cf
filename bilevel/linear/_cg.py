"""Conjugate gradients.

Three differences from the textbook method. A direction with pᵀAp ≤ 0 ends the solve as `NEGATIVE_CURVATURE`; other
libraries continue, and may report success on an indefinite matrix. Rank-deficient consistent systems are solved, since their
residuals stay in the range. The status refers to the true residual.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _iteration, _precondition
from bilevel.linear._base import Attempt, LinearSolver, Operator, Product


class _State(NamedTuple):
    correction: PyTree
    residual: PyTree
    direction: PyTree
    norm: jax.Array  # by a plain sum of squares, in one pass
    rho: jax.Array  # rᵀM⁻¹r
    reason: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class CG(_iteration.Preconditioned):
    """Conjugate gradients, for symmetric positive definite A, and for semidefinite A if the system is consistent.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      max_steps: limit on iterations; `None` (default) is ten times the number of unknowns.
      preconditioner: symmetric positive definite: one of `bilevel.linear`, or a function v ↦ M⁻¹ v.

    Statuses besides `CONVERGED`: `NEGATIVE_CURVATURE` (A is not positive definite), `MAX_STEPS`, `STAGNATED`, `BREAKDOWN`
    (the preconditioner is not positive definite).

    Reference: Hestenes & Stiefel, Methods of conjugate gradients, 1952.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.CG().solve(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    def preconditioned(self, preconditioner: Product | None) -> LinearSolver:
        """With this preconditioner in place of its own."""
        return dataclasses.replace(self, preconditioner=preconditioner)

    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Iterate until the residual of the recurrence is a little below the tolerance, to allow for its drift."""
        first = _tree.sub(b, operator(init))
        # In units of the first residual, whatever the scale of b, no square under- or overflows.
        unit = _tree.norm(first)
        unit = _tree.positive(jnp.where(jnp.isfinite(unit), unit, 1))
        r = _tree.scale(1 / unit, first)
        precondition, cost = _precondition.build(self.preconditioner, operator, b)
        z = precondition(r)
        rho = _tree.vdot(r, z)
        reason = jnp.where(rho < 0, Status.BREAKDOWN, Status.MAX_STEPS).astype(jnp.int32)
        start = _State(_tree.zeros_like(r), r, z, jnp.sqrt(_tree.vdot(r, r)), rho, reason, jnp.int32(0))

        def step(s: _State) -> _State:
            product = operator(s.direction)
            curvature = _tree.vdot(s.direction, product)
            alpha = jnp.where(curvature > 0, _tree.divide(s.rho, curvature), 0)
            correction = _tree.add_scaled(s.correction, alpha, s.direction)
            r = _tree.add_scaled(s.residual, -alpha, product)
            z = precondition(r)
            rho = _tree.vdot(r, z)
            direction = _tree.add_scaled(z, rho / s.rho, s.direction)
            reason = _iteration.reason(
                jnp.isfinite(curvature) & jnp.isfinite(rho),
                (curvature <= 0, Status.NEGATIVE_CURVATURE),
                (rho < 0, Status.BREAKDOWN),
            )
            return _State(correction, r, direction, jnp.sqrt(_tree.vdot(r, r)), rho, reason, s.steps + 1)

        end, reason = _iteration.iterate(step, start, 0.9 * tolerance / unit, self.limit(b))
        return Attempt(_tree.add_scaled(init, unit, end.correction), reason, end.steps, end.steps + 1 + cost)
