"""Solvers of the inner problem. One contract, `InnerSolver`: `init`, `step`, and `solve`, which runs them."""

from bilevel.inner._agreement import check_statements
from bilevel.inner._base import InnerSolution, InnerSolver, SolveProgress
from bilevel.inner.external import (
    CVXPY,
    Python,
    SciPyMinimize,
    SciPyRoot,
    SklearnElasticNet,
    SklearnLasso,
    SklearnLinearSVC,
    SklearnLogisticRegression,
    SklearnRidge,
)
from bilevel.inner.first_order._fire import FIRE
from bilevel.inner.first_order._fista import FISTA
from bilevel.inner.first_order._fixed_point import Anderson, FixedPointIteration
from bilevel.inner.first_order._lbfgs import LBFGS
from bilevel.inner.first_order._mirror import MirrorDescent
from bilevel.inner.first_order._optax import Optax
from bilevel.inner.linear_models._block_coordinate import BlockCoordinateDescent
from bilevel.inner.linear_models._ridge import Ridge
from bilevel.inner.programs._equality_qp import EqualityQP
from bilevel.inner.programs._osqp import OSQP
from bilevel.inner.second_order._levenberg import LevenbergMarquardt
from bilevel.inner.second_order._newton import Newton
from bilevel.inner.second_order._optimistix import Optimistix
from bilevel.inner.second_order._quadratic import Quadratic
from bilevel.inner.second_order._semismooth import SemismoothNewton
from bilevel.inner.second_order._trust_region import TrustRegion
from bilevel.problem import Problem

__all__ = [
    "CVXPY",
    "FIRE",
    "FISTA",
    "LBFGS",
    "OSQP",
    "Anderson",
    "BlockCoordinateDescent",
    "EqualityQP",
    "FixedPointIteration",
    "InnerSolution",
    "InnerSolver",
    "LevenbergMarquardt",
    "MirrorDescent",
    "Newton",
    "Optax",
    "Optimistix",
    "Python",
    "Quadratic",
    "Ridge",
    "SciPyMinimize",
    "SciPyRoot",
    "SemismoothNewton",
    "SklearnElasticNet",
    "SklearnLasso",
    "SklearnLinearSVC",
    "SklearnLogisticRegression",
    "SklearnRidge",
    "SolveProgress",
    "TrustRegion",
    "check_statements",
    "default",
]


def default(problem: Problem) -> InnerSolver:
    """The solver of a problem for which none is named.

    `LBFGS` if it is smooth and unconstrained, `OSQP` for a quadratic program, `CVXPY` for a cone program, `Anderson` for a bare
    fixed point, else `FISTA`.
    """
    parts = problem.parts
    if parts.kind == "conic":
        return CVXPY()
    if parts.kind == "kkt" and parts.quadratic_program is not None:
        return OSQP()
    if parts.fixed_point is not None:
        return Anderson()
    return LBFGS() if parts.smooth else FISTA()
