"""Operator splitting for quadratic programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree, linear
from bilevel._needs import PROGRAM
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner._judge import Verdict, judge, relative
from bilevel.inner.programs._program import Scales, VectorProgram, equilibrate, infeasible, program_of, unbounded
from bilevel.problem import At

_STIFFER = 1e3  # ρ of equalities, relative to that of inequalities


class _State(NamedTuple):
    params: PyTree  # the best point so far
    verdict: Verdict  # on it
    x: jax.Array
    w: jax.Array  # like Ax, within its bounds
    y: jax.Array  # multipliers
    rho: jax.Array  # relative to the curvature
    factor: jax.Array  # of the system; empty if it is too large
    scales: Scales
    active: jax.Array  # inequalities with a multiplier
    age: jax.Array  # checks at which these have been the same
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class OSQP(InnerSolver):
    """Operator splitting (ADMM) for a convex quadratic `bilevel.Program`; params is a `KKTSolution`, or its primal part.

    With A the rows of E and M and w ≈ Ax within its bounds, each iteration solves one system with the same matrix,

        (Q + σI + Aᵀ diag(ρ) A) x̃ = σx − c + Aᵀ(ρ∘w − y),

    relaxes, clips, and moves the multipliers y. The matrix is factored once, and again when ρ is rebalanced; a large one
    is solved by products, from the last x̃. σ and ρ are in the units of an equilibrated program (a large one is scaled by
    rows only). As soon as the active inequalities are the same at two checks, the answer is polished: the program with these as
    equalities is solved, to rounding. Not differentiated: use `hypergrad.Implicit`.

    Statuses besides `CONVERGED` and `MAX_STEPS`: `BREAKDOWN` (the constraints contradict each other, or the loss is
    unbounded), `NEGATIVE_CURVATURE` (Q is not positive semidefinite; detected only if the matrix is factored).

    Args:
      rtol, atol: bounds on the relative errors of the KKT conditions, as for `InnerSolver`.
      max_steps: limit on ADMM iterations, which `steps` counts.
      rho: ρ of the inequalities at the start, 10³ times less than that of the equalities.
      sigma: σ.
      relaxation: in (0, 2).
      check_every: iterations between two checks.
      polish: polish the answer.
      max_dense: number of unknowns up to which the matrix is formed and factored.
      linear: solver of larger systems, which are positive definite.

    Raises:
      ValueError: a setting out of its range; in a solve, multipliers in params that do not match the constraints.

    Reference: Stellato, Banjac, Goulart, Bemporad & Boyd 2020.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> nearest = bl.Program(lambda hparams, data: bl.QP(Q=jnp.eye(2), c=-hparams, M=-jnp.eye(2), h=jnp.zeros(2)))
      >>> start = bl.optimality.KKTSolution(jnp.zeros(2), None, jnp.zeros(2))
      >>> found = bl.inner.OSQP().solve(bl.Problem(inner=nearest), start, jnp.array([3.0, -1.0]))
      >>> bool(jnp.allclose(found.params.dual_ineq, jnp.array([0.0, 1.0]), atol=1e-4))
      True
    """

    differentiable = False
    needs = (PROGRAM,)
    positive = ("rho", "sigma", "check_every")

    max_steps: int = 20_000
    rho: float = 0.1
    sigma: float = 1e-6
    relaxation: float = 1.6
    check_every: int = 25
    polish: bool = True
    max_dense: int = 2000
    linear: linear.LinearSolver = dataclasses.field(default_factory=linear.CG)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.relaxation < 2:
            raise ValueError(f"inner.OSQP: relaxation must lie between 0 and 2, got {self.relaxation}")

    def init(self, at: At, params: PyTree) -> _State:
        """Scale and factor, and start from the point and the multipliers of params."""
        program = self._program(at, params)
        scales = equilibrate(program)
        x, y = program.point(params)
        rho = jnp.asarray(self.rho, x.dtype)
        weights, sigma = self._weights(program, scales, rho)
        lifted = program.factor(0 * weights, _tree.eps(x) ** 0.5 * scales.columns)
        finite = jnp.isfinite(program.hessian(jnp.ones_like(x))).all()
        reason = jnp.where(finite, Status.NEGATIVE_CURVATURE, Status.NON_FINITE)
        status = jnp.where(jnp.isfinite(lifted).all(), Status.MAX_STEPS, reason)
        return _State(
            params=params,
            verdict=Verdict(jnp.array(jnp.inf, x.dtype), jnp.ones((), x.dtype)),
            x=x,
            w=program.project(program.push(x)),
            y=y,
            rho=rho,
            factor=program.factor(weights, sigma),
            scales=scales,
            active=~program.equal & (y > 0),
            age=jnp.int32(0),
            progress=SolveProgress.start(x.dtype).ending(status),
        )

    def step(self, at: At, state: _State) -> _State:
        """`check_every` iterations, and a check."""
        program, scales = self._program(at, state.params), state.scales
        weights, sigma = self._weights(program, scales, state.rho)
        solve = program.solver(state.factor, weights, sigma)

        def iteration(_: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            x, w, y, ahead = carry
            ahead = solve(sigma * x - program.c + program.pull(weights * w - y), ahead)
            relaxed = self.relaxation * program.push(ahead) + (1 - self.relaxation) * w
            target = relaxed + y / weights
            w = program.project(target)
            return self.relaxation * ahead + (1 - self.relaxation) * x, w, weights * (target - w), ahead

        x, w, y, _ = jax.lax.fori_loop(0, self.check_every, iteration, (state.x, state.w, state.y, state.x))
        active = ~program.equal & (y > 0)
        age = jnp.where(jnp.all(active == state.active), state.age + 1, 0)
        point = x, y
        if self.polish:
            # Again after twice as many checks: the set may be right while the iterate is still too far away.
            due = (age > 0) & (age & (age - 1) == 0)
            kept = program.equal | active
            point = _once(due, lambda point: program.polish(scales.columns, scales.rows, kept, *point), point)
        params, verdict = self._better(at, state, program.params(*point))

        rho = self._balanced(program, state, x, w, y)
        factor = _once(rho != state.rho, lambda _: program.factor(*self._weights(program, scales, rho)), state.factor)
        hopeless = unbounded(program, scales, x, x - state.x) | infeasible(program, scales, x, y - state.y)
        progress = self.advance(
            state.progress,
            params,
            *verdict,
            grad_evals=1,
            hvps=1,
            steps=self.check_every,
            failed=hopeless | ~jnp.isfinite(x).all(),
            failure=Status.BREAKDOWN,
        )
        return _State(params, verdict, x, w, y, rho, factor, scales, active, age, progress)

    def _program(self, at: At, params: PyTree) -> VectorProgram:
        return program_of(self.name, at, params, self.max_dense, self.linear)

    def _weights(self, program: VectorProgram, scales: Scales, rho: jax.Array) -> tuple[jax.Array, jax.Array]:
        """ρ for each row, and σ."""
        stiffness = jnp.where(program.equal, jnp.asarray(_STIFFER, rho.dtype), 1)
        return rho * stiffness * scales.rows, self.sigma * scales.columns

    def _better(self, at: At, state: _State, params: PyTree) -> tuple[PyTree, Verdict]:
        """The better of a point and the best so far, with the verdict on it; the first point in any case."""
        verdict = judge(at, params)
        old, new = (v.distance / _tree.positive(v.size) for v in (state.verdict, verdict))
        return _tree.where((new < old) | jnp.isinf(old), (params, verdict), (state.params, state.verdict))

    def _balanced(self, program: VectorProgram, state: _State, x: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
        """ρ, changed where the primal and the dual error, each relative to its terms, differ too much."""
        e, d = state.scales.residuals, state.scales.variables
        primal, dual = (
            relative(scale * sum(terms), [scale * term for term in terms], x.dtype)
            for scale, terms in ((e, [program.push(x), -w]), (d, [program.hessian(x), program.c, program.pull(y)]))
        )
        factor = jnp.clip(jnp.sqrt(primal / _tree.positive(dual)), 1e-3, 1e3)
        change = (primal > 0) & (dual > 0) & ((factor > 5) | (factor < 0.2))
        return jnp.where(change, jnp.clip(state.rho * factor, 1e-6, 1e6), state.rho)


def _once(wanted: jax.Array, function: Callable[[Any], Any], otherwise: Any) -> Any:
    """`function(otherwise)` where wanted. A loop, because under `vmap` a `cond` always does the work of both branches."""
    _, found = jax.lax.while_loop(lambda s: s[0], lambda s: (jnp.array(False), function(s[1])), (wanted, otherwise))
    return found
