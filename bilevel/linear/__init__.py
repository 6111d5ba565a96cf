"""Linear solvers: A x = b from products with A. One contract, `LinearSolver.solve`; every answer has a status."""

from bilevel.linear._auto import Auto
from bilevel.linear._base import Attempt, LinearSolution, LinearSolver, Operator, Prepared, damped
from bilevel.linear._bicgstab import BiCGStab
from bilevel.linear._cg import CG
from bilevel.linear._damped import Damped
from bilevel.linear._differentiable import differentiable_solve
from bilevel.linear._direct import Direct
from bilevel.linear._gmres import GMRES
from bilevel.linear._lsmr import LSMR
from bilevel.linear._minres import MINRES
from bilevel.linear._neumann import Neumann
from bilevel.linear._normal_cg import NormalCG
from bilevel.linear._nystrom import Nystrom
from bilevel.linear._precondition import (
    DiagonalPreconditioner,
    LowRankPreconditioner,
    NystromPreconditioner,
    Preconditioner,
)
from bilevel.linear._refined import Refined
from bilevel.linear._system import Reduction, RootFunction, System
from bilevel.linear._wrapped import Wrapped, as_solver

__all__ = [
    "CG",
    "GMRES",
    "LSMR",
    "MINRES",
    "Attempt",
    "Auto",
    "BiCGStab",
    "Damped",
    "DiagonalPreconditioner",
    "Direct",
    "LinearSolution",
    "LinearSolver",
    "LowRankPreconditioner",
    "Neumann",
    "NormalCG",
    "Nystrom",
    "NystromPreconditioner",
    "Operator",
    "Preconditioner",
    "Prepared",
    "Reduction",
    "Refined",
    "RootFunction",
    "System",
    "Wrapped",
    "as_solver",
    "damped",
    "differentiable_solve",
]
