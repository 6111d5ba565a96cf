"""CVXPY's solvers, for quadratic and cone programs."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from bilevel._needs import PROGRAM_OR_CONES
from bilevel._tree import PyTree
from bilevel.inner.external import _callback
from bilevel.inner.external._base import Answer, Foreign, _External, own_options
from bilevel.inner.external._programs import SparseProgram, matrix, refine_conic, solve_conic
from bilevel.optimality import ConicPoint, KKTSolution
from bilevel.problem import At, Problem
from bilevel.statements import QP, ConeProgram

_TIGHT = {
    "CLARABEL": {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12},
    "SCS": {"eps_abs": 1e-10, "eps_rel": 1e-10},
    "OSQP": {"eps_abs": 1e-10, "eps_rel": 1e-10, "polishing": False},
}
_LIMIT = {"CLARABEL": "max_iter", "SCS": "max_iters", "OSQP": "max_iter"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CVXPY(_External):
    """A quadratic or a cone program by CVXPY (`pip install "bilevel[external]"`).

    For a quadratic program, minimize ½⟨z, Qz⟩ + ⟨c, z⟩ subject to Ez = d, Mz ≤ h, params is a `KKTSolution`, or z if the
    problem has no constraint functions; the last digits of the answer come from one solve of the KKT system of the active
    constraints. Matrices that are functions are applied to all unit vectors. For a cone program params is a `ConicPoint`; the
    last digits come from Newton's method on the embedding's residual. rtol, atol and statuses are as for `Python`.

    Args:
      max_steps: limit on the solver's iterations.
      solver: OSQP takes quadratic programs only.
      options: of the solver, by its own names, in place of the tight defaults here.

    Raises:
      ValueError, TypeError: an unknown solver; options that are not a mapping.
      ImportError: from `check`, if a package is not installed.

    References: Diamond & Boyd 2016; Busseti, Moursi & Boyd 2019 (refinement).

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> nearest = bl.Program(lambda hparams, data: bl.QP(Q=jnp.eye(2), c=-hparams, M=-jnp.eye(2), h=jnp.zeros(2)))
      >>> start = bl.optimality.KKTSolution(jnp.zeros(2), None, jnp.zeros(2))
      >>> found = bl.inner.CVXPY().solve(bl.Problem(inner=nearest), start, jnp.array([3.0, -1.0]))
      >>> bool(jnp.allclose(found.params.primal, jnp.array([3.0, 0.0]), atol=1e-4))
      True
    """

    needs = (PROGRAM_OR_CONES,)

    max_steps: int = 100_000
    solver: Literal["CLARABEL", "SCS", "OSQP"] = "CLARABEL"
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in _TIGHT:
            raise ValueError(f"inner.CVXPY: solver must be CLARABEL, SCS or OSQP, got {self.solver!r}")
        object.__setattr__(self, "options", own_options(self.name, self.options))

    def check(self, problem: Problem) -> None:
        """Require a program that the solver takes, and the packages."""
        super().check(problem)
        if problem.parts.quadratic_program is None and self.solver == "OSQP":
            raise ValueError(
                "inner.CVXPY: OSQP needs a quadratic program, and this one is a cone program: use solver CLARABEL "
                "or SCS"
            )
        for package in ("cvxpy", self.solver.lower()):
            if importlib.util.find_spec(package) is None:
                raise ImportError(
                    f'inner.CVXPY needs the package {package}, which is not installed: pip install "bilevel[external]"'
                )

    def _foreign(self, at: At, start: PyTree) -> tuple[Foreign, PyTree]:
        if at.parts.quadratic_program is not None:
            return self._quadratic(at.quadratic_program())
        return self._conic(at.cone_program())

    def _quadratic(self, program: QP) -> tuple[Foreign, PyTree]:
        zero = jnp.zeros_like(program.c)
        found = {name: matrix(getattr(program, name), program.c) for name in ("Q", "E", "M")}
        sides = {
            "d": None if program.E is None else -program.equality(zero),
            "h": None if program.M is None else -program.inequality(zero),
        }
        arrays = QP(c=program.c, **{name: array for name, (array, _) in found.items()}, **sides)
        columns = QP(c=None, **{name: count for name, (_, count) in found.items()})

        def foreign(start: PyTree, inputs: QP) -> Answer:
            whole = SparseProgram.of(_callback.in_scipy(inputs), columns)
            solved = whole.polish(whole.solve(self._minimize))
            if not isinstance(start, KKTSolution):
                return Answer(solved.primal.reshape(start.shape), solved.steps)
            duals = np.split(solved.dual, [whole.equalities])
            parts = zip((solved.primal, *duals), start, strict=True)
            return Answer(KKTSolution(*(None if b is None else a.reshape(b.shape) for a, b in parts)), solved.steps)

        return foreign, arrays

    def _conic(self, program: ConeProgram) -> tuple[Foreign, PyTree]:
        cones, refine = program.cones, refine_conic(program.cones)

        def foreign(start: PyTree, inputs: PyTree) -> Answer:
            del start
            c, e, d = inputs
            solved = refine(solve_conic(c, e, d, cones, self._minimize), c, e, d)
            return Answer(ConicPoint(solved.primal, solved.dual - solved.slack, np.ones(())), solved.steps)

        return foreign, tuple(program[:3])

    def _minimize(self, objective: Any, constraints: list[Any]) -> int:
        """Solve, which sets the variables, and return the iterations."""
        import cvxpy as cp

        program = cp.Problem(cp.Minimize(objective), constraints)
        limit = {_LIMIT[self.solver]: self.max_steps}
        program.solve(solver=self.solver, **{**_TIGHT[self.solver], **limit, **(self.options or {})})
        if program.status not in ("optimal", "optimal_inaccurate"):
            raise RuntimeError(f"{self.solver} ended with the status {program.status}")
        return int(program.solver_stats.num_iters or 1)
