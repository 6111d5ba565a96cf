"""The projection on a polyhedron: an interior-point method finds the active constraints, which give the exact point.

In units of the largest violated constraint, with q = p − x: minimize ½‖q‖² subject to E q = e, G q + s = k, s ≥ 0, where
E has orthonormal rows (or rows of zeros). Mehrotra's predictor and corrector, on the matrix I + Gᵀ diag(μ/s) G.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl

from bilevel import _tree
from bilevel.operators import _numeric
from bilevel.operators.projection import _affine

_MAX_STEPS = 60


def projection_polyhedron(
    x: jax.Array, hyperparams: tuple[Any, Any, Any, Any], check_feasible: bool = True
) -> jax.Array:
    """Project on the polyhedron {p: A p = b, G p ≤ h}.

    Constraints may be redundant. The derivative, in every argument, is the derivative of the projection on the affine set of
    the active constraints (an element of the conservative Jacobian if a constraint is just active). NaN if the polyhedron
    is empty.

    Args:
      x: vector, shape (n,), else ValueError.
      hyperparams: (A, b, G, h), shapes (m, n), (m,), (k, n), (k,), else ValueError; A and b, or G and h, may be None.
      check_feasible: raise ValueError if the polyhedron is empty and the values are known (not while tracing).

    Reference: Mehrotra, On the implementation of a primal-dual interior point method, 1992; Nocedal & Wright, Numerical
    Optimization, section 16.6.
    """
    who = "projection_polyhedron"
    x = _numeric.vector(who, x)
    eq, eq_right = _affine.rows(who, ("A", "b"), hyperparams[:2], x)
    ineq, bound = _affine.rows(who, ("G", "h"), hyperparams[2:], x)
    middle, margin, active = _interior_point(*jax.lax.stop_gradient((x, eq, eq_right, ineq, bound)))
    matrix = jnp.concatenate([eq, jnp.where(active[:, None], ineq, 0)])
    p = _affine.closest(x, matrix, jnp.concatenate([eq_right, jnp.where(active, bound, 0)]))
    tolerance = _numeric.tolerance(x)
    holds = (
        (_affine.violation(p, eq, eq_right, x, equal=True) <= tolerance)
        & (_affine.violation(p, ineq, bound, x, equal=False) <= tolerance)
        & (jnp.max(jnp.abs(p - middle), initial=0) <= margin)
    )
    return _numeric.feasible(who, "the polyhedron", holds, p, check_feasible)


@jax.jit
def _interior_point(
    x: jax.Array, eq: jax.Array, eq_right: jax.Array, ineq: jax.Array, bound: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A point near the answer, how far off it may be (−1 where it was not found), and which inequalities are active."""
    if not ineq.shape[0]:
        return x, jnp.full((), jnp.inf, x.dtype), jnp.zeros(0, bool)
    eps = jnp.finfo(x.dtype).eps
    trivial = jnp.all(ineq == 0, axis=1) | (bound == jnp.inf)
    room = jnp.where(trivial, 1, bound - ineq @ x)
    ineq = jnp.where(trivial[:, None], 0, ineq)
    eq, rest, spare = _orthonormal(eq, eq_right - eq @ x)
    unit = jnp.maximum(jnp.max(jnp.abs(rest), initial=0), jnp.max(-room))
    # If x violates the constraints by rounding errors only, it gives no scale.
    noise = 100 * eps * (jnp.max(jnp.abs(x), initial=0) + jnp.max(jnp.abs(jnp.where(trivial, 0, bound))))
    unit = jnp.where(unit > noise, unit, 1)
    rest, room = rest / unit, jnp.clip(room / unit, None, 1 / eps)
    scale = 1 + jnp.max(jnp.abs(rest), initial=0)

    def residuals(q: jax.Array, y: jax.Array, mu: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return q + eq.T @ y + ineq.T @ mu, eq @ q - rest, ineq @ q + s - room

    def error(state: tuple[jax.Array, ...]) -> jax.Array:
        *_, mu, s = state
        dual, equality, inequality = residuals(*state)
        relative = jnp.max(jnp.abs(inequality) / (1 + jnp.abs(room)))
        largest = jnp.maximum(jnp.max(jnp.abs(dual)), jnp.max(jnp.abs(equality), initial=0))
        return jnp.maximum(largest / scale, jnp.maximum(relative, jnp.max(mu * s / (1 + s))))

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        state, best, _, steps = carry
        q, y, mu, s = state
        dual, equality, inequality = residuals(*state)
        factor = jsl.cho_factor(jnp.eye(q.size, dtype=q.dtype) + (ineq.T * (mu / s)) @ ineq)
        schur = jsl.cho_factor(eq @ jsl.cho_solve(factor, eq.T) + jnp.diag(spare)) if eq.shape[0] else None

        def direction(complementarity: jax.Array) -> tuple[jax.Array, ...]:
            right = -dual - ineq.T @ ((mu * inequality - complementarity) / s)
            free = jsl.cho_solve(factor, right)
            y_dot = jsl.cho_solve(schur, eq @ free + equality) if schur is not None else jnp.zeros_like(y)
            q_dot = free - jsl.cho_solve(factor, eq.T @ y_dot) if schur is not None else free
            s_dot = -inequality - ineq @ q_dot
            return q_dot, y_dot, (-complementarity - mu * s_dot) / s, s_dot

        def length(ways: tuple[tuple[jax.Array, jax.Array], ...], share: float) -> jax.Array:
            ratios = [jnp.where(way < 0, -value / jnp.where(way < 0, way, 1), jnp.inf) for way, value in ways]
            return jnp.minimum(1, share * jnp.min(jnp.concatenate(ratios)))

        gap = jnp.mean(mu * s)
        _, _, mu_dot, s_dot = direction(mu * s)
        alpha = length(((mu_dot, mu), (s_dot, s)), 1.0)
        target = gap * (jnp.mean((mu + alpha * mu_dot) * (s + alpha * s_dot)) / gap) ** 3
        ways = direction(mu * s + mu_dot * s_dot - target)
        alpha = length(((ways[2], mu), (ways[3], s)), 0.99)
        state = tuple(a + alpha * way for a, way in zip(state, ways, strict=True))
        now = error(state)
        sound = jnp.isfinite(now)
        return state, _tree.where(sound & (now < best[1]), (state, now), best), sound, steps + 1

    def go_on(carry: tuple[Any, ...]) -> jax.Array:
        _, (_, best), sound, steps = carry
        return sound & (best > 4 * eps) & (steps < _MAX_STEPS)

    start = (jnp.zeros_like(x), jnp.zeros_like(rest), jnp.ones_like(room), jnp.maximum(jnp.abs(room), 1))
    carry = (start, (start, error(start)), jnp.array(True), 0)
    (q, _, mu, s), reached = jax.lax.while_loop(go_on, step, carry)[1]
    loose = jnp.sqrt(_numeric.tolerance(x))
    margin = jnp.where(reached <= loose, loose * unit * (1 + jnp.max(jnp.abs(q))), -1)
    return x + unit * q, margin, (mu > s) & ~trivial


def _orthonormal(matrix: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same equations with orthonormal rows; 1 where a row is left over and has become zeros."""
    if not matrix.shape[0]:
        return matrix, right, right
    u, sizes, vt = jnp.linalg.svd(matrix, full_matrices=False)
    kept = sizes > 10 * max(matrix.shape) * jnp.finfo(matrix.dtype).eps * sizes[0]
    return (
        jnp.where(kept[:, None], vt, 0),
        jnp.where(kept, (u.T @ right) / jnp.where(kept, sizes, 1), 0),
        jnp.where(kept, 0, 1).astype(matrix.dtype),
    )
