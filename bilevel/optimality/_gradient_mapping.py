"""Proximal and projected gradient: the residual of one forward-backward step, and its system on the active set.

With z = x − η∇f(x, θ), G = the prox (or projection) and P = ∂G/∂z, which is symmetric with 0 ≤ P ≤ 1,

    F = (x − G(z, θ)) / η          A = ∂₁F = (I − P + ηPH) / η.

Aᵀu = w reads (I − P)u + ηHPu = ηw, so u = s + η(w − Hs) with s = Pu, and s solves (P⁺ − I + ηH)s = ηw on the range of
P. That system is symmetric, as small as the active face or the support, and exact. Where P is an orthogonal projector
(a polyhedron) it is PHP s = Pw; where P = D is diagonal (a separable g) it is ((D⁻¹ − I)/η + H)s = w on the support.
Both are kept at full size and masked, so that shapes are fixed; iterates of a Krylov method stay on the face.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel.linear import Operator
from bilevel.optimality._base import AdjointSystem, Condition


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GradientMapping(Condition, abc.ABC):
    """F = (x − T(x))/η with T(x) = G(x − η∇₁inner_loss).

    Args:
      step: η. None: 1/L, L from `Problem.lipschitz` or else a power iteration on the Hessian. A unit step on unscaled
        data makes the general system hopelessly conditioned.
    """

    step: float | None = None

    def __post_init__(self):
        _checks.require_positive(f"optimality.{type(self).__name__}", step=self.step)

    def residual(self, problem, params, hparams, data):
        """The gradient mapping; the step is a constant, since at a solution F = 0 whatever the step."""
        step = self._step(problem, params, hparams, data)
        gradient = jax.grad(problem.inner_loss)(params, hparams, data)
        moved = problem.proximal_step(_tree.add_scaled(params, -step, gradient), hparams, data, step)
        return _tree.scale(1 / step, _tree.sub(params, moved))

    def adjoint_system(self, problem, params, hparams, data):
        """The symmetric system on the active set where its form is known, else the general one."""
        if not (problem.polyhedral or problem.separable):
            return super().adjoint_system(problem, params, hparams, data)
        step = self._step(problem, params, hparams, data)
        gradient, hvp = jax.linearize(lambda x: jax.grad(problem.inner_loss)(x, hparams, data), params)
        point = _tree.add_scaled(params, -step, gradient)
        _, jacobian = jax.linearize(lambda z: problem.proximal_step(z, hparams, data, step), point)

        if problem.polyhedral:
            restrict = jacobian

            def product(s):
                inside = jacobian(s)
                curved = jacobian(hvp(inside))
                return jax.tree.map(lambda c, s, i: c + (s - i) / step.astype(s.dtype), curved, s, inside)
        else:
            diagonal = jacobian(jax.tree.map(jnp.ones_like, point))
            mask = jax.tree.map(lambda d: (d > 0).astype(d.dtype), diagonal)
            shift = jax.tree.map(
                lambda d: jnp.where(d > 0, 1 / jnp.where(d > 0, d, 1) - 1, 1) / step.astype(d.dtype), diagonal
            )

            def restrict(v):
                return jax.tree.map(jnp.multiply, mask, v)

            def product(s):
                return jax.tree.map(lambda h, m, c, s: m * h + c * s, hvp(restrict(s)), mask, shift, s)

        def expand(s, w):
            return jax.tree.map(lambda s, w, h: s + step.astype(s.dtype) * (w - h), s, w, hvp(s))

        return AdjointSystem(Operator(product, "positive_definite"), restrict, expand)

    def _step(self, problem, params, hparams, data):
        if self.step is not None:
            step = self.step
        elif problem.lipschitz is not None:
            step = 1 / problem.lipschitz(hparams, data)
        else:
            step = 1 / _curvature(problem, params, hparams, data)
        return jax.lax.stop_gradient(jnp.asarray(step, _tree.dtype(params)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProximalGradient(_GradientMapping):
    """F = (x − prox_{ηg}(x − η∇₁inner_loss))/η, zero at a minimum of inner_loss + g.

    Needs `Problem.prox`. Differentiable where no coordinate sits at a kink of the prox; there, the derivative is that of
    one side (an element of the conservative Jacobian). With `Problem.separable` the systems are solved on the support.
    """

    def check(self, problem):
        """Require a prox."""
        _checks.require_parts("optimality.ProximalGradient", problem, "prox")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedGradient(_GradientMapping):
    """F = (x − proj_C(x − η∇₁inner_loss))/η, zero at a minimum of inner_loss over C.

    Needs `Problem.projection`. Differentiable under strict complementarity; elsewhere the derivative is that of the face
    of the computed point. With `Problem.polyhedral` the systems are solved on the active face.
    """

    def check(self, problem):
        """Require a projection."""
        _checks.require_parts("optimality.ProjectedGradient", problem, "projection")


def _curvature(problem, params, hparams, data, iterations: int = 8):
    """The largest Hessian eigenvalue at params by power iteration from a fixed start, a slight underestimate."""
    frozen_params, frozen_hparams = jax.lax.stop_gradient((params, hparams))
    _, hvp = jax.linearize(lambda x: jax.grad(problem.inner_loss)(x, frozen_hparams, data), frozen_params)
    start = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), frozen_params)

    def iterate(carry, _):
        direction, _ = carry
        product = hvp(direction)
        norm = _tree.norm(product)
        return (_tree.scale(1 / jnp.where(norm > 0, norm, 1), product), norm), None

    start = _tree.scale(1 / _tree.norm(start), start)
    (_, largest), _ = jax.lax.scan(iterate, (start, jnp.ones((), _tree.dtype(params))), length=iterations)
    return jnp.where(largest > 0, largest, 1)
