"""The Karush–Kuhn–Tucker conditions.

With x = (z, ν, λ), Lagrangian Hessian L, E = ∂H, M = ∂G,

    F = [∇₁f + Eᵀν + Mᵀλ ; H ; λ∘G]        A = [[L, Eᵀ, Mᵀ], [E, 0, 0], [diag(λ)M, 0, diag(G)]].

An inequality is active where λᵢ > −Gᵢ. Active rows are divided by λᵢ; inactive multipliers are eliminated,
λ̇ᵢ = (bᵢ − λᵢMᵢż)/Gᵢ. Both are exact, also at an interior point's nearly complementary answer, and leave a symmetric
system in (z, ν, active λ).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _needs, _tree
from bilevel._needs import Need
from bilevel._tree import PyTree
from bilevel.linear import Operator, Reduction, System
from bilevel.optimality._base import Condition
from bilevel.problem import At
from bilevel.statements._base import Kind


class KKTSolution(NamedTuple):
    """A point with its multipliers: params, where `KKT` or `QuadraticProgram` is the condition.

    Attributes:
      primal: z, any pytree.
      dual_eq: ν, with the structure of H(z); None without equalities.
      dual_ineq: λ ≥ 0, with the structure of G(z); None without inequalities.
    """

    primal: Any
    dual_eq: Any = None
    dual_ineq: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class KKT(Condition):
    """F = [∇₁f + (∂H)ᵀν + (∂G)ᵀλ ; H ; λ∘G], zero at a minimum of f = inner_loss subject to H = 0, G ≤ 0.

    params is a `KKTSolution`; the problem's functions other than outer_loss take its primal part. The constraints are the
    `equality` and `inequality` of a `bilevel.Minimization`, both or neither. ∂₁F is not symmetric; its systems are solved in
    a symmetric (indefinite) form on the active constraints. Differentiable under strict complementarity, independent active
    constraints and a Hessian that is positive definite along them; where λᵢ = Gᵢ = 0 the constraint is taken as inactive, an
    element of the conservative Jacobian.

    Args:
      singular: active constraints may be redundant; the multipliers' derivative is then the least one.
    """

    needs: ClassVar[tuple[Need, ...]] = (_needs.LOSS, _needs.NO_SET)
    takes: ClassVar[tuple[Kind, ...]] = ("kkt",)

    singular: bool = False

    def residual(self, at: At, params: PyTree) -> KKTSolution:
        """F, a KKTSolution; the last part in units of λ times G."""
        z, _, dual_ineq = _solution(params)
        value, pull = jax.vjp(lambda z: _functions(at, z), z)
        _check_duals(params, value)
        (gradient,) = pull((jnp.ones_like(value[0]), *params[1:]))
        return KKTSolution(gradient, value[1], jax.tree.map(jnp.multiply, dual_ineq, value[2]))

    def system(self, at: At, params: PyTree) -> System:
        """General; with its symmetric form on the active constraints."""
        operator = dataclasses.replace(self._linearized(at, params), singular=self.singular)
        z, _, dual = params
        _, _, slack = _functions(at, z)
        _, hvp = jax.linearize(lambda z: self.residual(at, KKTSolution(z, *params[1:])).primal, z)
        _, push = jax.linearize(lambda z: _functions(at, z)[1:], z)
        return System(operator, _symmetric(hvp, push, z, dual, slack, self.singular))

    def margin(self, at: At, params: PyTree) -> jax.Array | None:
        """The least of max(λᵢ, −Gᵢ), each in units of its largest entry: near zero, strict complementarity fails."""
        slack = _functions(at, params.primal)[2]
        if not jax.tree.leaves(slack):
            return None
        dual, slack = ravel_pytree(params.dual_ineq)[0], -ravel_pytree(slack)[0]
        return jnp.min(jnp.maximum(dual / _largest(dual), slack / _largest(slack)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticProgram(KKT):
    """The KKT conditions of ½zᵀQz + cᵀz subject to Ez = d, Mz ≤ h: `KKT` for a `bilevel.Program`.

    params is a `KKTSolution`. Symmetric, indefinite, on the active constraints. Differentiable with respect to Q, c, E, d,
    M and h, where `KKT` is.

    Args:
      singular: as in `KKT`.
    """

    needs: ClassVar[tuple[Need, ...]] = (_needs.PROGRAM, _needs.NO_SET)


def _solution(params: PyTree) -> KKTSolution:
    if not isinstance(params, KKTSolution):
        raise TypeError(
            f"optimality.KKT: params must be a bilevel.optimality.KKTSolution(primal, dual_eq, dual_ineq), "
            f"got {_tree.shapes(params)}"
        )
    return params


def _functions(at: At, z: PyTree) -> tuple[jax.Array, PyTree, PyTree]:
    """f, H and G at z; None for what is not there."""
    if not at.parts.constrained:
        return at.inner_loss(z), None, None
    return at.inner_loss(z), at.equality(z), at.inequality(z)


def _check_duals(params: KKTSolution, value: tuple[PyTree, PyTree, PyTree]) -> None:
    for name, dual, constraint in zip(("dual_eq", "dual_ineq"), params[1:], value[1:], strict=True):
        part = "equality" if name == "dual_eq" else "inequality"
        _tree.check_like(f"KKTSolution.{name}", dual, f"the value of {part}", constraint)


def _largest(x: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.abs(x), initial=0)
    return jnp.where(largest > 0, largest, 1)


def _symmetric(hvp, push, z, dual, slack, singular) -> Reduction:
    active = jax.tree.map(lambda dual, g: (dual > -g).astype(g.dtype), dual, slack)
    # 1/λ on active rows and 1/G on the others, zero elsewhere.
    by_dual = jax.tree.map(lambda a, dual: a / jnp.where(a > 0, dual, 1), active, dual)
    by_slack = jax.tree.map(lambda a, g: (1 - a) / jnp.where(g == 0, -1, g), active, slack)
    pull = jax.linear_transpose(push, z)

    def times(x, y):
        return jax.tree.map(jnp.multiply, x, y)

    def product(x):
        moved_eq, moved_ineq = push(x.primal)
        folded = jax.tree.map(
            lambda a, s, lam, mz, y: a * y - s * lam * mz, active, by_slack, dual, moved_ineq, x.dual_ineq
        )
        top = _tree.add_scaled(hvp(x.primal), 1, pull((x.dual_eq, folded))[0])
        bottom = jax.tree.map(
            lambda a, mz, g, d, y: a * (mz + g * d * y) - (1 - a) * y, active, moved_ineq, slack, by_dual, x.dual_ineq
        )
        return KKTSolution(top, moved_eq, bottom)

    def restrict(b):
        b = KKTSolution(*b)
        nothing = jax.tree.map(jnp.zeros_like, b.dual_eq)
        top = _tree.sub(b.primal, pull((nothing, times(by_slack, b.dual_ineq)))[0])
        return KKTSolution(top, b.dual_eq, times(by_dual, b.dual_ineq))

    def expand(x, b):
        _, moved = push(x.primal)
        dual_ineq = jax.tree.map(
            lambda a, y, s, b, lam, mz: a * y + s * (b - lam * mz),
            active,
            x.dual_ineq,
            by_slack,
            b.dual_ineq,
            dual,
            moved,
        )
        return KKTSolution(x.primal, x.dual_eq, dual_ineq)

    def start(u):
        return KKTSolution(u.primal, u.dual_eq, times(active, times(dual, u.dual_ineq)))

    degenerate = [jnp.any((a == 0) & (g == 0)) for a, g in zip(*map(jax.tree.leaves, (active, slack)), strict=True)]
    approximate = jnp.stack(degenerate).any() if degenerate else False
    return Reduction(Operator(product, "symmetric", singular), restrict, expand, start, approximate=approximate)
