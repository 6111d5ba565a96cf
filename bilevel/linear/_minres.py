"""MINRES, for symmetric systems that may be indefinite or singular.

Two differences from Paige & Saunders. The residual vector is updated too, so that the stopping test is on its Euclidean norm
also with a preconditioner. And the method stops before a step if ‖A r‖ is rounding error compared with ‖A‖ ‖r‖, or ‖r‖
compared with the rounding of A times the step: the answer is then a least-squares one, which ends the solve of a singular
inconsistent system. The textbook method continues there, and x grows to 10¹⁵ along the null space.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _iteration
from bilevel.linear._base import Attempt, LinearSolver, Product


class _State(NamedTuple):
    x: PyTree
    residual: PyTree
    before: PyTree  # the last two Lanczos vectors, each times its β
    now: PyTree
    conditioned: PyTree  # M⁻¹ now
    w_before: PyTree  # the last two directions
    w: PyTree
    beta: jax.Array
    beta_before: jax.Array
    delta: jax.Array  # rotated entries of the tridiagonal matrix
    epsilon: jax.Array
    cosine: jax.Array
    sine: jax.Array
    phi: jax.Array  # norm of the residual, in the norm of M⁻¹
    size: jax.Array  # of A, from below
    norm: jax.Array
    reason: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class MINRES(_iteration.Corrected):
    """MINRES: minimize ‖A x − b‖ over Krylov spaces, for symmetric A that may be indefinite or singular.

    One product a step. For saddle points, for Hessians away from a minimum, and for singular consistent systems.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      max_steps: limit on iterations; `None` (default) is ten times the number of unknowns.
      preconditioner: symmetric positive definite: one of `bilevel.linear`, or a function v ↦ M⁻¹ v.

    Statuses besides `CONVERGED`: `STAGNATED` (an inconsistent system, whose least-squares answer is returned; or the limit of
    the precision), `MAX_STEPS`, `BREAKDOWN` (the preconditioner is not positive definite).

    Reference: Paige & Saunders, Solution of sparse indefinite systems of linear equations, 1975.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.MINRES().solve(lambda v: jnp.array([2.0, -4.0]) * v, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [ 1.  -0.5] converged
    """

    def preconditioned(self, preconditioner: Product | None) -> LinearSolver:
        """With this preconditioner in place of its own."""
        return dataclasses.replace(self, preconditioner=preconditioner)

    def correct(self, matvec: Product, precondition: Product, r: PyTree, goal: jax.Array, left: jax.Array) -> Attempt:
        """One run of the recurrence."""
        eps = _tree.eps(r)
        one = jnp.ones((), _tree.dtype(r))

        def step(s: _State) -> _State:
            v = _tree.scale(1 / s.beta, s.conditioned)
            ahead = _tree.add_scaled(matvec(v), -s.beta / s.beta_before, s.before)
            alpha = _tree.vdot(v, ahead)
            ahead = _tree.add_scaled(ahead, -alpha / s.beta, s.now)
            conditioned = precondition(ahead)
            square = _tree.vdot(ahead, conditioned)
            beta = jnp.sqrt(jnp.maximum(square, 0))
            size = jnp.maximum(s.size, jnp.sqrt(alpha**2 + beta**2 + jnp.where(s.steps > 0, s.beta, 0) ** 2))
            upper = s.cosine * s.delta + s.sine * alpha
            corner = s.sine * s.delta - s.cosine * alpha
            delta = -s.cosine * beta
            least_squares = jnp.hypot(corner, delta) <= 10 * eps * size  # ‖A r‖ / ‖r‖, of the residual before this step
            gamma = jnp.hypot(corner, beta)
            inverse = 1 / _tree.positive(gamma)
            cosine, sine = corner * inverse, beta * inverse
            w = _tree.add_scaled(_tree.add_scaled(v, -s.epsilon, s.w_before), -upper, s.w)
            w = _tree.scale(inverse, w)
            # A long step that gains little is along the null space; so is one whose rounding would undo its gain.
            length = size * _tree.norm(w)
            futile = (eps ** (2 / 3) * length > 1) & (sine > 0.99) | (eps * length * jnp.abs(cosine) > 0.1)
            phi = sine * s.phi
            residual = _tree.scale(sine**2, s.residual)
            residual = _tree.add_scaled(residual, -phi * cosine / _tree.positive(beta), ahead)
            reason = _iteration.reason(
                jnp.isfinite(square) & jnp.isfinite(alpha),
                (square < -eps * s.beta**2, Status.BREAKDOWN),
                (least_squares | futile, Status.STAGNATED),
            )
            go = reason == Status.MAX_STEPS
            x = _tree.where(go, _tree.add_scaled(s.x, cosine * s.phi, w), s.x)
            norm = jnp.where(go, _tree.norm(residual), s.norm)
            # beta = 0 ends the Krylov space: the residual is then zero, or no step can lower it.
            return _State(
                x, residual, s.now, ahead, conditioned, s.w, w, _tree.positive(beta), s.beta, delta, s.sine * beta,
                cosine, sine, phi, size, jnp.where(beta > 0, norm, 0), reason, s.steps + 1,
            )  # fmt: skip

        zero, conditioned = _tree.zeros_like(r), precondition(r)
        square = _tree.vdot(r, conditioned)
        beta = jnp.sqrt(_tree.positive(square))
        reason = jnp.where(square > 0, Status.MAX_STEPS, Status.BREAKDOWN).astype(jnp.int32)
        start = _State(
            zero, r, zero, r, conditioned, zero, zero, beta, one, 0 * one, 0 * one, -one, 0 * one, beta, 0 * one, one, reason,
            jnp.int32(0),
        )  # fmt: skip
        end, reason = _iteration.iterate(step, start, goal, left)
        return Attempt(end.x, reason, end.steps, end.steps)
