"""The residual map of a cone program's homogeneous self-dual embedding."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _needs
from bilevel._tree import PyTree
from bilevel.linear import Operator, Reduction, System
from bilevel.optimality._base import Condition
from bilevel.problem import At
from bilevel.statements import ConeProgram


class ConicPoint(NamedTuple):
    """A point of the embedding: params, where `Conic` is the condition.

    Attributes:
      u: z·w, shape (n,).
      v: (y − s)·w, shape (m,).
      w: a positive scale; `Conic.embed` sets it to 1.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> point = bl.optimality.Conic.embed(primal=jnp.zeros(1), dual=jnp.ones(2), slack=jnp.array([0.0, 3.0]))
      >>> print(point.v, point.w)
      [ 1. -2.] 1.0
    """

    u: Any
    v: Any
    w: Any


class ConicSolution(NamedTuple):
    """z, shape (n,), dual y and slack s, shapes (m,), of: minimize cᵀz subject to Ez + s = d, s in K.

    Example:
      >>> import bilevel as bl
      >>> bl.optimality.ConicSolution(primal=[1.0], dual=[2.0], slack=[0.0]).dual
      [2.0]
    """

    primal: Any
    dual: Any
    slack: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conic(Condition):
    """F(x) = ((Θ − I)Π + I)x with Θ = [[0, Eᵀ, c], [−E, 0, d], [−cᵀ, −dᵀ, 0]], Π the projection on Rⁿ × K* × R₊.

    params is a `ConicPoint` x = (u, v, w): `embed` makes it of a solver's answer, and `recover` takes it back, differentiably.
    Needs a `bilevel.Program` of kind `"cone"`. F is homogeneous, so that ∂₁F is singular along x; its systems are solved with w
    held, where they are general, and regular for a unique, strictly complementary solution. So the outer loss should depend on
    x through `recover`. At a kink of Π the derivative is the one from one side (an element of the conservative Jacobian).

    Args:
      singular: the solution may not be unique; its derivative is then a least-squares answer.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> cones = bl.operators.cones.Cones(nonnegative=1)
      >>> minimum = bl.Program(lambda least, data: bl.ConeProgram(jnp.ones(1), -jnp.eye(1), -least, cones), kind="cone")
      >>> point = bl.optimality.Conic.embed(jnp.array([3.0]), jnp.ones(1), jnp.zeros(1))     # z = least, where z ≥ least
      >>> print(*bl.optimality.bind(bl.Problem(inner=minimum))(point, jnp.array([3.0])))
      [0.] [0.] 0.0

    Reference: Busseti, Moursi & Boyd, Solution refinement at regular points of conic problems, 2019.
    """

    needs = (_needs.CONE_PROGRAM,)
    takes = ("conic",)

    singular: bool = False

    @staticmethod
    def embed(primal: jax.Array, dual: jax.Array, slack: jax.Array) -> ConicPoint:
        """x, from a primal-dual solution (z, y, s)."""
        return ConicPoint(primal, dual - slack, jnp.ones((), primal.dtype))

    @staticmethod
    def recover(params: ConicPoint, program: ConeProgram) -> ConicSolution:
        """(z, y, s), from x."""
        dual = program.cones.project_dual(params.v)
        return ConicSolution(params.u / params.w, dual / params.w, (dual - params.v) / params.w)

    def residual(self, at: At, params: PyTree) -> ConicPoint:
        """F, a ConicPoint."""
        u, v, w = params
        c, e, d, cones = _program(at)
        dual, scale = cones.project_dual(v), jnp.maximum(w, 0)
        return ConicPoint(
            dual @ e + scale * c, -e @ u + scale * d - dual + v, -jnp.vdot(c, u) - jnp.vdot(d, dual) - scale + w
        )

    def system(self, at: At, params: PyTree) -> System:
        """General; solved for u and v with w held."""
        operator = self._linearized(at, params)
        _, e, _, cones = _program(at)
        _, jacobian = jax.linearize(cones.project_dual, params.v)

        def product(x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            u, v = x
            moved = jacobian(v)
            return moved @ e, v - moved - e @ u

        reduction = Reduction(
            Operator(product, singular=self.singular),
            restrict=lambda b: (b[0], b[1]),
            expand=lambda z, b: ConicPoint(z[0], z[1], jnp.zeros_like(b[2])),
            start=lambda u: (u[0], u[1]),
            approximate=True,
        )
        return System(dataclasses.replace(operator, singular=True), reduction)


def _program(at: At) -> ConeProgram:
    program = at.cone_program()
    m, n = program.cones.size, program.c.shape[0]
    if program.E.shape != (m, n) or program.d.shape != (m,):
        raise ValueError(
            f"ConeProgram: with c of shape {program.c.shape} and {m} rows of cones E must have the shape {(m, n)} and d "
            f"{(m,)}; got {program.E.shape} and {program.d.shape}"
        )
    return program
