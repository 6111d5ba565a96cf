"""The contract of an inner solver: `init` and `step` over one explicit state, and the loop that runs them.

The stopping test is scale-free: a solver stops when one gradient (or proximal-gradient) step of length about 1/L would
move the inner variable by less than `rtol` of its own Euclidean norm. Multiplying the loss or the variable by a constant
changes nothing, and a warm start makes it no harder to meet. `_judge.py` has the same for fixed points, roots and programs.
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
from typing import Any, ClassVar

import jax
import jax.core
import jax.numpy as jnp

from bilevel import _checks, _compiled, _needs, _tree
from bilevel._needs import LOSS, NO_CONSTRAINTS, Need
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.inner._agreement import check_statements
from bilevel.inner._lanes import iterate
from bilevel.problem import At, Problem
from bilevel.statements import Parts
from bilevel.statements._base import Kind


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SolveProgress:
    """How far a solve has come.

    Attributes:
      residual: ‖x − T(x)‖₂ / ‖x‖₂ for one (proximal) gradient step T of length about 1/L (see `_judge.Verdict`).
      status: int32 code of `bilevel.Status`; `MAX_STEPS` while running.
      steps, grad_evals, hvps: iterations, gradients and Hessian-vector products of the inner loss so far.
    """

    residual: jax.Array
    status: jax.Array
    steps: jax.Array
    grad_evals: jax.Array
    hvps: jax.Array

    @classmethod
    def start(cls, dtype: Any, grad_evals: int = 0, hvps: int = 0) -> SolveProgress:
        """Nothing done but the products that `init` needed."""

        def count(n: int) -> jax.Array:
            return jnp.array(n, jnp.int32)

        return cls(jnp.array(jnp.inf, dtype), count(Status.MAX_STEPS), count(0), count(grad_evals), count(hvps))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlainState:
    """The state of a solver that carries nothing but its point and its progress."""

    params: PyTree
    progress: SolveProgress


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InnerSolution:
    """What an inner solve returns.

    Attributes:
      params: the inner variable.
      progress: how the solve ended.
      inverse: v ↦ H⁻¹v, the solver's estimate of the inverse Hessian, symmetric and positive definite, where it has one: a
        `jax.tree_util.Partial`. `hypergrad.Implicit(inverse=…)` uses it.
    """

    params: PyTree
    progress: SolveProgress
    inverse: Any = None

    @property
    def status(self) -> jax.Array:
        """int32 code of `bilevel.Status`."""
        return self.progress.status

    @property
    def residual(self) -> jax.Array:
        """The scale-free residual that the stopping test looks at."""
        return self.progress.residual

    @property
    def steps(self) -> jax.Array:
        """Iterations."""
        return self.progress.steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerSolver(abc.ABC):
    """Base of all inner solvers. A subclass declares its `needs`, and writes `init` and `step`.

    Both get the problem as an `At`: its functions at the hyperparameters and data of the solve, and what `prepare` made.

    Args:
      rtol: stop when one gradient step of length 1/L moves the variable by less than `rtol` of its norm; never tighter
        than four machine epsilons.
      atol: absolute floor of the same test, in units of the variable.
      max_steps: iteration limit.
    """

    needs: ClassVar[tuple[Need, ...]] = (LOSS, NO_CONSTRAINTS)
    differentiable: ClassVar[bool] = True  # `step`, in reverse mode
    estimates_inverse: ClassVar[bool] = False  # of the Hessian, see `inverse`

    rtol: float = 1e-6
    atol: float = 1e-12
    max_steps: int = 1000

    def __post_init__(self) -> None:
        _checks.require_positive(f"inner.{type(self).__name__}", max_steps=self.max_steps)
        if self.rtol < 0 or self.atol < 0:
            raise ValueError(f"inner.{type(self).__name__}: rtol and atol must not be negative")

    def check(self, problem: Problem) -> None:
        """Raise ValueError, before anything is traced, if the solver does not suit this problem."""
        _needs.require(f"inner.{type(self).__name__}", self.needs, problem.parts, lambda: _that_fit(problem.parts))

    def returns(self, problem: Problem) -> Kind:
        """The kind of point that a solve of this problem returns, as `optimality.Condition.takes` names kinds."""
        return problem.parts.kind

    def prepare(self, at: At) -> PyTree:
        """What depends on the data alone (of hparams only the shapes may matter), computed once for all outer steps.

        Returns:
          A pytree of arrays, which `init` and `step` find in `at.prepared`; None for nothing.
        """
        del at

    def inverse(self, state: Any) -> Any:
        """v ↦ H⁻¹v at the end of a solve, as a `jax.tree_util.Partial`; None where the solver knows nothing of it."""
        del state

    def unrollable(self) -> InnerSolver:
        """The solver to differentiate through: this one, or one whose steps suit the derivative as well as the point."""
        return self

    @abc.abstractmethod
    def init(self, at: At, params: PyTree) -> Any:
        """The state at the start; it has the attributes `params` and `progress`."""

    @abc.abstractmethod
    def step(self, at: At, state: Any) -> Any:
        """One iteration, differentiable in reverse mode where the class says so (`differentiable`)."""

    def solve(self, problem: Problem, params: PyTree, hparams: PyTree, data: PyTree = None) -> InnerSolution:
        """Iterate from params until the stopping test, a failure or the step limit.

        Under `vmap` each lane takes its own number of steps, and lanes that are done cost nothing more. Outside `jax.jit` a
        solve is compiled once for a solver, a problem and the shapes of the arguments; what the problem's functions close over
        is then a constant, as it is under `jax.jit`. Differentiate the answer by `bilevel.custom_root`, not in
        reverse through the iterations.

        Args:
          problem: what to solve.
          params: the start.
          hparams, data: handed to the functions of the problem.

        Returns:
          InnerSolution. Never raises on a numerical failure: look at `status`.

        Raises:
          ValueError: the solver does not suit the problem, or two statements of the problem contradict each other.
        """
        if not all(map(_is_concrete, jax.tree.leaves((params, hparams, data)))):
            return self.solve_at(self.prepared(At(problem, hparams, data)), params)
        solves = problem.__dict__.setdefault("_solves", {})
        key = self if _has_hash(self) else id(self)
        if key not in solves:
            self.check(problem)
            check_statements(problem, params, hparams, data)
            solves[key] = _compiled.compiled(_solve, self, problem), self
        return solves[key][0](params, hparams, data)

    def prepared(self, at: At) -> At:
        """`at`, with what `prepare` makes of it unless it is there."""
        return at if at.prepared is not None else at.replace(prepared=self.prepare(at))

    def solve_at(self, at: At, params: PyTree) -> InnerSolution:
        """`solve`, for what is traced already; `at.prepared` is what `prepare` made."""

        def running(state: Any) -> jax.Array:
            return (state.progress.status == Status.MAX_STEPS) & (state.progress.steps < self.max_steps)

        state = iterate(running, lambda state, at: self.step(at, state), self.init(at, params), at)
        return InnerSolution(state.params, state.progress, self.inverse(state))

    def advance(
        self,
        progress: SolveProgress,
        params: PyTree,
        distance: jax.Array,
        *,
        size: jax.Array | None = None,
        grad_evals: jax.Array | int,
        hvps: jax.Array | int = 0,
        failed: jax.Array | bool = False,
        failure: Status = Status.STAGNATED,
    ) -> SolveProgress:
        """The progress after one iteration that ended at params, `distance` from a solution (against `size`, or ‖params‖)."""
        norm = _tree.norm(params) if size is None else size
        rtol = max(self.rtol, 4 * _tree.eps(params))
        small = distance <= jnp.maximum(rtol * norm, self.atol)
        status = jnp.where(small, Status.CONVERGED, jnp.where(failed, failure, Status.MAX_STEPS))
        status = jnp.where(jnp.isfinite(distance) & jnp.isfinite(norm), status, Status.NON_FINITE)
        return SolveProgress(
            residual=distance / jnp.where(norm > 0, norm, 1),
            status=status.astype(jnp.int32),
            steps=progress.steps + 1,
            grad_evals=progress.grad_evals + jnp.asarray(grad_evals, jnp.int32),
            hvps=progress.hvps + jnp.asarray(hvps, jnp.int32),
        )


def _solve(solver: InnerSolver, problem: Problem, params: PyTree, hparams: PyTree, data: PyTree) -> InnerSolution:
    return solver.solve_at(solver.prepared(At(problem, hparams, data)), params)


def _that_fit(parts: Parts) -> str:
    fits = [f"inner.{cls.__name__}" for cls in _public(InnerSolver) if not _needs.unmet(cls.needs, parts)]
    return f"use {', '.join(fits)}" if fits else "no solver of bilevel.inner suits it"


def _public(base: type[InnerSolver]) -> list[type[InnerSolver]]:
    """Every public solver of this package, those that suit most problems first, then by name."""
    found = {each for child in base.__subclasses__() for each in (child, *_public(child))}
    own = {cls for cls in found if cls.__module__.startswith("bilevel.") and not inspect.isabstract(cls)}
    own = {cls for cls in own if not cls.__name__.startswith("_")}
    return sorted(own, key=lambda cls: (cls.__name__ not in ("FISTA", "LBFGS"), cls.__name__))


def _has_hash(solver: InnerSolver) -> bool:
    try:
        hash(solver)
    except TypeError:
        return False
    return True


def _is_concrete(leaf: Any) -> bool:
    return isinstance(leaf, jax.typing.ArrayLike) and not isinstance(leaf, jax.core.Tracer)
