"""The contract of an inner solver: `init` and `step` over one explicit state, and the loop that runs them.

The stopping test (`_judge.py`) is scale-free: multiplying the loss or the variable by a constant changes nothing, and a warm
start makes it no harder to meet.
"""

import abc
import dataclasses
import inspect
from typing import Any, ClassVar, NamedTuple

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
    """How far a solve has come. All are scalars.

    Attributes:
      residual: ‖x − T(x)‖₂ / ‖x‖₂ for one (proximal) gradient step T of length about 1/L; see `InnerSolver` for problems without
        an inner loss.
      status: int32 code of `bilevel.Status`; `MAX_STEPS` while running.
      steps, grad_evals, hvps: iterations, gradients and Hessian-vector products of the inner loss so far.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> found = bl.inner.Newton().solve(problem, jnp.zeros(2), jnp.ones(2))
      >>> print(bl.Status(int(found.progress.status)).word, found.progress.steps, found.progress.residual < 1e-6)
      converged 2 True
    """

    residual: jax.Array
    status: jax.Array
    steps: jax.Array
    grad_evals: jax.Array
    hvps: jax.Array

    @classmethod
    def start(cls, dtype: Any, grad_evals: int = 0, hvps: int = 0) -> "SolveProgress":
        """The progress before the first step: nothing but the evaluations that `init` needed."""
        counts = (jnp.array(n, jnp.int32) for n in (Status.MAX_STEPS, 0, grad_evals, hvps))
        return cls(jnp.array(jnp.inf, dtype), *counts)

    def ending(self, status: jax.Array) -> "SolveProgress":
        """The same with another status."""
        return dataclasses.replace(self, status=status.astype(jnp.int32))


