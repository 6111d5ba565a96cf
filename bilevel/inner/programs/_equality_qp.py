"""The solution of an equality-constrained quadratic program by one linear solve."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree, linear
from bilevel._needs import EQUALITIES_ALONE, PROGRAM
from bilevel._status import Status
from bilevel.inner._base import InnerSolver, PlainState
from bilevel.inner._judge import judge
from bilevel.inner.programs._program import program_of
from bilevel.problem import At

_COUNTED_UP_TO = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualityQP(InnerSolver):
    """Solve [[Q, Eᵀ], [E, 0]] (z, ν) = (−c, d), for a quadratic `bilevel.Program` without inequalities.

    params is a `KKTSolution`, or z if the problem has no constraint functions; without equalities the system is Q z = −c. If
    rounding keeps the answer from rtol, a further step solves for the remainder. Q must be positive definite along E z = 0; a
    saddle point ends as `NEGATIVE_CURVATURE`: up to 256 unknowns the signs of the eigenvalues are counted, and without
    equalities the linear solver detects it.

    Args:
      rtol, atol: bounds on the relative errors of the KKT conditions, as for `InnerSolver`.
      max_steps: limit on linear solves.
      linear: solver of the system; `linear.Auto()` factors a small one, and runs MINRES (CG without equalities) on a large
        one. If its rtol is None, it gets a tenth of this rtol.
      singular: equalities may be redundant; the multipliers are then the least ones.

    Raises:
      ValueError: in a solve, a program with inequalities.

    Reference: Nocedal & Wright, Numerical Optimization, 2006, section 16.1.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> onto_plane = bl.Program(lambda hparams, data: bl.QP(Q=jnp.eye(2), c=-hparams, E=jnp.ones((1, 2)), d=jnp.ones(1)))
      >>> start = bl.optimality.KKTSolution(jnp.zeros(2), jnp.zeros(1), None)
      >>> found = bl.inner.EqualityQP().solve(bl.Problem(inner=onto_plane), start, jnp.array([2.0, 2.0]))
      >>> bool(jnp.allclose(found.params.primal, 0.5) & jnp.allclose(found.params.dual_eq, 1.5))
      True
    """

    needs = (PROGRAM, EQUALITIES_ALONE)

    max_steps: int = 3
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.Auto)
    singular: bool = False

    def step(self, at: At, state: PlainState) -> PlainState:
        """Solve, from the second step on for the remainder; then judge the answer."""
        stated = at.quadratic_program()
        if stated.M is not None:
            raise ValueError(
                "inner.EqualityQP needs a quadratic program without inequalities, and this one has QP.M: use inner.OSQP"
            )
        program = program_of(self.name, at, state.params, 0, self.linear)
        if stated.E is None:
            structure, product = "positive_definite", lambda v: (program.hessian(v[0]), v[1])
        else:
            structure, product = "symmetric", lambda v: (program.hessian(v[0]) + program.pull(v[1]), program.push(v[0]))
        operator = linear.Operator(product, structure, singular=self.singular)
        b, start = (-program.c, program.bound), program.point(state.params)
        rtol = max(self.rtol, 4 * _tree.eps(b)) / 10
        solver = self.linear if self.linear.rtol is not None else dataclasses.replace(self.linear, rtol=rtol)
        first, zero = state.progress.steps == 0, _tree.zeros_like(start)
        base = _tree.where(first, zero, start)
        left = _tree.sub(b, operator.matvec(base))
        found = linear.differentiable_solve(solver, operator, left, _tree.where(first, start, zero))
        params = program.params(*_tree.add_scaled(base, 1, found.value))

        progress = self.advance(state.progress, params, *judge(at, params), grad_evals=1, hvps=found.matvecs + 2)
        stuck = (progress.status == Status.MAX_STEPS) & ~(progress.residual <= state.progress.residual / 2)
        reason = jnp.where(found.converged, Status.STAGNATED, found.status)
        status = jnp.where(stuck, reason, progress.status)
        if stated.E is not None and _tree.size(b) <= _COUNTED_UP_TO:
            status = jnp.where(_saddle(operator, b), Status.NEGATIVE_CURVATURE, status)
        return PlainState(params, progress.ending(status))


def _saddle(operator: linear.Operator, b: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Whether there are more negative eigenvalues than equalities, so that Q has one along E z = 0."""
    flat, unravel = ravel_pytree(jax.lax.stop_gradient(b))
    columns = jax.vmap(lambda v: ravel_pytree(operator.matvec(unravel(v)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
    values = jnp.linalg.eigvalsh(jax.lax.stop_gradient(columns))
    rounding = flat.size * _tree.eps(flat) * jnp.max(jnp.abs(values))
    return jnp.sum(values < -rounding) > b[1].size
