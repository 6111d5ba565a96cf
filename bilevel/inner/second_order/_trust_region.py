"""Newton's method in a trust region."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree, linear
from bilevel._curvature import curvature_along_gradient, gain
from bilevel._needs import LOSS, SMOOTH
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.problem import At

_ACCEPT, _SHRINK_BELOW, _GROW_ABOVE = 1e-4, 0.25, 0.75
_PROBES = 50
_Product = Callable[[PyTree], PyTree]


class _State(NamedTuple):
    params: PyTree
    radius: jax.Array
    progress: SolveProgress


class _Path(NamedTuple):
    """The path of conjugate gradients."""

    point: PyTree
    residual: PyTree
    direction: PyTree
    square: jax.Array  # of the residual
    concave: jax.Array  # the curvature along the direction is not above the floor
    ended: jax.Array  # at the boundary
    products: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrustRegion(InnerSolver):
    """x⁺ = x + d, d a minimizer of the quadratic model in the ball ‖d‖ ≤ Δ, for smooth losses that need not be convex.

    Conjugate gradients on Hessian products minimize the model; they stop at the boundary of the ball, or earlier on a direction
    of negative curvature. Δ follows the ratio of the decrease to that of the model. A point that passes the stopping test is
    probed for negative curvature, by at most 50 products, and left along it: a saddle point is not a solution. Unrolled, a
    step inside the ball has the derivative of Newton's step, and one to its boundary counts as a constant.

    Args:
      rtol, atol, max_steps: as for `InnerSolver`.
      radius: Δ at the start. None: ten gradient steps of length 1/L.

    References: Steihaug 1983; Toint 1981; Conn, Gould & Toint, Trust-Region Methods, 2000.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x**2 - hparams) ** 2))
      >>> print(abs(bl.inner.TrustRegion().solve(problem, jnp.zeros(1), 4.0).params).round(3))    # 0 is a maximum
      [2.]
    """

    needs = (LOSS, SMOOTH)
    positive = ("radius",)

    rtol: float = 1e-8
    max_steps: int = 500
    radius: float | None = None

    def init(self, at: At, params: PyTree) -> _State:
        """The first radius."""
        dtype = _tree.dtype(params)
        if self.radius is not None:
            return _State(params, jnp.asarray(self.radius, dtype), SolveProgress.start(dtype))
        gradient, curvature = curvature_along_gradient(at, params)
        radius, size = 10 * _tree.norm(gradient) / curvature, _tree.norm(params)
        radius = jnp.where(radius > 0, radius, _tree.positive(size))
        return _State(params, jax.lax.stop_gradient(radius).astype(dtype), SolveProgress.start(dtype, 1, 1))

    def step(self, at: At, state: _State) -> _State:
        """One step, taken or not; a minimum that passes the stopping test is kept, with the derivative of a step."""
        x, frozen = jax.lax.stop_gradient((state.params, at))
        (value, gradient), push = jax.linearize(jax.value_and_grad(frozen.inner_loss), x)

        def hvp(v: PyTree) -> PyTree:
            return push(v)[1]

        norm, eps = _tree.norm(gradient), _tree.eps(x)
        distance = norm / gain(hvp, gradient)
        passed = self.advance(state.progress, x, distance, grad_evals=0).status == Status.CONVERGED
        move, path = _propose(hvp, x, gradient, distance, passed, state.radius)
        escape, stay = passed & path.concave, passed & ~path.concave

        after = frozen.inner_loss(_tree.add_scaled(x, 1, move))
        predicted = -_tree.vdot(move, _tree.add_scaled(gradient, 0.5, hvp(move)))
        slack = 10 * eps * jnp.abs(value)
        ratio = jnp.where(jnp.isfinite(after), (value - after + slack) / _tree.positive(predicted + slack), -1)
        accepted = (predicted > 0) & (ratio > _ACCEPT) & ~stay
        grown = jnp.where((ratio > _GROW_ABOVE) & (path.ended | escape), 2 * state.radius, state.radius)
        radius = jnp.where(stay, state.radius, jnp.where(ratio < _SHRINK_BELOW, _tree.norm(move) / 4, grown))
        tiny = radius <= 100 * eps * _tree.norm(x)
        blind = path.ended & (predicted <= slack)  # the decrease left in the region drowns in rounding

        failed = tiny & (blind | ~accepted)
        progress = self.advance(state.progress, x, distance, grad_evals=1, hvps=path.products + 2, failed=failed)
        progress = progress.ending(jnp.where(escape & ~tiny, Status.MAX_STEPS, progress.status))
        inside = stay | ~(path.ended | passed)
        move = _tree.where(stay, _tree.zeros_like(move), move)
        move = _newton(at)(state.params, at.hparams, move, inside)
        moved = _tree.where(accepted | stay, _tree.add_scaled(state.params, 1, move), state.params)
        return _State(moved, radius, progress)


def _propose(
    hvp: _Product, x: PyTree, gradient: PyTree, distance: jax.Array, passed: jax.Array, radius: jax.Array
) -> tuple[PyTree, _Path]:
    """The minimizer of the model, and the path to it; at a point that passes, a move along negative curvature.

    There, conjugate gradients run on a vector that has a part along every eigenvector, instead of on the gradient.
    """
    norm, size, unit = _tree.positive(_tree.norm(gradient)), _tree.norm(x), _tree.positive(distance)
    path = _conjugate_gradients(
        hvp,
        _tree.where(passed, _probe(x), _tree.scale(-1 / norm, gradient)),
        radius=jnp.where(passed, jnp.inf, radius / norm),
        goal=jnp.where(passed, 1e-2, jnp.minimum(0.1, distance / jnp.where(size > 0, size, unit))),
        limit=jnp.where(passed, _PROBES, 2 * _tree.size(x)),
        floor=jnp.where(passed, -(_tree.eps(x) ** 0.5) * norm / unit, 0),
    )
    sign = jnp.where(_tree.vdot(gradient, path.direction) > 0, -1, 1)
    along = _tree.scale(sign * radius / _tree.positive(_tree.norm(path.direction)), path.direction)
    return _tree.where(passed, along, _tree.scale(norm, path.point)), path


def _conjugate_gradients(
    hvp: _Product, b: PyTree, *, radius: jax.Array, goal: jax.Array, limit: jax.Array, floor: jax.Array
) -> _Path:
    """Minimize ½⟨d, Hd⟩ − ⟨b, d⟩ over ‖d‖ ≤ radius, for ‖b‖ = 1, until the residual's norm is below `goal`."""

    def step(s: _Path) -> _Path:
        product, length = hvp(s.direction), _tree.vdot(s.direction, s.direction)
        curvature = _tree.vdot(s.direction, product)
        concave = ~(curvature > floor * length)
        flat = ~(curvature > 0)
        alpha = s.square / jnp.where(flat, 1, curvature)
        outside = flat | ~(_tree.norm(_tree.add_scaled(s.point, alpha, s.direction)) < radius)
        alpha = jnp.where(outside, _to_boundary(s.point, s.direction, length, radius), alpha)
        point = _tree.add_scaled(s.point, alpha, s.direction)
        residual = _tree.add_scaled(s.residual, -alpha, product)
        square = _tree.vdot(residual, residual)
        direction = _tree.where(outside, s.direction, _tree.add_scaled(residual, square / s.square, s.direction))
        return _Path(point, residual, direction, square, concave, outside, s.products + 1)

    no = jnp.array(False)
    start = _Path(_tree.zeros_like(b), b, b, _tree.vdot(b, b), no, no, jnp.int32(0))
    return jax.lax.while_loop(lambda s: (s.square > goal**2) & ~s.ended & (s.products < limit), step, start)