class PlainState(NamedTuple):
    """The state of a solver that carries only its point and its progress."""

    params: PyTree
    progress: SolveProgress


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InnerSolution:
    """What an inner solve returns.

    Attributes:
      params: the inner variable, with the structure, shapes and dtypes of the start.
      progress: how the solve ended.
      inverse: v ↦ H⁻¹v, the solver's symmetric positive definite estimate of the inverse Hessian, a `jax.tree_util.Partial`;
        None if it has none. `hypergrad.Implicit(precondition=True)` uses it.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> found = bl.inner.FISTA(max_steps=1, step_size=0.25).solve(problem, jnp.zeros(2), jnp.ones(2))
      >>> print(bl.Status(int(found.status)).word, found.steps, found.params)
      max_steps 1 [0.5 0.5]
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
        """The scale-free residual of the stopping test."""
        return self.progress.residual

    @property
    def steps(self) -> jax.Array:
        """Number of iterations, int32."""
        return self.progress.steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerSolver(abc.ABC):
    """Base class of all inner solvers: a subclass declares its `needs` and defines `step`, and `init` if its state has more.

    Both get the problem as an `At`: its functions at the hyperparameters and data of the solve, and the result of `prepare`.
    Unless a solver states otherwise, params is any pytree of floating-point arrays, and the three settings mean:

    Args:
      rtol: stop when one (proximal) gradient step of length 1/L moves params by less than `rtol` of its Euclidean norm; never
        tighter than four machine epsilons. For a fixed point the test is ‖x − T(x)‖ ≤ rtol · ‖x‖. For programs it bounds the
        largest error of the KKT conditions, each in the maximum norm and relative to the largest of its terms.
      atol: absolute floor of the same test, in units of params; for programs relative too.
      max_steps: limit on iterations; a solve that reaches it has the status `MAX_STEPS`.

    Raises:
      ValueError: a negative tolerance, or a setting that must be positive and is not.

    Example:
      >>> import dataclasses, jax.numpy as jnp, bilevel as bl
      >>> @dataclasses.dataclass(frozen=True, kw_only=True)
      ... class Descent(bl.inner.InnerSolver):
      ...     def step(self, at, state):
      ...         gradient = at.gradient(state.params)
      ...         progress = self.advance(state.progress, state.params, jnp.linalg.norm(gradient) / 4, grad_evals=1)
      ...         return state._replace(params=state.params - gradient / 4, progress=progress)
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> Descent().solve(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).params.round(3).tolist()
      [1.0, 2.0]
    """

    needs: ClassVar[tuple[Need, ...]] = (LOSS, NO_CONSTRAINTS)
    differentiable: ClassVar[bool] = True  # `step`, in reverse mode
    estimates_inverse: ClassVar[bool] = False  # of the Hessian, see `inverse`
    positive: ClassVar[tuple[str, ...]] = ()  # settings that must be positive unless None

    rtol: float = 1e-6
    atol: float = 1e-12
    max_steps: int = 1000

    def __post_init__(self) -> None:
        _checks.require_positive(self.name, **{key: getattr(self, key) for key in ("max_steps", *self.positive)})
        if self.rtol < 0 or self.atol < 0:
            raise ValueError(f"{self.name}: rtol and atol must not be negative")

    @property
    def name(self) -> str:
        """The name of the class in error messages."""
        return f"inner.{type(self).__name__}"

    def check(self, problem: Problem) -> None:
        """Raise ValueError, before anything is traced, if the solver does not suit this problem."""
        _needs.require(self.name, self.needs, problem.parts, lambda: _that_fit(problem.parts))

    def returns(self, problem: Problem) -> Kind:
        """The kind of point that a solve of this problem returns, as `optimality.Condition.takes` names kinds."""
        return problem.parts.kind

    def prepare(self, at: At) -> PyTree:
        """Compute once, for all outer steps, what depends on the data and at most on the shapes of hparams.

        Returns:
          A pytree of arrays, which `init` and `step` find in `at.prepared`; None for nothing.
        """
        del at

    def inverse(self, state: Any) -> Any:
        """v ↦ H⁻¹v at the end of a solve, as a `jax.tree_util.Partial`; None if the solver has no estimate."""
        del state

    def unrollable(self) -> "InnerSolver":
        """The solver to differentiate through: this one, or one whose step sizes also suit the derivative."""
        return self

    def init(self, at: At, params: PyTree) -> Any:
        """The state at the start; it has the attributes `params` and `progress`, and by default no other."""
        del at
        return PlainState(params, SolveProgress.start(_tree.dtype(params)))

    def confirm(self, at: At, state: Any) -> Any:
        """The state at the end of the iterations, judged once more; if its status is `MAX_STEPS` again, they continue."""
        del at
        return state

    @abc.abstractmethod
    def step(self, at: At, state: Any) -> Any:
        """One iteration; differentiable in reverse mode if the class is `differentiable`."""

    def solve(self, problem: Problem, params: PyTree, hparams: PyTree, data: PyTree = None) -> InnerSolution:
        """Iterate from params until the stopping test, a failure or the step limit.

        Under `vmap` each lane takes its own number of steps, and lanes that have ended cost nothing more. Outside `jax.jit` a
        solve is compiled once for a solver, a problem and the shapes of the arguments; arrays that the problem's functions close
        over are then constants, as under `jax.jit`. To differentiate the answer use `bilevel.custom_root`, not reverse mode
        through the iterations.

        Args:
          problem: what to solve.
          params: the start.
          hparams, data: handed to the functions of the problem.

        Returns:
          InnerSolution. A numerical failure raises nothing: check `status`.

        Raises:
          ValueError: the solver does not suit the problem, or two statements of the problem contradict each other.
        """
        leaves = jax.tree.leaves((params, hparams, data))
        if not all(isinstance(x, jax.typing.ArrayLike) and not isinstance(x, jax.core.Tracer) for x in leaves):
            return self.solve_at(self.prepared(At(problem, hparams, data)), params)
        solves = problem.__dict__.setdefault("_solves", {})
        key = self if _has_hash(self) else id(self)
        if key not in solves:
            self.check(problem)
            check_statements(problem, params, hparams, data)
            solves[key] = _compiled.compiled(_solve, self, problem), self
        return solves[key][0](params, hparams, data)

    def prepared(self, at: At) -> At:
        """`at` with the result of `prepare`, unless it has one."""
        return at if at.prepared is not None else at.replace(prepared=self.prepare(at))

    def solve_at(self, at: At, params: PyTree) -> InnerSolution:
        """`solve` inside a traced function; `at.prepared` must be the result of `prepare`."""

        def running(state: Any) -> jax.Array:
            return (state.progress.status == Status.MAX_STEPS) & (state.progress.steps < self.max_steps)

        def until_the_test(state: Any) -> Any:
            return iterate(running, lambda state, at: self.step(at, state), state, at)

        state = self.init(at, params)
        if type(self).confirm is InnerSolver.confirm:
            state = until_the_test(state)
        else:
            state = jax.lax.while_loop(running, lambda state: self.confirm(at, until_the_test(state)), state)
        return InnerSolution(state.params, state.progress, self.inverse(state))

    def advance(
        self,
        progress: SolveProgress,
        params: PyTree,
        distance: jax.Array,
        size: jax.Array | None = None,
        *,
        grad_evals: jax.Array | int,
        hvps: jax.Array | int = 0,
        steps: jax.Array | int = 1,
        failed: jax.Array | bool = False,
        failure: Status = Status.STAGNATED,
    ) -> SolveProgress:
        """The progress after an iteration that ended at params, `distance` from a solution (relative to `size`, or ‖params‖)."""
        norm = _tree.norm(params) if size is None else size
        rtol = max(self.rtol, 4 * _tree.eps(params))
        small = distance <= jnp.maximum(rtol * norm, self.atol)
        status = jnp.where(small, Status.CONVERGED, jnp.where(failed, failure, Status.MAX_STEPS))
        status = jnp.where(jnp.isfinite(distance) & jnp.isfinite(norm), status, Status.NON_FINITE)
        return SolveProgress(
            residual=distance / _tree.positive(norm),
            status=status.astype(jnp.int32),
            steps=progress.steps + steps,
            grad_evals=progress.grad_evals + jnp.asarray(grad_evals, jnp.int32),
            hvps=progress.hvps + jnp.asarray(hvps, jnp.int32),
        )


def hold(progress: SolveProgress, x: PyTree, step: PyTree, otherwise: PyTree) -> PyTree:
    """x with the derivative of the point `step` where x passed the stopping test, else the point `otherwise`."""
    return _tree.where(progress.status == Status.CONVERGED, _tree.with_derivative_of(step, x), otherwise)


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
