"""MINRES, for symmetric systems that may be indefinite or singular.

It departs from Paige & Saunders's in two ways. The residual vector is carried along, so that the stopping test is on its
Euclidean norm with a preconditioner too. And it stops, before the step is taken, when ‖A r‖ is rounding error beside
‖A‖ ‖r‖, or ‖r‖ beside the rounding of A times the step: the answer is then a least-squares one, which on a singular
inconsistent system ends the solve. The textbook's goes on there, and x grows to 10¹⁵ along the null space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _sweeps
from bilevel.linear._base import LinearSolver


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
class MINRES(_sweeps.Preconditioned):
    """MINRES (Paige & Saunders 1975): min ‖A x − b‖ over Krylov spaces, for symmetric A of any sign.

    One product a step. For saddle points and Hessians away from a minimum, and for singular consistent systems.

    Args:
      max_steps: step limit; `None` is ten times the number of unknowns.
      preconditioner: symmetric positive definite: one of `bilevel.linear`, or a function v ↦ M⁻¹ v.

    Statuses besides `CONVERGED`: `STAGNATED` (an inconsistent system: the answer is a least-squares one; or the limit of
    the precision), `MAX_STEPS`, `BREAKDOWN` (the preconditioner is not positive definite).
    """

    def preconditioned(self, preconditioner: Callable[[PyTree], PyTree] | None) -> LinearSolver:
        """With this preconditioner in place of its own."""
        return dataclasses.replace(self, preconditioner=preconditioner)

    def sweep(self, matvec, precondition, r, goal, left):
        """One run of the recurrence."""
        eps = _tree.eps(r)
        one = jnp.ones((), _tree.dtype(r))

        def unfinished(s: _State):
            return (s.norm > goal) & (s.steps < left) & (s.reason == Status.MAX_STEPS)

        def step(s: _State):
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
            inverse = 1 / jnp.where(gamma > 0, gamma, 1)
            cosine, sine = corner * inverse, beta * inverse
            w = _tree.add_scaled(_tree.add_scaled(v, -s.epsilon, s.w_before), -upper, s.w)
            w = _tree.scale(inverse, w)
            # A long step that gains little leads along the null space; so does one whose rounding would undo its gain.
            length = size * _tree.norm(w)
            futile = (eps ** (2 / 3) * length > 1) & (sine > 0.99) | (eps * length * jnp.abs(cosine) > 0.1)
            phi = sine * s.phi
            residual = _tree.scale(sine**2, s.residual)
            residual = _tree.add_scaled(residual, -phi * cosine / jnp.where(beta > 0, beta, 1), ahead)
            reason = jnp.where(least_squares | futile, Status.STAGNATED, Status.MAX_STEPS)
            reason = jnp.where(square < -eps * s.beta**2, Status.BREAKDOWN, reason)
            reason = jnp.where(jnp.isfinite(square) & jnp.isfinite(alpha), reason, Status.NON_FINITE).astype(jnp.int32)
            go = reason == Status.MAX_STEPS
            x = _tree.where(go, _tree.add_scaled(s.x, cosine * s.phi, w), s.x)
            norm = jnp.where(go, _tree.norm(residual), s.norm)
            # beta = 0 ends the Krylov space: the residual is then zero, or no step can lower it.
            return _State(
                x, residual, s.now, ahead, conditioned, s.w, w, jnp.where(beta > 0, beta, 1), s.beta, delta, s.sine * beta,
                cosine, sine, phi, size, jnp.where(beta > 0, norm, 0), reason, s.steps + 1,
            )  # fmt: skip

        zero, conditioned = _tree.zeros_like(r), precondition(r)
        square = _tree.vdot(r, conditioned)
        beta = jnp.sqrt(jnp.where(square > 0, square, 1))
        reason = jnp.where(square > 0, Status.MAX_STEPS, Status.BREAKDOWN).astype(jnp.int32)
        start = _State(
            zero, r, zero, r, conditioned, zero, zero, beta, one, 0 * one, 0 * one, -one, 0 * one, beta, 0 * one, one, reason,
            jnp.int32(0),
        )  # fmt: skip
        end = jax.lax.while_loop(unfinished, step, start)
        return _sweeps.Sweep(end.x, jnp.where(end.norm <= goal, Status.STAGNATED, end.reason), end.steps, end.steps)
