"""Any solver of optimistix under the contract, run as a whole."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._needs import LOSS, SMOOTH, Need
from bilevel._tree import PyTree
from bilevel.inner._base import InnerSolver, PlainState, SolveProgress
from bilevel.inner._judge import judge
from bilevel.problem import At, Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimistix(InnerSolver):
    """Any solver of optimistix, run as a whole; its answer is judged like every solver's.

    An answer that is not good enough is the start of another run, as long as each run halves the residual. A minimizer gets
    the inner loss, a least-squares solver `Problem.residuals`, a root finder the inner gradient. Its own tolerances should
    be tighter than rtol. Not differentiated: use `hypergrad.Implicit`.

    Args:
      solver: such as `optimistix.BFGS(rtol=1e-8, atol=1e-8)` or `optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)`.
      max_steps: limit of its steps.
    """

    differentiable: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = (LOSS, SMOOTH)

    solver: Any
    max_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._kind() is None:
            raise TypeError(
                "inner.Optimistix: solver must be a minimizer, a least-squares solver or a root finder of optimistix, such as "
                f"optimistix.BFGS(rtol=1e-8, atol=1e-8), got {self.solver!r}"
            )

    def check(self, problem: Problem) -> None:
        """Require a smooth problem, and residuals for a least-squares solver."""
        super().check(problem)
        if self._kind() == "least_squares" and problem.parts.residuals is None:
            raise ValueError(
                f"inner.Optimistix with {type(self.solver).__name__} needs residuals, and this one has no Problem.residuals: "
                "state the loss by them, or use a minimizer such as optimistix.BFGS"
            )

    def init(self, at: At, params: PyTree) -> PlainState:
        """Nothing to prepare."""
        return PlainState(params, SolveProgress.start(_tree.dtype(params)))

    def step(self, at: At, state: PlainState) -> PlainState:
        """One run, and its verdict."""
        import optimistix as optx

        run, function = {
            "minimise": (optx.minimise, lambda x, at: at.inner_loss(x)),
            "least_squares": (optx.least_squares, lambda x, at: at.residuals(x)),
            "root_find": (optx.root_find, lambda x, at: at.gradient(x)),
        }[self._kind() or "minimise"]
        frozen, start = jax.lax.stop_gradient((at, state.params))
        found = run(function, self.solver, start, frozen, max_steps=self.max_steps, throw=False)
        x = _tree.cast_like(jax.lax.stop_gradient(found.value), start)
        steps = jnp.maximum(jnp.asarray(found.stats["num_steps"], jnp.int32), 1)
        distance, norm = judge(at, x)
        better = distance / jnp.where(norm > 0, norm, 1) <= state.progress.residual / 2
        progress = self.advance(state.progress, x, distance, grad_evals=steps + 1, hvps=1, failed=~better)
        return PlainState(x, dataclasses.replace(progress, steps=state.progress.steps + steps))

    def _kind(self) -> str | None:
        import optimistix as optx

        kinds = {
            "minimise": optx.AbstractMinimiser,
            "least_squares": optx.AbstractLeastSquaresSolver,
            "root_find": optx.AbstractRootFinder,
        }
        return next((name for name, base in kinds.items() if isinstance(self.solver, base)), None)
