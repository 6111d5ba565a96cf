"""Solvers of the inner problem. One contract, `InnerSolver`: `init`, `step`, and `solve`, which runs them."""

from bilevel.inner._base import InnerSolution, InnerSolver, Progress
from bilevel.inner._block_coordinate import BlockCoordinateDescent
from bilevel.inner._equality_qp import EqualityQP
from bilevel.inner._fire import FIRE
from bilevel.inner._fista import FISTA
from bilevel.inner._fixed_point import Anderson, FixedPointIteration
from bilevel.inner._lbfgs import LBFGS
from bilevel.inner._levenberg import LevenbergMarquardt
from bilevel.inner._mirror import MirrorDescent
from bilevel.inner._newton import Newton
from bilevel.inner._optax import Optax
from bilevel.inner._optimistix import Optimistix
from bilevel.inner._osqp import OSQP
from bilevel.inner._quadratic import Quadratic
from bilevel.inner._ridge import Ridge
from bilevel.inner._semismooth import SemismoothNewton
from bilevel.inner._trust_region import TrustRegion
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
    "Progress",
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
    "TrustRegion",
    "default",
]


def default(problem: Problem) -> InnerSolver:
    """The solver of a problem for which none is named.

    `LBFGS` if it is smooth and unconstrained, `OSQP` for a quadratic program, `CVXPY` for a cone program, `Anderson` for a bare
    fixed point, else `FISTA`.
    """
    if problem.cone_program is not None:
        return CVXPY()
    if problem.constrained and problem.quadratic_program is not None:
        return OSQP()
    if problem.inner_loss is None and problem.fixed_point is not None:
        return Anderson()
    return LBFGS() if problem.smooth else FISTA()
