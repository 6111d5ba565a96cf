"""The projection on the exponential cone: one equation in one unknown, and the derivative in closed form.

Outside the cone K and its polar, v = (r, s, t) with r > 0 or s > 0 is the sum of p = y·(ρ, 1, e^ρ) on the boundary of K
and q = m·(1, 1 − ρ, −e^−ρ) on the boundary of the polar. The first two entries give y and m as functions of ρ; the last one
gives the equation y·e^ρ − m·e^−ρ = t, whose left side increases where y > 0 and m > 0.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree

_REACH = 2048  # exp(±_REACH) outweighs every ratio of two floating-point numbers
_MAX_STEPS = 150


@jax.custom_jvp
def project(v: jax.Array) -> jax.Array:
    """Project (r, s, t) on the exponential cone."""
    inside, polar, face, unit, size = _place(v)
    rho = _root(unit)
    y, m = _multipliers(rho, unit)
    shrink = jnp.exp(-jnp.abs(rho))
    # y = z·e^−ρ with z = t + m·e^−ρ does not suffer from cancellation where ρ is large.
    z_right = unit[2] + m * shrink
    y = jnp.where(rho > 0, z_right * shrink, y)
    z = jnp.where(rho > 0, z_right, y * shrink)
    boundary = size * jnp.stack([rho * y, y, z])
    on_face = jnp.stack([v[0], jnp.zeros_like(v[1]), jnp.maximum(v[2], 0)])
    answer = jnp.where(inside, v, jnp.where(polar, jnp.zeros_like(v), jnp.where(face, on_face, boundary)))
    return jnp.where(jnp.all(jnp.isfinite(v)), answer, jnp.full_like(v, jnp.nan))


@project.defjvp
def _project_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    (v,), (v_dot,) = primals, tangents
    return project(v), _jacobian(v) @ v_dot


def _place(v: jax.Array) -> tuple[jax.Array, ...]:
    """Whether v is in the cone, in its polar, over the face b = 0; v scaled to size 1 (or a safe value); its size."""
    r, s, t = v
    safe_s, safe_r = _tree.positive(s), _tree.positive(r)
    face = (r <= 0) & (s <= 0)
    inside = ((s > 0) & (s * jnp.exp(r / safe_s) <= t)) | ((s == 0) & (r <= 0) & (t >= 0))
    polar = ((r > 0) & (r * jnp.exp(s / safe_r - 1) <= -t)) | ((r == 0) & (s <= 0) & (t <= 0))
    ordinary = ~(inside | polar | face) & jnp.all(jnp.isfinite(v))
    size = jax.lax.stop_gradient(jnp.where(ordinary, jnp.max(jnp.abs(v)), 1))
    unit = jnp.where(ordinary, v, jnp.array([1, 1, 1], v.dtype)) / size
    return inside, polar, face, unit, size


def _jacobian(v: jax.Array) -> jax.Array:
    """d̂d̂ᵀ + êêᵀ·y/(y + m⟨w, ê⟩²): d̂ along the ray, ê along the other tangent, in which the boundary is curved."""
    inside, polar, face, unit, _ = _place(v)
    rho = _root(unit)
    y, m = _multipliers(rho, unit)
    fall, grow = jnp.exp(jnp.minimum(-rho, 0)), jnp.exp(jnp.minimum(rho, 0))
    y = jnp.maximum(y, jnp.finfo(v.dtype).tiny)
    ray = _unit(jnp.stack([rho * fall, fall, grow]))
    normal = _unit(jnp.stack([grow, (1 - rho) * grow, -fall]))
    across = jnp.cross(normal, ray)
    bend = jnp.maximum(m, 0) * (across[0] - rho * across[1]) ** 2
    on_boundary = jnp.outer(ray, ray) + jnp.outer(across, across) * (y / (y + bend))
    on_face = jnp.diag(jnp.array([1, 0, v[2] > 0], v.dtype))
    identity = jnp.eye(3, dtype=v.dtype)
    return jnp.where(inside, identity, jnp.where(polar, 0, jnp.where(face, on_face, on_boundary)))


def _unit(a: jax.Array) -> jax.Array:
    return a / jnp.sqrt(jnp.sum(a**2))


def _multipliers(rho: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    r, s, _ = v
    # The denominator is at least 3/4; dividing by its larger factor first keeps it from overflowing.
    scale = 1 + jnp.abs(rho)
    lower = (rho / scale) * rho + (1 - rho) / scale
    return ((rho - 1) / scale * r + s / scale) / lower, (r / scale - (rho / scale) * s) / lower


def _excess(rho: jax.Array, v: jax.Array) -> jax.Array:
    """y·e^ρ − m·e^−ρ − t, times e^−|ρ|: of the same sign, without overflow."""
    y, m = _multipliers(rho, v)
    once = jnp.exp(-jnp.abs(rho))
    return jnp.where(rho > 0, y - once * (once * m + v[2]), once * (once * y - v[2]) - m)


@jax.custom_jvp
@jax.jit
def _root(v: jax.Array) -> jax.Array:
    r, s, _ = v
    eps = jnp.finfo(v.dtype).eps
    low = jnp.where(r > 0, 1 - s / _tree.positive(r), -jnp.inf)
    high = jnp.where(s > 0, r / _tree.positive(s), jnp.inf)
    low, high = jnp.maximum(low, jnp.minimum(high, 0) - _REACH), jnp.minimum(high, jnp.maximum(low, 0) + _REACH)

    def go_on(state: tuple[Any, ...]) -> jax.Array:
        low, high, rho, moved, steps = state
        resolved = jnp.minimum(moved, high - low) <= 2 * eps * jnp.maximum(jnp.abs(rho), eps)
        return ~resolved & (steps < _MAX_STEPS)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        low, high, rho, moved, steps = state
        value, slope = jax.jvp(lambda rho: _excess(rho, v), (rho,), (jnp.ones_like(rho),))
        low, high = jnp.where(value > 0, low, rho), jnp.where(value > 0, rho, high)
        newton = rho - value / _tree.positive(slope)
        # A step of Newton's that does not halve the last one gives way to bisection.
        trusted = (slope > 0) & (newton > low) & (newton < high) & (2 * jnp.abs(newton - rho) <= moved)
        converged = (slope > 0) & (jnp.abs(newton - rho) <= eps * jnp.abs(rho))
        chosen = jnp.where(converged, rho, jnp.where(trusted, newton, low + (high - low) / 2))
        return low, high, chosen, jnp.abs(chosen - rho), steps + 1

    start = low + (high - low) / 2
    return jax.lax.while_loop(go_on, step, (low, high, start, high - low, 0))[2]


@_root.defjvp
def _root_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    (v,), (v_dot,) = primals, tangents
    rho = _root(v)
    _, moved = jax.jvp(lambda v: _excess(rho, v), (v,), (v_dot,))
    _, slope = jax.jvp(lambda rho: _excess(rho, v), (rho,), (jnp.ones_like(rho),))
    return rho, -moved / _tree.positive(slope)
