"""Operator splitting for quadratic programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree, linear
from bilevel._needs import PROGRAM, Need
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, SolveProgress
from bilevel.inner._judge import Verdict, judge
from bilevel.inner.programs._program import Systems, largest, positive, program_of
from bilevel.inner.programs._scales import Scales, equilibrate, infeasible, unbounded
from bilevel.problem import At

_STIFFER = 1e3  # ρ of equalities, relative to that of inequalities


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    params: PyTree  # the best so far
    verdict: Verdict  # on it
    x: jax.Array
    w: jax.Array  # of the shape of Ax, allowed
    y: jax.Array  # multipliers
    rho: jax.Array  # relative to the curvature
    factor: jax.Array  # of the system; empty where it is too large
    scales: Scales
    active: jax.Array  # inequalities with a multiplier
    age: jax.Array  # checks at which they have been the same
    progress: SolveProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class OSQP(InnerSolver):
    """Operator splitting (ADMM) for a convex quadratic `bilevel.Program`; params is a `KKTSolution`, or its primal part.

    With A the rows of E and M and w ≈ Ax within its bounds, each iteration solves one system with the same matrix,

        (Q + σI + Aᵀ diag(ρ) A) x̃ = σx − c + Aᵀ(ρ∘w − y),

    relaxes, clips, and moves the multipliers y. The matrix is factored once, and again when ρ is rebalanced; a large one
    is solved by products, from the last x̃. σ and ρ are in the units of an equilibrated program (a large one is scaled by
    rows only). As soon as the active inequalities are the same at two checks, the answer is polished: the program with these as
    equalities is solved, to rounding. `steps` counts ADMM iterations. Not differentiated: use `hypergrad.Implicit`.

    Statuses besides `CONVERGED` and `MAX_STEPS`: `BREAKDOWN` (the constraints contradict each other, or the loss is
    unbounded), `NEGATIVE_CURVATURE` (Q is not positive semidefinite; seen where it is factored).

    Args:
      rho: ρ of the inequalities at the start, 10³ times less than that of the equalities.
      sigma: σ.
      relaxation: in (0, 2).
      check_every: iterations from one check to the next.
      polish: polish the answer.
      max_dense: unknowns up to which the matrix is formed and factored.
      linear: solver of larger systems, for positive definite ones.

    Reference: Stellato, Banjac, Goulart, Bemporad & Boyd 2020.
    """

    differentiable: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = (PROGRAM,)

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
        _checks.require_positive("inner.OSQP", rho=self.rho, sigma=self.sigma, check_every=self.check_every)
        if not 0 < self.relaxation < 2:
            raise ValueError(f"inner.OSQP: relaxation must lie between 0 and 2, got {self.relaxation}")

    def init(self, at: At, params: PyTree) -> _State:
        """Measure, factor, and start from the point and the multipliers of params."""
        program = program_of("inner.OSQP", at, params)
        systems = self._systems(program)
        scales = equilibrate(program, systems.dense)
        x, y = program.point(params)
        rho = jnp.asarray(self.rho, x.dtype)
        weights, sigma = self._weights(program, scales, rho)
        lifted = systems.factor(0 * weights, _tree.eps(x) ** 0.5 * scales.columns)
        finite = jnp.isfinite(program.hessian(jnp.ones_like(x))).all()
        found = jnp.where(finite, Status.NEGATIVE_CURVATURE, Status.NON_FINITE)
        status = jnp.where(jnp.isfinite(lifted).all(), Status.MAX_STEPS, found).astype(jnp.int32)
        return _State(
            params=params,
            verdict=Verdict(jnp.array(jnp.inf, x.dtype), jnp.ones((), x.dtype)),
            x=x,
            w=program.project(program.push(x)),
            y=y,
            rho=rho,
            factor=systems.factor(weights, sigma),
            scales=scales,
            active=~program.equal & (y > 0),
            age=jnp.int32(0),
            progress=dataclasses.replace(SolveProgress.start(x.dtype), status=status),
        )

    def step(self, at: At, state: _State) -> _State:
        """`check_every` iterations, and a check."""
        program = program_of("inner.OSQP", at, state.params)
        systems, scales = self._systems(program), state.scales
        weights, sigma = self._weights(program, scales, state.rho)
        solve = systems.solver(state.factor, weights, sigma)

        def iteration(_, carry):
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
            # Again after twice as many checks: the set may be right, and the iterate not yet near enough.
            due = (age > 0) & (age & (age - 1) == 0)
            kept = program.equal | active
            point = _once(due, lambda point: systems.polish(scales.columns, scales.rows, kept, *point), point)
        params, verdict = self._better(at, state, program.params(*point))

        rho = self._balanced(program, state, x, w, y)
        factor = _once(rho != state.rho, lambda _: systems.factor(*self._weights(program, scales, rho)), state.factor)
        hopeless = unbounded(program, scales, x, x - state.x) | infeasible(program, scales, x, y - state.y)
        progress = self.advance(
            state.progress,
            params,
            verdict.distance,
            size=verdict.size,
            grad_evals=1,
            hvps=1,
            failed=hopeless | ~jnp.isfinite(x).all(),
            failure=Status.BREAKDOWN,
        )
        steps = state.progress.steps + self.check_every
        progress = dataclasses.replace(progress, steps=steps)
        return _State(params, verdict, x, w, y, rho, factor, scales, active, age, progress)

    def _systems(self, program):
        return Systems(program, program.c.size <= self.max_dense, self.linear)

    def _weights(self, program, scales, rho):
        """ρ for each row, and σ."""
        stiffness = jnp.where(program.equal, jnp.asarray(_STIFFER, rho.dtype), 1)
        return rho * stiffness * scales.rows, self.sigma * scales.columns

    def _better(self, at: At, state: _State, params: PyTree) -> tuple[PyTree, Verdict]:
        """The better one of a point and the best so far, with the verdict on it; the first one, whatever it is."""
        verdict = judge(at, params)
        old, new = (v.distance / positive(v.size) for v in (state.verdict, verdict))
        return _tree.where((new < old) | jnp.isinf(old), (params, verdict), (state.params, state.verdict))

    def _balanced(self, program, state, x, w, y):
        """ρ, changed where the primal and the dual error, each relative to its terms, are too far apart."""
        e, d = state.scales.residuals, state.scales.variables
        rows, product, pulled = program.push(x), program.hessian(x), program.pull(y)
        primal = _relative([rows, -w], e)
        dual = _relative([product, program.c, pulled], d)
        factor = jnp.clip(jnp.sqrt(primal / positive(dual)), 1e-3, 1e3)
        change = (primal > 0) & (dual > 0) & ((factor > 5) | (factor < 0.2))
        return jnp.where(change, jnp.clip(state.rho * factor, 1e-6, 1e6), state.rho)


def _once(wanted: jax.Array, function: Callable[[Any], Any], otherwise: Any) -> Any:
    """`function(otherwise)` where wanted. A loop, since under `vmap` a `cond` would do the work of both branches always."""
    _, found = jax.lax.while_loop(lambda s: s[0], lambda s: (jnp.array(False), function(s[1])), (wanted, otherwise))
    return found


def _relative(terms: list[jax.Array], scale: jax.Array) -> jax.Array:
    """The largest entry of a sum, relative to the largest of its terms."""
    return largest(scale * sum(terms)) / positive(jnp.stack([largest(scale * term) for term in terms]).max())
