"""Any solver of optimistix under the contract, run as a whole."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._needs import LOSS, SMOOTH
from bilevel.inner._base import InnerSolver, PlainState
from bilevel.inner._judge import judge
from bilevel.problem import At, Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimistix(InnerSolver):
    """Any solver of optimistix, run as a whole; its answer is judged like that of every `InnerSolver`.

    An answer that misses the tolerance is the start of another run, as long as each run halves the residual. A minimizer gets
    the inner loss, a least-squares solver `Problem.residuals`, a root finder the inner gradient. Not differentiated: use
    `hypergrad.Implicit`.

    Args:
      rtol, atol: judge the answer, as for `InnerSolver`; the solver's own tolerances should be tighter.
      max_steps: limit on the steps of each run.
      solver: such as `optimistix.BFGS(rtol=1e-8, atol=1e-8)` or `optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)`.

    Raises:
      TypeError: solver is none of optimistix's minimizers, least-squares solvers and root finders.

    Example:
      >>> import jax.numpy as jnp, optimistix, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> solver = bl.inner.Optimistix(solver=optimistix.BFGS(rtol=1e-6, atol=1e-6))
      >>> print(solver.solve(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).params.round(3))
      [1. 2.]
    """

    differentiable = False
    needs = (LOSS, SMOOTH)

    solver: Any
    max_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._runner() is None:
            raise TypeError(
                "inner.Optimistix: solver must be a minimizer, a least-squares solver or a root finder of optimistix, such as "
                f"optimistix.BFGS(rtol=1e-8, atol=1e-8), got {self.solver!r}"
            )

    def check(self, problem: Problem) -> None:
        """Require a smooth problem, and residuals for a least-squares solver."""
        import optimistix as optx

        super().check(problem)
        if isinstance(self.solver, optx.AbstractLeastSquaresSolver) and problem.parts.residuals is None:
            raise ValueError(
                f"inner.Optimistix with {type(self.solver).__name__} needs residuals, and this one has no Problem.residuals: "
                "state the loss by them, or use a minimizer such as optimistix.BFGS"
            )

    def step(self, at: At, state: PlainState) -> PlainState:
        """One run, and its verdict."""
        run, function = self._runner()
        frozen, start = jax.lax.stop_gradient((at, state.params))
        found = run(function, self.solver, start, frozen, max_steps=self.max_steps, throw=False)
        x = _tree.cast_like(jax.lax.stop_gradient(found.value), start)
        steps = jnp.maximum(jnp.asarray(found.stats["num_steps"], jnp.int32), 1)
        distance, norm = judge(at, x)
        better = distance / _tree.positive(norm) <= state.progress.residual / 2
        spent = {"grad_evals": steps + 1, "hvps": 1, "steps": steps}
        return PlainState(x, self.advance(state.progress, x, distance, **spent, failed=~better))

    def _runner(self) -> Any:
        """The function of optimistix that runs the solver, with the function of (x, at) that it takes; None if there is none."""
        import optimistix as optx

        runners = {
            optx.AbstractMinimiser: (optx.minimise, lambda x, at: at.inner_loss(x)),
            optx.AbstractLeastSquaresSolver: (optx.least_squares, lambda x, at: at.residuals(x)),
            optx.AbstractRootFinder: (optx.root_find, lambda x, at: at.gradient(x)),
        }
        return next((runner for base, runner in runners.items() if isinstance(self.solver, base)), None)
