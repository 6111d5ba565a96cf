"""Solvers of the inner problem. One contract, `InnerSolver`: `init`, `step`, and `solve`, which runs them."""

from bilevel.inner._agreement import check_statements
from bilevel.inner._base import InnerSolution, InnerSolver, SolveProgress
from bilevel.inner.external._cvxpy import CVXPY
from bilevel.inner.external._linear_svc import SklearnLinearSVC
from bilevel.inner.external._python import Python
from bilevel.inner.external._scikit_learn import (
    SklearnElasticNet,
    SklearnLasso,
    SklearnLogisticRegression,
    SklearnRidge,
)
from bilevel.inner.external._scipy import SciPyMinimize, SciPyRoot
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
from bilevel.inner.second_order._newton import Newton, Quadratic
from bilevel.inner.second_order._optimistix import Optimistix
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
    """The solver that is used for a problem if none is named.

    `LBFGS` if it is smooth and unconstrained, `OSQP` for a quadratic program, `CVXPY` for a cone program, `Anderson` for a bare
    fixed point, else `FISTA`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> bl.inner.default(bl.Problem(fixed_point=lambda x, hparams, data: jnp.cos(x)))
      Anderson(rtol=1e-06, atol=1e-12, max_steps=5000, memory=5, damping=1.0)
    """
    parts = problem.parts
    if parts.kind == "conic":
        return CVXPY()
    if parts.kind == "kkt" and parts.quadratic_program is not None:
        return OSQP()
    if parts.fixed_point is not None:
        return Anderson()
    return LBFGS() if parts.smooth else FISTA()