def _to_boundary(point: PyTree, direction: PyTree, length: jax.Array, radius: jax.Array) -> jax.Array:
    """τ ≥ 0 with ‖point + τ direction‖ = radius, for `length` = ‖direction‖²; 0 if the radius is infinite."""
    inner = _tree.vdot(point, direction)
    room = jnp.where(jnp.isinf(radius), 0, radius**2 - _tree.vdot(point, point))
    root = jnp.sqrt(inner**2 + length * jnp.maximum(room, 0))
    # Of the two forms, the one without cancellation.
    return jnp.where(inner > 0, room / _tree.positive(inner + root), (root - inner) / _tree.positive(length))


def _newton(at: At) -> Callable[..., PyTree]:
    """(x, hparams, d, inside) ↦ d, with the derivative of Newton's step −H⁻¹∇f if it is inside the ball, else zero."""

    @jax.custom_jvp
    def move(x: PyTree, hparams: PyTree, d: PyTree, inside: jax.Array) -> PyTree:
        return d

    @move.defjvp
    def _(primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]) -> tuple[PyTree, PyTree]:
        x, hparams, d, inside = primals

        def residual(x: PyTree, hparams: PyTree) -> PyTree:
            value, hvp = jax.linearize(at.replace(hparams=hparams).gradient, x)
            return _tree.add_scaled(value, 1, hvp(d))

        _, change = jax.jvp(residual, (x, hparams), tangents[:2])
        _, hvp = jax.linearize(at.replace(hparams=hparams).gradient, x)
        change = jax.tree.map(lambda v: jnp.where(inside, -v, 0), change)
        found = linear.differentiable_solve(linear.Auto(), linear.Operator(hvp, "positive_definite"), change)
        return d, found.value

    return move


def _probe(x: PyTree) -> PyTree:
    """A fixed unit vector, without the symmetries that an eigenvector might have."""
    flat, unravel = ravel_pytree(x)
    wave = jnp.cos(jnp.arange(1, flat.size + 1, dtype=flat.dtype) ** 2)
    return unravel(wave / jnp.linalg.norm(wave))
