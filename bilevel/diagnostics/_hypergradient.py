"""Is a derivative what differences of the whole solve say, and if not, which tolerance explains the gap?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _compiled, _tree, implicit, linear, optimality
from bilevel import hypergrad as hypergrads
from bilevel import inner as inners
from bilevel._status import describe
from bilevel._tree import PyTree
from bilevel.diagnostics._numeric import (
    Difference,
    directions_like,
    first_step,
    gap,
    moved,
    restricted,
    richardson,
    tangents_of,
)
from bilevel.problem import At, Problem


@dataclasses.dataclass(frozen=True)
class DerivativeReport:
    """A function's derivative against differences, along random directions; print it.

    Attributes:
      gaps: ‖J d − difference‖ relative to the larger of both, per direction.
      errors: the differences' own estimated relative error, per direction.
      dot_test: |⟨w, J d⟩ − ⟨Jᵀw, d⟩|/‖J d‖, the largest.
      tolerance: what the gaps are held against, beside ten times the differences' error.
      problems: a sentence for each thing that is wrong.
    """

    gaps: tuple[float, ...]
    errors: tuple[float, ...]
    dot_test: float
    tolerance: float
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        head = "check_derivative: " + ("fine" if self.ok else f"{len(self.problems)} problem(s)")
        return "\n".join(
            [head, *_rows(self.gaps, self.errors), f"  JVP against VJP   {self.dot_test:.1e}", *_marks(self)]
        )


@dataclasses.dataclass(frozen=True)
class HypergradientReport:
    """A hypergradient against differences of the whole inner solve; print it.

    Attributes:
      outer_loss: the outer loss at hparams.
      gaps: |⟨hypergradient, d⟩ − difference| relative to the larger of both, per random direction d.
      errors: the differences' own estimated relative error, per direction.
      solution: the inner solution's derivative against its differences, and its dot-product test; None where the
        estimator uses no optimality condition.
      causes: the largest gap after tightening the inner tolerance, the adjoint's, and both; empty if there is no gap.
      status: how the inner and adjoint solves ended, in words.
      tolerance: what the gaps are held against, beside ten times the differences' error.
      problems: a sentence for each thing that is wrong.
    """

    outer_loss: float
    gaps: tuple[float, ...]
    errors: tuple[float, ...]
    solution: DerivativeReport | None
    causes: dict[str, float]
    status: str
    tolerance: float
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        lines = [
            "check_hypergradient: " + ("fine" if self.ok else f"{len(self.problems)} problem(s)"),
            f"  outer loss {self.outer_loss:.6g}; solves {self.status}",
            "  hypergradient against differences of the whole solve",
            *_rows(self.gaps, self.errors),
        ]
        if self.solution is not None:
            lines += ["  derivative of the inner solution", *_rows(self.solution.gaps, self.solution.errors)]
            lines += [f"  JVP against VJP   {self.solution.dot_test:.1e}"]
        lines += [f"  gap with a tight {name:<18}{value:.1e}" for name, value in self.causes.items()]
        return "\n".join([*lines, *_marks(self)])


def check_derivative(
    function: Callable[..., PyTree],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    directions: int = 3,
    rtol: float | None = None,
    seed: int = 0,
) -> DerivativeReport:
    """Hold the derivative of any function, such as a solver under `custom_root`, against extrapolated differences.

    Args:
      function: called as function(*args); returns a pytree of floating-point arrays.
      *args: the point.
      argnums: which arguments to differentiate.
      directions: number of random directions; no more than there are unknowns.
      rtol: the gap that passes; None is ε^¼ (1e-4 in float64, 2e-2 in float32).
      seed: of the directions.

    Returns:
      DerivativeReport. The differences halve their step until rounding or the function's own tolerance shows, and
      estimate what error remains.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> bl.check_derivative(jnp.sin, jnp.array([0.3, 0.5])).ok
      True
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    chosen = tuple(jax.tree.map(jnp.asarray, args[i]) for i in numbers)

    def of_chosen(chosen: PyTree) -> PyTree:
        filled = list(args)
        for i, value in zip(numbers, chosen, strict=True):
            filled[i] = value
        return function(*filled)

    value = of_chosen(chosen)
    directions = min(directions, _tree.size(_tree.split(chosen)[0]))
    along = directions_like(chosen, directions, seed)
    cotangent = jax.tree.map(lambda w: w[0], directions_like(value, 1, seed + 1))
    gaps, errors, dots = [], [], []
    for k in range(directions):
        d = jax.tree.map(lambda leaf, k=k: leaf[k], along)
        _, push = jax.jvp(of_chosen, (chosen,), (tangents_of(chosen, d),))
        _, pull = jax.vjp(of_chosen, chosen)
        pulled = restricted(pull(cotangent)[0], d)
        difference = richardson(lambda t, d=d: of_chosen(moved(chosen, t, d)), first_step(chosen))
        gaps.append(gap(push, difference.value))
        errors.append(_relative_error(difference))
        norm = float(_tree.norm(push))
        defect = abs(float(_tree.vdot(cotangent, push)) - float(_tree.vdot(pulled, d)))
        dots.append(defect / norm if norm > 0 else defect)
    tolerance = _tree.eps(value) ** 0.25 if rtol is None else rtol
    problems = _disagreements("the derivative", gaps, errors, tolerance)
    if not max(dots) <= 100 * _tree.eps(value) ** 0.5:
        problems.append(
            f"JVP and VJP disagree by {max(dots):.1e}: a transpose is missing, or a linear solve is too loose"
        )
    return DerivativeReport(tuple(gaps), tuple(errors), max(dots), tolerance, tuple(problems))


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
    """Hold the hypergradient against differences of the outer loss at re-solved inner problems, and explain a gap.

    The differences solve the inner problem as tightly as its precision allows. If the hypergradient is off, it is computed
    again with a tight inner solve, a tight adjoint solve and both: what closes the gap is to blame. If nothing does, the
    condition does not hold at the solution, or the point is at a kink.

    Args:
      problem, hparams, params, data, inner, hypergrad: as for `minimize`.
      directions: number of random directions in hparams; no more than there are unknowns.
      rtol: the gap that passes; None is ε^¼ (1e-4 in float64, 2e-2 in float32).
      seed: of the directions.

    Returns:
      HypergradientReport, readable by `print`.

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

    found = _compiled.compiled(_estimate, problem, inner, hypergrad)(params, hparams, data)
    value = _compiled.compiled(_value, problem, tight)
    directions = min(directions, _tree.size(_tree.split(hparams)[0]))
    along = directions_like(hparams, directions, seed)
    along = [jax.tree.map(lambda leaf, k=k: leaf[k], along) for k in range(directions)]
    differences = [
        richardson(lambda t, d=d: value(found.params, moved(hparams, t, d), data), first_step(hparams)) for d in along
    ]

    def gaps_of(grad: PyTree) -> list[float]:
        return [gap(_tree.vdot(grad, d), each.value) for d, each in zip(along, differences, strict=True)]

    gaps, errors = gaps_of(found.grad), [_relative_error(each) for each in differences]
    tolerance = _tree.eps(params) ** 0.25 if rtol is None else rtol
    problems, causes = _disagreements("the hypergradient", gaps, errors, tolerance), {}
    if _too_large(gaps, errors, tolerance):
        tightened = {
            name: gaps_of(_compiled.compiled(_estimate, problem, solver, estimator)(params, hparams, data).grad)
            for name, (solver, estimator) in _tightened(inner, tight, hypergrad).items()
        }
        causes = {name: max(each) for name, each in tightened.items()}
        problems.append(_blame(tightened, errors, tolerance))
    status = describe(int(found.status))
    if any(bool(solve.failed) for solve in found.solves.values()):
        problems.append(f"a solve did not converge, {status}")
    solution, solver = None, hypergrad.adjoint_solver()
    if solver is not None:
        derivative = _compiled.compiled(_solution, problem, tight, solver)
        solution = check_derivative(
            lambda hparams: derivative(found.params, hparams, data),
            hparams,
            directions=directions,
            rtol=tolerance,
            seed=seed,
        )
        problems += [f"the inner solution: {each}" for each in solution.problems]
    return HypergradientReport(
        float(found.outer_loss), tuple(gaps), tuple(errors), solution, causes, status, tolerance, tuple(problems)
    )


def _estimate(
    problem: Problem,
    inner: inners.InnerSolver,
    hypergrad: hypergrads.Estimator,
    params: PyTree,
    hparams: PyTree,
    data: PyTree,
) -> hypergrads.Hypergradient:
    return hypergrad.run(problem, inner, params, hparams, data)


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


def _blame(tightened: dict[str, list[float]], errors: Sequence[float], tolerance: float) -> str:
    closing = [name for name, gaps in tightened.items() if not _too_large(gaps, errors, tolerance)]
    if closing:
        return f"the gap closes with a tight {closing[0]}: lower it"
    return (
        "no tolerance explains the gap: the optimality condition does not hold at the solution (try check_optimality), the "
        "inner solve stops at different points, or a coordinate sits at a kink"
    )


def _disagreements(what: str, gaps: Sequence[float], errors: Sequence[float], tolerance: float) -> list[str]:
    problems = []
    if not np.all(np.isfinite(gaps)):
        problems.append(f"{what} is not finite")
    elif _too_large(gaps, errors, tolerance):
        problems.append(f"{what} is off by {max(gaps):.1e}, and differences are good to {max(errors):.1e}")
    if not max(errors) <= max(tolerance, 1e-2):
        problems.append(
            f"differences do not settle (error {max(errors):.1e}): the function is not smooth along this way, or is "
            "computed too loosely to judge its derivative"
        )
    return problems


def _too_large(gaps: Sequence[float], errors: Sequence[float], tolerance: float) -> bool:
    return any(not g <= max(tolerance, 10 * e) for g, e in zip(gaps, errors, strict=True))


def _relative_error(difference: Difference) -> float:
    norm = float(np.linalg.norm(difference.value))
    return difference.error / norm if norm > 0 else difference.error


def _rows(gaps: Sequence[float], errors: Sequence[float]) -> list[str]:
    return [
        f"    direction {k}: off by {g:.1e}, differences good to {e:.1e}"
        for k, (g, e) in enumerate(zip(gaps, errors, strict=True))
    ]


def _marks(report: DerivativeReport | HypergradientReport) -> list[str]:
    return [f"  ✗ {problem}" for problem in report.problems]
