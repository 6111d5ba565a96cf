"""Newton's method in a trust region."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _checks, _tree, linear
from bilevel._curvature import curvature_along_gradient, gain
from bilevel._needs import LOSS, SMOOTH, Need
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.problem import At

_ACCEPT, _SHRINK_BELOW, _GROW_ABOVE = 1e-4, 0.25, 0.75
_PROBES = 50


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
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

    Conjugate gradients on Hessian products minimize the model; they stop at the boundary of the ball, along a direction
    of negative curvature at the latest. Δ follows the gain against the model's. A point that passes the stopping test is
    probed for negative curvature, by at most 50 products, and left along it: a saddle is not a solution. Unrolled, a
    step inside the ball has the derivative of Newton's, and one to its boundary counts as a constant.

    Args:
      radius: Δ at the start. None: ten gradient steps of length 1/L.

    References: Steihaug 1983; Toint 1981; Conn, Gould & Toint, Trust-Region Methods, 2000.
    """

    needs: ClassVar[tuple[Need, ...]] = (LOSS, SMOOTH)

    rtol: float = 1e-8
    max_steps: int = 500
    radius: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive("inner.TrustRegion", radius=self.radius)

    def init(self, at: At, params: PyTree) -> _State:
        """The first radius."""
        dtype = _tree.dtype(params)
        if self.radius is not None:
            return _State(params, jnp.asarray(self.radius, dtype), SolveProgress.start(dtype))
        gradient, curvature = curvature_along_gradient(at, params)
        radius, size = 10 * _tree.norm(gradient) / curvature, _tree.norm(params)
        radius = jnp.where(radius > 0, radius, _positive(size))
        return _State(params, jax.lax.stop_gradient(radius).astype(dtype), SolveProgress.start(dtype, 1, 1))

    def step(self, at: At, state: _State) -> _State:
        """One step, taken or not; a minimum that passes the stopping test is kept as it is, with the derivative of a step."""
        x, frozen = jax.lax.stop_gradient((state.params, at))
        (value, gradient), push = jax.linearize(jax.value_and_grad(frozen.inner_loss), x)
        hvp = lambda v: push(v)[1]  # noqa: E731
        norm, eps = _tree.norm(gradient), _tree.eps(x)
        distance = norm / gain(hvp, gradient)
        passed = self.advance(state.progress, x, distance, grad_evals=0).status == Status.CONVERGED
        move, path = self._propose(hvp, x, gradient, distance, passed, state.radius)
        escape, stay = passed & path.concave, passed & ~path.concave

        after = frozen.inner_loss(_tree.add_scaled(x, 1, move))
        predicted = -_tree.vdot(move, _tree.add_scaled(gradient, 0.5, hvp(move)))
        slack = 10 * eps * jnp.abs(value)
        ratio = jnp.where(jnp.isfinite(after), (value - after + slack) / _positive(predicted + slack), -1)
        accepted = (predicted > 0) & (ratio > _ACCEPT) & ~stay
        grown = jnp.where((ratio > _GROW_ABOVE) & (path.ended | escape), 2 * state.radius, state.radius)
        radius = jnp.where(stay, state.radius, jnp.where(ratio < _SHRINK_BELOW, _tree.norm(move) / 4, grown))
        tiny = radius <= 100 * eps * _tree.norm(x)
        blind = path.ended & (predicted <= slack)  # what is left to gain in the region drowns in rounding

        failed = tiny & (blind | ~accepted)
        progress = self.advance(
            state.progress, x, distance, grad_evals=1, hvps=path.products + 2, failed=failed, failure=Status.STAGNATED
        )
        status = jnp.where(escape & ~tiny, Status.MAX_STEPS, progress.status).astype(jnp.int32)
        inside = stay | ~(path.ended | passed)
        move = _tree.where(stay, _tree.zeros_like(move), move)
        move = _newton(at)(state.params, at.hparams, move, inside)
        moved = _tree.where(accepted | stay, _tree.add_scaled(state.params, 1, move), state.params)
        return _State(moved, radius, dataclasses.replace(progress, status=status))

    def _propose(self, hvp, x, gradient, distance, passed, radius) -> tuple[PyTree, _Path]:
        """The minimizer of the model, and the path to it; at a point that passes, a move along negative curvature.

        There, conjugate gradients run on a vector that has a part along every eigenvector, instead of on the gradient.
        """
        norm, size = _positive(_tree.norm(gradient)), _tree.norm(x)
        path = _conjugate_gradients(
            hvp,
            _tree.where(passed, _probe(x), _tree.scale(-1 / norm, gradient)),
            radius=jnp.where(passed, jnp.inf, radius / norm),
            goal=jnp.where(passed, 1e-2, jnp.minimum(0.1, distance / jnp.where(size > 0, size, _positive(distance)))),
            limit=jnp.where(passed, _PROBES, 2 * _tree.size(x)),
            floor=jnp.where(passed, -(_tree.eps(x) ** 0.5) * norm / _positive(distance), 0),
        )
        sign = jnp.where(_tree.vdot(gradient, path.direction) > 0, -1, 1)
        along = _tree.scale(sign * radius / _positive(_tree.norm(path.direction)), path.direction)
        return _tree.where(passed, along, _tree.scale(norm, path.point)), path


