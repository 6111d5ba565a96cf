"""Solvers of the inner problem. One contract, `InnerSolver`: `init`, `step`, and `solve`, which runs them."""

from bilevel.inner._adapters import Optax, Optimistix
from bilevel.inner._base import InnerSolution, InnerSolver, Progress
from bilevel.inner._fista import FISTA
from bilevel.inner._lbfgs import LBFGS
from bilevel.inner._mirror import MirrorDescent
from bilevel.inner._newton import Newton
from bilevel.inner._quadratic import Quadratic
from bilevel.problem import Problem

__all__ = [
    "FISTA",
    "LBFGS",
    "InnerSolution",
    "InnerSolver",
    "MirrorDescent",
    "Newton",
    "Optax",
    "Optimistix",
    "Progress",
    "Quadratic",
    "default",
]


def default(problem: Problem) -> InnerSolver:
    """The solver of a problem for which none is named: `LBFGS` if it is smooth and unconstrained, else `FISTA`."""
    return LBFGS() if problem.smooth else FISTA()
