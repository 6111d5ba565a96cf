"""Is a hypergradient the one that differences of the whole solve give, and if not, which tolerance explains the gap?"""

import dataclasses

import jax

from bilevel import _compiled, _tree, implicit, linear, optimality
from bilevel import hypergrad as hypergrads
from bilevel import inner as inners
from bilevel._status import describe
from bilevel._tree import PyTree
from bilevel.diagnostics._derivative import DerivativeReport, check_derivative
from bilevel.diagnostics._numeric import Checked, Comparison, compare, differences, each_direction
from bilevel.problem import At, Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class HypergradientReport(Comparison, Checked):
    """A hypergradient against differences of the whole inner solve; readable by `print`.

    Attributes:
      outer_loss: the outer loss at hparams.
      gaps: |⟨hypergradient, d⟩ − difference| relative to the larger of both, per random direction d.
      errors, tolerance, problems: as in `DerivativeReport`.
      solution: the inner solution's derivative against its differences, and its dot-product test; None where the
        estimator uses no optimality condition.
      causes: the largest gap after tightening the inner tolerance, the adjoint's, and both; empty if there is no gap.
      status: how the inner and adjoint solves ended, in words.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(lambda x, h, d: (x - h) ** 2, lambda x, h, d: x**2)
      >>> report = bl.check_hypergradient(problem, jnp.array(3.0), jnp.array(0.0), None, hypergrad=bl.hypergrad.Unrolled())
      >>> report.ok, round(report.outer_loss, 3), report.causes, report.solution
      (True, 9.0, {}, None)
    """

    outer_loss: float
    solution: DerivativeReport | None
    causes: dict[str, float]
    status: str

    def __str__(self) -> str:
        lines = [
            f"  outer loss {self.outer_loss:.6g}; solves {self.status}",
            "  hypergradient against differences of the whole solve",
            *self.lines(),
        ]
        if self.solution is not None:
            lines += ["  derivative of the inner solution", *self.solution.lines()]
        lines += [f"  gap with a tight {name:<18}{value:.1e}" for name, value in self.causes.items()]
        return self._printed("check_hypergradient", lines)


def check_hypergradient(
    problem: Problem,
    hparams: PyTree,
    params: PyTree,
    data: PyTree,
    *,
    inner: inners.InnerSolver | None = None,
    hypergrad: hypergrads.Estimator | None = None,
    directions: int = 3,
    rtol: float | None = None,
    seed: int = 0,
) -> HypergradientReport:
    """Compare the hypergradient with differences of the outer loss at re-solved inner problems, and explain a gap.

    The differences solve the inner problem as tightly as its precision allows. If the hypergradient is off, it is computed
    again with a tight inner solve, a tight adjoint solve and both; the report blames the one that closes the gap. If none does,
    the condition does not hold at the solution, or the point is at a kink.

    Args:
      problem, hparams, params, data, inner, hypergrad: as for `minimize`; ValueError if they do not go together.
      directions: number of random directions in hparams; no more than there are unknowns.
      rtol: the relative gap that passes; None is ε^¼ (1e-4 in float64, 2e-2 in float32).
      seed: seed of the directions.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(
      ...     inner_loss=lambda x, theta, y: jnp.sum((x - y) ** 2) + jnp.exp(theta) * jnp.sum(x**2),
      ...     outer_loss=lambda x, theta, y: jnp.sum((x - 1.0) ** 2),
      ... )
      >>> bl.check_hypergradient(problem, jnp.array(0.3), jnp.zeros(2), jnp.array([2.0, 3.0])).ok
      True
    """
    inner = inner or inners.default(problem)
    hypergrad = hypergrad or hypergrads.Implicit()
    reasons = hypergrads.misfits(problem, inner, hypergrad)
    if reasons:
        raise ValueError("; and ".join(reasons))
    hparams, params, data = _tree.as_arrays(hparams), _tree.as_arrays(params), _tree.as_data(data)
    inners.check_statements(problem, params, hparams, data)
    tight = dataclasses.replace(inner, rtol=0.0, max_steps=100 * inner.max_steps)
    tolerance = _tree.eps(params) ** 0.25 if rtol is None else rtol
    along = each_direction(hparams, directions, seed)

    def estimate(inner: inners.InnerSolver, hypergrad: hypergrads.Estimator) -> hypergrads.Hypergradient:
        return _compiled.compiled(type(hypergrad).run, hypergrad, problem, inner)(params, hparams, data)

    found = estimate(inner, hypergrad)
    value = _compiled.compiled(_value, problem, tight)
    expected = differences(lambda hparams: value(found.params, hparams, data), hparams, along)

    def compared(grad: PyTree) -> Comparison:
        return compare([_tree.vdot(grad, d) for d in along], expected, tolerance)

    comparison = compared(found.grad)
    problems, causes = comparison.complaints("the hypergradient"), {}
    if comparison.too_large:
        options = _tightened(inner, tight, hypergrad)
        tightened = {name: compared(estimate(*parts).grad) for name, parts in options.items()}
        causes = {name: max(each.gaps) for name, each in tightened.items()}
        problems.append(_blame(tightened))
    status = describe(int(found.status))
    if any(solve.failed for solve in found.solves.values()):
        problems.append(f"a solve did not converge, {status}")
    solution, solver = None, hypergrad.adjoint_solver()
    if solver is not None:
        of_all = _compiled.compiled(_solution, problem, tight, solver)
        point = found.params, hparams, data
        solution = check_derivative(of_all, *point, argnums=1, directions=directions, rtol=tolerance, seed=seed)
        problems += [f"the inner solution: {each}" for each in solution.problems]
    return HypergradientReport(
        **vars(comparison),
        outer_loss=float(found.outer_loss),
        solution=solution,
        causes=causes,
        status=status,
        problems=tuple(problems),
    )


def _value(problem: Problem, inner: inners.InnerSolver, params: PyTree, hparams: PyTree, data: PyTree) -> jax.Array:
    """The outer loss at the inner solution."""
    at = inner.prepared(At(problem, hparams, data))
    return at.outer_loss(inner.solve_at(at, params).params)


def _solution(
    problem: Problem,
    inner: inners.InnerSolver,
    solver: linear.LinearSolver,
    params: PyTree,
    hparams: PyTree,
    data: PyTree,
) -> PyTree:
    """The inner solution, differentiated by the problem's condition."""

    @implicit.custom_root(optimality.bind(problem), solve=solver, on_failure="ignore")
    def solution(init: PyTree, hparams: PyTree, data: PyTree) -> PyTree:
        return inner.solve_at(inner.prepared(At(problem, hparams, data)), init).params

    return solution(params, hparams, data)


def _tightened(
    inner: inners.InnerSolver, tight: inners.InnerSolver, hypergrad: hypergrads.Estimator
) -> dict[str, tuple[inners.InnerSolver, hypergrads.Estimator]]:
    """The parts with one tolerance, or both, as tight as can be."""
    options = {"inner rtol": (tight, hypergrad)}
    solver = hypergrad.adjoint_solver()
    if solver is not None:
        exact = hypergrad.with_adjoint_solver(dataclasses.replace(solver, rtol=0.0, atol=0.0))
        options |= {"adjoint rtol": (inner, exact), "inner and adjoint": (tight, exact)}
    return options


def _blame(tightened: dict[str, Comparison]) -> str:
    closing = [name for name, comparison in tightened.items() if not comparison.too_large]
    if closing:
        return f"the gap closes with a tight {closing[0]}: lower it"
    return (
        "no tolerance explains the gap: the optimality condition does not hold at the solution (try check_optimality), the "
        "inner solve stops at different points, or a coordinate sits at a kink"
    )
