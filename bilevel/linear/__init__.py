"""Linear solvers: A x = b from products with A. One contract, `LinearSolver.solve`; every answer carries a status."""

from bilevel.linear._auto import Auto
from bilevel.linear._base import Attempt, LinearSolution, LinearSolver, Operator, differentiable_solve
from bilevel.linear._cg import CG
from bilevel.linear._direct import Direct
from bilevel.linear._gmres import GMRES
from bilevel.linear._wrapped import Wrapped, as_solver

__all__ = [
    "CG",
    "GMRES",
    "Attempt",
    "Auto",
    "Direct",
    "LinearSolution",
    "LinearSolver",
    "Operator",
    "Wrapped",
    "as_solver",
    "differentiable_solve",
]
