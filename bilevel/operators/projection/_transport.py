"""Projections on the transportation polytope {P ≥ 0, P 1 = a, Pᵀ 1 = b}, in the Euclidean and the Kullback-Leibler sense.

Both are P = plan(X + f 1ᵀ + 1 gᵀ), with plan the positive part or the exponential, and potentials f, g that make the
marginals right. Each round sets f and g exactly in turn, then takes a step of Newton's method on both.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from bilevel import _tree
from bilevel.operators import _numeric
from bilevel.operators.projection._simplex import projection_simplex

_MAX_ROUNDS = 300
_LENGTHS = range(-12, 14, 2)  # exponents of 2
_MAX_DAMPING = 1e-2
_COOLING, _COOL_BELOW = 4, 1e-2


def projection_transport(
    sim_matrix: jax.Array, marginals: tuple[Any, Any], make_solver: Any = None, use_semi_dual: bool = True
) -> jax.Array:
    """Project a matrix on the transportation polytope {P ≥ 0, P 1 = a, Pᵀ 1 = b}, in the Euclidean sense.

    The derivative is the derivative of the projection on the face of the answer, P > 0; changes of the marginals are first
    projected on those that keep Σa = Σb. NaN if Σa ≠ Σb, a marginal is negative, or the potentials were not found. Each round
    takes O((m + n)³) operations.

    Args:
      sim_matrix: similarities X = −costs, shape (m, n), else ValueError; −inf forbids an entry.
      marginals: (a, b), the sums of the rows and of the columns, shapes (m,) and (n,), else ValueError.
      make_solver: must be None, else ValueError; the potentials have their own solver.
      use_semi_dual: not used; for jaxopt's signature.

    Reference: Blondel, Seguy & Rolet, Smooth and sparse optimal transport, 2018.
    """
    x, a, b = _arguments("projection_transport", sim_matrix, marginals, make_solver, use_semi_dual)
    fixed, a_fixed, b_fixed = jax.lax.stop_gradient((x, a, b))
    f, g = _potentials(_EUCLIDEAN, fixed, a_fixed, b_fixed)
    support = fixed + f[:, None] + g > 0
    reduced = jnp.where(support, x + f[:, None] + g, 0)
    short = jnp.concatenate([a - reduced.sum(1), b - reduced.sum(0)])
    matrix = _laplacian(support.astype(x.dtype))
    f, g = jnp.split(jnp.linalg.pinv(matrix, hermitian=True) @ short, [a.size])
    plan = jnp.where(support, reduced + f[:, None] + g, 0)
    bounded = jnp.where(plan > 0, plan, 0)
    return _numeric.nan_unless(_feasible(bounded, a, b), bounded)


def kl_projection_transport(
    sim_matrix: jax.Array, marginals: tuple[Any, Any], make_solver: Any = None, use_semi_dual: bool = True
) -> jax.Array:
    """Project exp(X) on the transportation polytope {P ≥ 0, P 1 = a, Pᵀ 1 = b}, in the Kullback-Leibler sense.

    Minimizes Σ P log P − ⟨P, X⟩: P = exp(X + f 1ᵀ + 1 gᵀ). Smooth in X and in positive marginals, whose changes are first
    projected on those that keep Σa = Σb. A marginal of 0 gives zeros. NaN if Σa ≠ Σb or the potentials were not found. Each
    round takes O((m + n)³) operations.

    Args:
      sim_matrix: similarities X = −costs, shape (m, n), else ValueError; −inf forbids an entry.
      marginals: (a, b), the sums of the rows and of the columns, shapes (m,) and (n,), else ValueError.
      make_solver: must be None, else ValueError; the potentials have their own solver.
      use_semi_dual: not used; for jaxopt's signature.

    References: Cuturi, Sinkhorn distances, 2013; Brauer, Clason, Lorenz & Wirth, A Sinkhorn-Newton method for entropic optimal
    transport, 2017.
    """
    return _kl_plan(*_arguments("kl_projection_transport", sim_matrix, marginals, make_solver, use_semi_dual))


def projection_birkhoff(sim_matrix: jax.Array, make_solver: Any = None, use_semi_dual: bool = True) -> jax.Array:
    """Project a square matrix on the doubly stochastic matrices: `projection_transport` with marginals of ones.

    Args:
      sim_matrix: similarities, shape (n, n), else ValueError.
      make_solver: must be None, else ValueError.
      use_semi_dual: not used; for jaxopt's signature.
    """
    return projection_transport(sim_matrix, _ones("projection_birkhoff", sim_matrix), make_solver, use_semi_dual)


def kl_projection_birkhoff(sim_matrix: jax.Array, make_solver: Any = None, use_semi_dual: bool = True) -> jax.Array:
    """Project exp(X) on the doubly stochastic matrices: `kl_projection_transport` with marginals of ones.

    Args:
      sim_matrix: similarities X, shape (n, n), else ValueError.
      make_solver: must be None, else ValueError.
      use_semi_dual: not used; for jaxopt's signature.
    """
    return kl_projection_transport(sim_matrix, _ones("kl_projection_birkhoff", sim_matrix), make_solver, use_semi_dual)


def _ones(who: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = _numeric.array(who, x, 2, "matrix")
    _numeric.require_shape(who, "sim_matrix", x, (len(x),) * 2, "square")
    ones = jnp.ones(len(x), x.dtype)
    return ones, ones


def _arguments(
    who: str, x: Any, marginals: tuple[Any, Any], make_solver: Any, use_semi_dual: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del use_semi_dual
    if make_solver is not None:
        raise ValueError(f"{who}: make_solver must be None, the potentials have a solver of their own: drop it")
    x = _numeric.array(who, x, 2, "matrix")
    for name, marginal, size in zip("ab", marginals, x.shape, strict=True):
        _numeric.require_shape(who, f"marginal {name}", marginal, (size,), f"sim_matrix is {x.shape}")
    return x, _numeric.cast(marginals[0], x), _numeric.cast(marginals[1], x)


def _feasible(plan: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    error = jnp.maximum(jnp.max(jnp.abs(plan.sum(1) - a)), jnp.max(jnp.abs(plan.sum(0) - b)))
    size = jnp.maximum(jnp.max(jnp.abs(a)), jnp.max(jnp.abs(b)))
    return (error <= _numeric.tolerance(plan) * size) & (jnp.min(a) >= 0) & (jnp.min(b) >= 0)


def _laplacian(weights: jax.Array) -> jax.Array:
    """[diag(W 1), W; Wᵀ, diag(Wᵀ 1)], the derivative of the marginals with respect to the potentials."""
    return jnp.block([[jnp.diag(weights.sum(1)), weights], [weights.T, jnp.diag(weights.sum(0))]])


def _simplex_shift(row: jax.Array, total: jax.Array) -> jax.Array:
    """f with Σ max(row + f, 0) = total."""
    p = projection_simplex(row, total)
    best = jnp.argmax(row)
    return p[best] - row[best]


class _Model(NamedTuple):
    plan: Callable  # P from Z
    slope: Callable  # dP/dZ from Z and P
    shift: Callable  # what to add to a row of Z so that its plan has a given sum
    spread: Callable  # how far apart the entries of X may be for an easy start, given the largest marginal


_EUCLIDEAN = _Model(jax.nn.relu, lambda z, plan: (z > 0).astype(z.dtype), _simplex_shift, lambda largest: largest)
_ENTROPIC = _Model(
    jnp.exp, lambda z, plan: plan, lambda row, total: jnp.log(total) - logsumexp(row), lambda largest: 10
)


@functools.partial(jax.jit, static_argnums=0)
def _potentials(model: _Model, x: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Potentials f, g for which plan(x + f 1ᵀ + 1 gᵀ) has the marginals a, b.

    Starts from plan((x + f 1ᵀ + 1 gᵀ)/κ), with κ so large that the entries of x/κ are close, and lets κ fall to 1.
    """
    eps = jnp.finfo(x.dtype).eps
    size = _tree.positive(jnp.maximum(jnp.max(a), jnp.max(b)))
    lengths = jnp.array([2.0**k for k in _LENGTHS], x.dtype)

    def shortfall(z: jax.Array) -> jax.Array:
        plan = model.plan(z)
        return jnp.concatenate([a - plan.sum(1), b - plan.sum(0)])

    def total(z: jax.Array) -> jax.Array:
        error = jnp.max(jnp.abs(shortfall(z))) / size
        return jnp.where(jnp.isnan(error), jnp.inf, error)

    def improve(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One round at κ = 1."""
        f = jax.vmap(model.shift)(x + g, a)
        g = jax.vmap(model.shift)((x + f[:, None]).T, b)
        z = x + f[:, None] + g
        matrix, short = _laplacian(model.slope(z, model.plan(z))), shortfall(z)
        damping = eps + jnp.minimum(jnp.max(jnp.abs(short)) / size, _MAX_DAMPING)
        diagonal = jnp.diag(matrix)
        matrix = matrix + jnp.diag(damping * diagonal + jnp.where(diagonal > 0, 0, 1))
        way = jnp.linalg.solve(matrix, short)
        way_f, way_g = jnp.split(way, [a.size])
        at = jax.vmap(lambda length: z + length * (way_f[:, None] + way_g))(lengths)
        # Newton's own step where it pays, else the longest one up to which the (convex) dual still falls.
        falls = jax.vmap(lambda z: shortfall(z) @ way >= 0)(at)
        length = jnp.max(jnp.where(falls, lengths, 0))
        length = jnp.where(total(z + way_f[:, None] + way_g) < total(z) / 2, 1, length)
        f, g = jnp.where(length > 0, f + length * way_f, f), jnp.where(length > 0, g + length * way_g, g)
        return f, g, total(x + f[:, None] + g)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        g, kappa, best, _, steps = state
        f, g, error = improve(x / kappa, g / kappa)
        best = _tree.where((kappa <= 1) & (error < best[2]), (f, g, error), best)
        cooler = jnp.where(error < _COOL_BELOW, jnp.maximum(kappa / _COOLING, 1), kappa)
        return kappa * g, cooler, best, jnp.isfinite(error), steps + 1

    def go_on(state: tuple[Any, ...]) -> jax.Array:
        *_, best, sound, steps = state
        return sound & (best[2] > floor) & (steps < _MAX_ROUNDS)

    finite = jnp.isfinite(x)
    spread = jnp.max(x, where=finite, initial=-jnp.inf) - jnp.min(x, where=finite, initial=jnp.inf)
    kappa = jnp.maximum(spread / model.spread(size), 1)
    floor = jnp.minimum(4 * eps * kappa, _numeric.tolerance(x) / 10)
    f, g = jnp.zeros_like(a), jnp.zeros_like(b)
    start = (g, kappa, (f, g, jnp.full_like(size, jnp.inf)), jnp.array(True), 0)
    f, g, _ = jax.lax.while_loop(go_on, step, start)[2]
    return f, g


@jax.custom_jvp
def _kl_plan(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    f, g = _potentials(_ENTROPIC, x, a, b)
    plan = jnp.exp(x + f[:, None] + g)
    return _numeric.nan_unless(_feasible(plan, a, b), plan)


@_kl_plan.defjvp
def _kl_plan_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    x_dot, a_dot, b_dot = tangents
    plan = _kl_plan(*primals)
    moved = jnp.where(plan > 0, plan * x_dot, 0)
    # In units of the square roots of the marginals the matrix is well scaled.
    scale = jnp.concatenate([_rsqrt(plan.sum(1)), _rsqrt(plan.sum(0))])
    matrix = scale[:, None] * _laplacian(plan) * scale
    short = scale * jnp.concatenate([a_dot - moved.sum(1), b_dot - moved.sum(0)])
    f_dot, g_dot = jnp.split(scale * (jnp.linalg.pinv(matrix, hermitian=True) @ short), [plan.shape[0]])
    return plan, moved + plan * (f_dot[:, None] + g_dot)


def _rsqrt(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, 1 / jnp.sqrt(_tree.positive(x)), 0)
