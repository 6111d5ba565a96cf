"""The Karush–Kuhn–Tucker conditions.

With x = (z, ν, λ), Lagrangian Hessian L, E = ∂H, M = ∂G,

    F = [∇₁f + Eᵀν + Mᵀλ ; H ; λ∘G]        A = [[L, Eᵀ, Mᵀ], [E, 0, 0], [diag(λ)M, 0, diag(G)]].

An inequality is active where λᵢ > −Gᵢ. Active rows are divided by λᵢ; inactive multipliers are eliminated,
λ̇ᵢ = (bᵢ − λᵢMᵢż)/Gᵢ. Both are exact, also at an interior point's nearly complementary answer, and leave a symmetric
system in (z, ν, active λ).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _needs, _tree
from bilevel._tree import PyTree
from bilevel.linear import Operator, Reduction, System
from bilevel.optimality._base import Condition
from bilevel.problem import At


class KKTSolution(NamedTuple):
    """A point with its multipliers: params, where `KKT` or `QuadraticProgram` is the condition.

    Attributes:
      primal: z, any pytree.
      dual_eq: ν, with the structure of H(z); None without equalities.
      dual_ineq: λ ≥ 0, with the structure of G(z); None without inequalities.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> print(bl.optimality.KKTSolution(primal=jnp.ones(2), dual_ineq=jnp.zeros(3)).dual_eq)
      None
    """

    primal: Any
    dual_eq: Any = None
    dual_ineq: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class KKT(Condition):
    """F = [∇₁f + (∂H)ᵀν + (∂G)ᵀλ ; H ; λ∘G], zero at a minimum of f = inner_loss subject to H = 0, G ≤ 0.

    params is a `KKTSolution`, else a TypeError is raised; the problem's functions other than outer_loss take its primal part. The
    constraints are the `equality` and `inequality` of a `bilevel.Minimization`. ∂₁F is not symmetric; its systems are solved in
    a symmetric (indefinite) form on the active constraints. Differentiable under strict complementarity, independent active
    constraints and a Hessian that is positive definite along them; where λᵢ = Gᵢ = 0 the constraint is taken as inactive, an
    element of the conservative Jacobian.

    Args:
      singular: active constraints may be redundant; the multipliers' derivative is then the one of least norm.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> nearest = bl.Minimization(loss=lambda z, h, data: jnp.sum((z - h) ** 2), inequality=lambda z, h, data: -z)
      >>> solution = bl.optimality.KKTSolution(primal=jnp.array([3.0, 0.0]), dual_ineq=jnp.array([0.0, 2.0]))
      >>> print(bl.optimality.KKT().residual(bl.At(bl.Problem(inner=nearest), jnp.array([3.0, -1.0])), solution).primal)
      [0. 0.]

    Reference: Blondel et al. 2022, https://arxiv.org/abs/2105.15183.
    """

    needs = (_needs.LOSS, _needs.NO_SET)
    takes = ("kkt",)

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
        pair = ravel_pytree(params.dual_ineq)[0], -ravel_pytree(slack)[0]
        return jnp.min(jnp.maximum(*(x / _tree.positive(jnp.max(jnp.abs(x), initial=0)) for x in pair)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticProgram(KKT):
    """The KKT conditions of ½zᵀQz + cᵀz subject to Ez = d, Mz ≤ h: `KKT` for a `bilevel.Program`.

    params is a `KKTSolution`. Symmetric, indefinite, on the active constraints. Differentiable with respect to Q, c, E, d,
    M and h, where `KKT` is.

    Args:
      singular: as in `KKT`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> halves = bl.Program(lambda h, data: bl.QP(Q=jnp.eye(2), c=jnp.zeros(2), E=jnp.ones((1, 2)), d=h))
      >>> solution = bl.optimality.KKTSolution(jnp.array([0.5, 0.5]), jnp.array([-0.5]))
      >>> print(*bl.optimality.QuadraticProgram().residual(bl.At(bl.Problem(inner=halves), jnp.ones(1)), solution))
      [0. 0.] [0.] None

    Reference: Amos & Kolter, OptNet: differentiable optimization as a layer in neural networks, 2017.
    """

    needs = (_needs.PROGRAM, _needs.NO_SET)


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


def _symmetric(
    hvp: Callable[[PyTree], PyTree],
    push: Callable[[PyTree], tuple[PyTree, PyTree]],
    z: PyTree,
    dual: PyTree,
    slack: PyTree,
    singular: bool,
) -> Reduction:
    active = jax.tree.map(lambda dual, g: (dual > -g).astype(g.dtype), dual, slack)
    # 1/λ in active rows and 1/G in the others, else zero.
    by_dual = jax.tree.map(lambda a, dual: a / jnp.where(a > 0, dual, 1), active, dual)
    by_slack = jax.tree.map(lambda a, g: (1 - a) / jnp.where(g == 0, -1, g), active, slack)
    pull = jax.linear_transpose(push, z)

    def product(x: KKTSolution) -> KKTSolution:
        moved_eq, moved_ineq = push(x.primal)
        folded = jax.tree.map(
            lambda a, s, lam, mz, y: a * y - s * lam * mz, active, by_slack, dual, moved_ineq, x.dual_ineq
        )
        top = _tree.add_scaled(hvp(x.primal), 1, pull((x.dual_eq, folded))[0])
        bottom = jax.tree.map(
            lambda a, mz, g, d, y: a * (mz + g * d * y) - (1 - a) * y, active, moved_ineq, slack, by_dual, x.dual_ineq
        )
        return KKTSolution(top, moved_eq, bottom)

    def restrict(b: KKTSolution) -> KKTSolution:
        b = KKTSolution(*b)
        folded = jax.tree.map(jnp.multiply, by_slack, b.dual_ineq)
        top = _tree.sub(b.primal, pull((_tree.zeros_like(b.dual_eq), folded))[0])
        return KKTSolution(top, b.dual_eq, jax.tree.map(jnp.multiply, by_dual, b.dual_ineq))

    def expand(x: KKTSolution, b: KKTSolution) -> KKTSolution:
        _, moved = push(x.primal)
        eliminated = jax.tree.map(lambda s, b, lam, mz: s * (b - lam * mz), by_slack, b.dual_ineq, dual, moved)
        return x._replace(dual_ineq=jax.tree.map(lambda a, y, e: a * y + e, active, x.dual_ineq, eliminated))

    def start(u: KKTSolution) -> KKTSolution:
        return u._replace(dual_ineq=jax.tree.map(lambda a, lam, y: a * (lam * y), active, dual, u.dual_ineq))

    degenerate = [jnp.any((a == 0) & (g == 0)) for a, g in zip(*map(jax.tree.leaves, (active, slack)), strict=True)]
    approximate = jnp.stack(degenerate).any() if degenerate else False
    return Reduction(Operator(product, "symmetric", singular), restrict, expand, start, approximate=approximate)
