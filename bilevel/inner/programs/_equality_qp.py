"""The solution of an equality-constrained quadratic program by one linear solve."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree, linear
from bilevel._needs import EQUALITIES_ALONE, PROGRAM, Need
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, PlainState, SolveProgress
from bilevel.inner._judge import judge
from bilevel.optimality import KKTSolution
from bilevel.problem import At
from bilevel.statements import apply

_COUNTED_UP_TO = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualityQP(InnerSolver):
    """Solve [[Q, Eᵀ], [E, 0]] (z, ν) = (−c, d), for a quadratic `bilevel.Program` without inequalities.

    Without equalities too, the system is Q z = −c. The answer is judged like every solver's; where rounding keeps it from
    rtol, a further step solves for what is left. Q must be positive definite along E z = 0: up to 256 unknowns the signs of
    the eigenvalues are counted, and without equalities the linear solver sees it; a saddle point ends as
    `NEGATIVE_CURVATURE`.

    Args:
      linear: solver of the system; `linear.Auto()` factors a small one, and runs MINRES (CG without equalities) on a large
        one. Without an rtol of its own it is given a tenth of this one's.
      singular: equalities may be redundant; the multipliers are then the least ones.

    Reference: Nocedal & Wright, Numerical Optimization, 2006, section 16.1.
    """

    needs: ClassVar[tuple[Need, ...]] = (PROGRAM, EQUALITIES_ALONE)

    max_steps: int = 3
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)
    singular: bool = False

    def init(self, at: At, params: PyTree) -> PlainState:
        """The start serves iterative linear solvers only."""
        return PlainState(params, SolveProgress.start(_tree.dtype(params)))

    def step(self, at: At, state: PlainState) -> PlainState:
        """Solve, from the second step on for what is left; then judge the answer."""
        params = state.params
        z = params.primal if at.parts.constrained else params
        program = at.quadratic_program()
        if program.M is not None:
            raise ValueError(
                "inner.EqualityQP needs a quadratic program without inequalities, and this one has QP.M: use inner.OSQP"
            )
        operator, b, start = _system(program, z, params, at.parts.constrained)
        operator = dataclasses.replace(operator, singular=self.singular)
        rtol = max(self.rtol, 4 * _tree.eps(z)) / 10
        solver = self.linear if self.linear.rtol is not None else dataclasses.replace(self.linear, rtol=rtol)
        first = state.progress.steps == 0
        base = _tree.where(first, _tree.zeros_like(start), start)
        left = _tree.sub(b, operator.matvec(base))
        found = linear.differentiable_solve(solver, operator, left, _tree.where(first, start, _tree.zeros_like(start)))
        solved = _tree.add_scaled(base, 1, found.value)
        params = KKTSolution(*solved) if at.parts.constrained else solved.primal

        distance, size = judge(at, params)
        progress = self.advance(state.progress, params, distance, size=size, grad_evals=1, hvps=found.matvecs + 2)
        stuck = (progress.status == Status.MAX_STEPS) & ~(progress.residual <= state.progress.residual / 2)
        reason = jnp.where(found.converged, Status.STAGNATED, found.status)
        status = jnp.where(stuck, reason, progress.status)
        if program.E is not None and _tree.size(b) <= _COUNTED_UP_TO:
            status = jnp.where(_saddle(operator, b), Status.NEGATIVE_CURVATURE, status)
        return PlainState(params, dataclasses.replace(progress, status=status.astype(jnp.int32)))


def _system(program, z, params, constrained):
    """The system of the conditions of optimality, its right-hand side, and a start."""
    c = jnp.broadcast_to(program.c, z.shape).astype(z.dtype)

    def hessian(v):
        return jnp.asarray(apply(program.Q, v), v.dtype)

    if program.E is None:
        operator = linear.Operator(lambda v: KKTSolution(hessian(v.primal)), "positive_definite")
        return operator, KKTSolution(-c), KKTSolution(z)

    def push(v):
        return jnp.asarray(apply(program.E, v), v.dtype)

    rows = jax.eval_shape(push, z)
    pull = jax.linear_transpose(push, z)
    operator = linear.Operator(
        lambda v: KKTSolution(hessian(v.primal) + pull(v.dual_eq)[0], push(v.primal)), "symmetric"
    )
    b = KKTSolution(-c, jnp.broadcast_to(program.d, rows.shape).astype(z.dtype))
    return operator, b, KKTSolution(*params) if constrained else KKTSolution(z, jnp.zeros(rows.shape, z.dtype))


def _saddle(operator, b: KKTSolution) -> jax.Array:
    """Whether there are more negative eigenvalues than equalities: Q then has one along E z = 0."""
    flat, unravel = ravel_pytree(jax.lax.stop_gradient(b))
    columns = jax.vmap(lambda v: ravel_pytree(operator.matvec(unravel(v)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
    values = jnp.linalg.eigvalsh(jax.lax.stop_gradient(columns))
    rounding = flat.size * _tree.eps(flat) * jnp.max(jnp.abs(values))
    return jnp.sum(values < -rounding) > b.dual_eq.size
