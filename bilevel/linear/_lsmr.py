"""LSMR, for least squares and for general singular systems.

Why not lineax's (measured with 0.1.1): float32 arrays with x64 on, and leaves of two dtypes, raise; and its tolerance is
relative to ‖A‖ ‖x‖ + ‖b‖, so that with rtol = 4e-11 it reports success at 2e-10 of ‖b‖.
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
    u: PyTree  # Golub–Kahan vectors
    v: PyTree
    h: PyTree  # directions
    h_bar: PyTree
    alpha: jax.Array
    alpha_bar: jax.Array
    zeta_bar: jax.Array  # |zeta_bar| = ‖Aᵀ r‖
    rho: jax.Array
    rho_bar: jax.Array
    cosine_bar: jax.Array
    sine_bar: jax.Array
    residual: "_Residual"
    norm: jax.Array
    size: jax.Array  # ‖A‖_F, from below
    reason: jax.Array
    steps: jax.Array


class _Residual(NamedTuple):
    """The recurrence for ‖r‖, in the letters of Fong & Saunders, section 5.1."""

    beta_dd: jax.Array
    beta_d: jax.Array
    rho_d: jax.Array
    tau_tilde: jax.Array
    theta_tilde: jax.Array
    zeta: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSMR(_iteration.LeastSquaresSolver):
    """LSMR: MINRES on AᵀA x = Aᵀ b without forming it, for general A that may be singular.

    From a zero start it gives the answer of least norm among those of least residual. A step takes one product with A and one
    with Aᵀ. The number of steps grows with the condition number, which need not be so for `GMRES`: prefer `GMRES` for regular
    systems.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      max_steps: limit on iterations; `None` (default) is ten times the number of unknowns.

    Statuses besides `CONVERGED`: `STAGNATED` (an inconsistent system, whose least-squares answer is returned; or the limit of
    the precision), `MAX_STEPS`. `matvecs` includes the products with Aᵀ.

    Reference: Fong & Saunders, LSMR: an iterative algorithm for sparse least-squares problems, 2011.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.LSMR().solve(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    def correct(self, forward: Product, backward: Product, r: PyTree, goal: jax.Array, left: jax.Array) -> Attempt:
        """One run of the recurrence."""
        eps = _tree.eps(r)
        one = jnp.ones((), _tree.dtype(r))
        zero = 0 * one

        def step(s: _State) -> _State:
            beta, u = _tree.normalized(_tree.add_scaled(forward(s.v), -s.alpha, s.u))
            alpha, v = _tree.normalized(_tree.add_scaled(backward(u), -beta, s.v))
            cosine, sine, rho = _iteration.rotation(s.alpha_bar, beta)
            theta = sine * alpha
            theta_bar = s.sine_bar * rho
            cosine_bar, sine_bar, rho_bar = _iteration.rotation(s.cosine_bar * rho, theta)
            zeta = cosine_bar * s.zeta_bar
            zeta_bar = -sine_bar * s.zeta_bar
            h_bar = _tree.add_scaled(s.h, -_tree.divide(theta_bar * rho, s.rho * s.rho_bar), s.h_bar)
            x = _tree.add_scaled(s.x, _tree.divide(zeta, rho * rho_bar), h_bar)
            h = _tree.add_scaled(v, -_tree.divide(theta, rho), s.h)
            residual, norm = _residual_norm(s, cosine, sine, theta_bar, rho_bar, zeta)
            size = jnp.hypot(s.size, beta)
            least_squares = jnp.abs(zeta_bar) <= 10 * eps * size * norm
            reason = _iteration.reason(jnp.isfinite(alpha) & jnp.isfinite(beta), (least_squares, Status.STAGNATED))
            return _State(
                x, u, v, h, h_bar, alpha, cosine * alpha, zeta_bar, rho, rho_bar, cosine_bar, sine_bar, residual, norm,
                jnp.hypot(size, alpha), reason, s.steps + 1,
            )  # fmt: skip

        alpha, v = _tree.normalized(backward(r))
        reason = jnp.where(alpha > 0, Status.MAX_STEPS, Status.STAGNATED).astype(jnp.int32)
        blank = _tree.zeros_like(r)
        start = _State(
            blank, r, v, v, blank, alpha, alpha, alpha, one, one, one, zero, _Residual(one, zero, one, zero, zero, zero), one,
            alpha, reason, jnp.int32(0),
        )  # fmt: skip
        end, reason = _iteration.iterate(step, start, goal, left)
        return Attempt(end.x, reason, end.steps, 2 * end.steps + 1)


def _residual_norm(
    s: _State, cosine: jax.Array, sine: jax.Array, theta_bar: jax.Array, rho_bar: jax.Array, zeta: jax.Array
) -> tuple[_Residual, jax.Array]:
    old = s.residual
    beta_hat = cosine * old.beta_dd
    beta_dd = -sine * old.beta_dd
    cosine_tilde, sine_tilde, rho_tilde = _iteration.rotation(old.rho_d, theta_bar)
    theta_tilde = sine_tilde * rho_bar
    rho_d = cosine_tilde * rho_bar
    beta_d = -sine_tilde * old.beta_d + cosine_tilde * beta_hat
    tau_tilde = _tree.divide(old.zeta - old.theta_tilde * old.tau_tilde, rho_tilde)
    tau_d = _tree.divide(zeta - theta_tilde * tau_tilde, rho_d)
    norm = jnp.hypot(beta_d - tau_d, beta_dd)
    return _Residual(beta_dd, beta_d, rho_d, tau_tilde, theta_tilde, zeta), norm
