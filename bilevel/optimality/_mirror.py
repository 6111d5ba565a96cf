"""Mirror descent: the residual of one mirror step.

On rows of simplices with the entropy, T(x) = x·exp(−η∇f)/Σ, row by row. With F = (x − T(x))/η, S = diag(x) − xxᵀ and g = ∇f,
at a solution

    A = ∂₁F = x1ᵀ/η + SH     on the support, the coordinates with x > 0 = g − ⟨x, g⟩.

The row sum of Aẋ = b gives 1ᵀẋ = η1ᵀb. The rest, t = ẋ − ηx1ᵀb, has row sums zero, and there S has the inverse
P diag(1/x) P with P the projector on the support's zero-sum directions, so that t solves the symmetric system

    PHP t = P(b/x − ηHx1ᵀb).

Coordinates outside of the support do not move.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _checks, _needs, _tree
from bilevel._curvature import choose_step
from bilevel._tree import PyTree
from bilevel.linear import Operator, Reduction, System
from bilevel.optimality._base import Condition
from bilevel.problem import At


@dataclasses.dataclass(frozen=True, kw_only=True)
class MirrorStep(Condition):
    """F = (x − T(x))/η with T(x) = proj^φ(∇φ(x) − η∇₁inner_loss), zero at a minimum over C: the condition of mirror descent.

    By default φ is the negative entropy and C the rows of simplices: each row, along the last axis of each leaf, is
    non-negative and sums to one. Then ∂₁F is solved on the support, where it is symmetric, and positive definite at a strict
    minimum; exact zeros are kept and do not move. With a mirror map and a Bregman projection of your own (both, or none)
    ∂₁F is general. Differentiable under strict complementarity; elsewhere the derivative is taken on the support of
    the computed point, an element of the conservative Jacobian.

    Args:
      mirror: ∇φ, (params) -> dual point; None is the entropy on rows of simplices.
      projection: (dual, hparams, data) -> the Bregman projection of ∇φ⁻¹(dual) on C.
      step: η > 0. None: 1/L, as for `ProximalGradient`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> at = bl.At(bl.Problem(lambda x, costs, data: jnp.vdot(costs, x)), jnp.array([1.0, 1.0, 5.0]))
      >>> print(bl.optimality.MirrorStep(step=1.0).residual(at, jnp.array([0.5, 0.5, 0.0])).round())
      [0. 0. 0.]

    Reference: Beck & Teboulle, Mirror descent and nonlinear projected subgradient methods for convex optimization, 2003.
    """

    needs = (_needs.LOSS, _needs.NO_PROX)
    takes = ("set",)

    mirror: Callable[[Any], Any] | None = None
    projection: Callable[[Any, Any, Any], Any] | None = None
    step: float | None = None

    def __post_init__(self) -> None:
        _checks.require_positive("optimality.MirrorStep", step=self.step)
        _checks.require_callable("optimality.MirrorStep", mirror=self.mirror, projection=self.projection)
        if (self.mirror is None) != (self.projection is None):
            raise ValueError(
                "optimality.MirrorStep: mirror and projection belong together: give both, or neither for the entropy "
                "on rows of simplices"
            )

    def residual(self, at: At, params: PyTree) -> PyTree:
        """The mirror step in units of the gradient."""
        step, gradient = choose_step(self.step, at, params), at.gradient(params)
        if self.mirror is None or self.projection is None:
            moved = jax.tree.map(lambda x, g: _exponentiated(x, step.astype(x.dtype) * g), params, gradient)
        else:
            dual = _tree.add_scaled(self.mirror(params), -step, gradient)
            moved = _tree.cast_like(self.projection(dual, at.hparams, at.data), params)
        return _tree.scale(1 / step, _tree.sub(params, moved))

    def system(self, at: At, params: PyTree) -> System:
        """General; for the entropy, the symmetric system on the support."""
        operator = self._linearized(at, params)
        if self.mirror is not None:
            return System(operator)
        step = choose_step(self.step, at, params)
        gradient, hvp = jax.linearize(at.gradient, params)
        return System(operator, _on_the_support(params, gradient, hvp, step))


def _exponentiated(x: jax.Array, push: jax.Array) -> jax.Array:
    """x·exp(−push)/Σ by rows, in product form, so that zeros stay zeros and have derivatives."""
    least = jnp.min(jnp.where(x > 0, push, jnp.inf), axis=-1, keepdims=True)
    least = jax.lax.stop_gradient(jnp.where(jnp.isfinite(least), least, 0))
    weight = x * jnp.exp(jnp.minimum(least - push, jnp.log(jnp.finfo(x.dtype).max) / 2))
    return weight / jnp.sum(weight, axis=-1, keepdims=True)


def _on_the_support(params: PyTree, gradient: PyTree, hvp: Callable[[PyTree], PyTree], step: jax.Array) -> Reduction:
    def free(x: jax.Array, g: jax.Array) -> jax.Array:
        slack = g - jnp.sum(x * g, axis=-1, keepdims=True)
        # Row j of A is about x_j times what it is for others: below rounding it is x1ᵀ/η, and 1/x_j would spoil the system.
        negligible = jnp.finfo(x.dtype).eps * jnp.max(x, axis=-1, keepdims=True)
        return (x > jnp.maximum(step.astype(x.dtype) * slack, negligible)).astype(x.dtype)

    support = jax.tree.map(free, params, gradient)
    inverse = jax.tree.map(lambda x, m: m / jnp.where(m > 0, x, 1), params, support)

    def project(v: PyTree) -> PyTree:
        def rows(v: jax.Array, m: jax.Array) -> jax.Array:
            return m * (v - jnp.sum(m * v, axis=-1, keepdims=True) / jnp.maximum(jnp.sum(m, axis=-1, keepdims=True), 1))

        return jax.tree.map(rows, v, support)

    def row_sums(b: PyTree) -> PyTree:
        """ηx1ᵀb."""
        return jax.tree.map(
            lambda b, x, m: step.astype(b.dtype) * m * x * jnp.sum(m * b, axis=-1, keepdims=True), b, params, support
        )

    def product(t: PyTree) -> PyTree:
        inside = project(t)
        curved = project(hvp(inside))
        return jax.tree.map(lambda c, t, i: c + (t - i) / step.astype(t.dtype), curved, t, inside)

    def restrict(b: PyTree) -> PyTree:
        return project(_tree.sub(jax.tree.map(jnp.multiply, inverse, b), hvp(row_sums(b))))

    def expand(t: PyTree, b: PyTree) -> PyTree:
        return _tree.add_scaled(row_sums(b), 1, project(t))

    def start(u: PyTree) -> PyTree:
        return project(jax.tree.map(jnp.multiply, u, params))

    # The system is equivalent at a solution only, and for cotangents on the support.
    return Reduction(Operator(product, "positive_definite"), restrict, expand, start, approximate=True)