def _conjugate_gradients(hvp, b, *, radius, goal, limit, floor) -> _Path:
    """Minimize ½⟨d, Hd⟩ − ⟨b, d⟩ over ‖d‖ ≤ radius, for ‖b‖ = 1, until the residual's norm is below `goal`."""

    def step(s: _Path):
        product, length = hvp(s.direction), _tree.vdot(s.direction, s.direction)
        curvature = _tree.vdot(s.direction, product)
        concave = ~(curvature > floor * length)
        flat = ~(curvature > 0)
        alpha = s.square / jnp.where(flat, 1, curvature)
        outside = flat | ~(_tree.norm(_tree.add_scaled(s.point, alpha, s.direction)) < radius)
        alpha = jnp.where(outside, _to_boundary(s.point, s.direction, length, radius), alpha)
        residual = _tree.add_scaled(s.residual, -alpha, product)
        square = _tree.vdot(residual, residual)
        direction = _tree.add_scaled(residual, square / s.square, s.direction)
        point = _tree.add_scaled(s.point, alpha, s.direction)
        direction = _tree.where(outside, s.direction, direction)
        return _Path(point, residual, direction, square, concave, outside, s.products + 1)

    no = jnp.array(False)
    start = _Path(_tree.zeros_like(b), b, b, _tree.vdot(b, b), no, no, jnp.int32(0))
    return jax.lax.while_loop(lambda s: (s.square > goal**2) & ~s.ended & (s.products < limit), step, start)


def _to_boundary(point, direction, length, radius):
    """τ ≥ 0 with ‖point + τ direction‖ = radius, for `length` = ‖direction‖²; 0 where the ball has no boundary."""
    inner = _tree.vdot(point, direction)
    room = jnp.where(jnp.isinf(radius), 0, radius**2 - _tree.vdot(point, point))
    root = jnp.sqrt(inner**2 + length * jnp.maximum(room, 0))
    # Whichever of the two forms does not cancel.
    return jnp.where(inner > 0, room / _positive(inner + root), (root - inner) / _positive(length))


def _newton(at: At) -> Callable[..., PyTree]:
    """(x, hparams, d, inside) ↦ d, with the derivative of Newton's step −H⁻¹∇f where it lies inside the ball, else none."""

    @jax.custom_jvp
    def move(x, hparams, d, inside):
        return d

    @move.defjvp
    def _(primals, tangents):
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


def _positive(x: jax.Array) -> jax.Array:
    """x, or 1 where dividing by it would fail."""
    return jnp.where(x > 0, x, 1)
