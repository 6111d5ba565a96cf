"""Statements of an inner problem, from which the parts follow that conditions and solvers ask for."""

from bilevel.statements._base import Parts, Statement
from bilevel.statements._batches import Batches
from bilevel.statements._linear_model import LinearModel
from bilevel.statements._minimization import Minimization
from bilevel.statements._programs import QP, ConeProgram, Factored, Program, apply

__all__ = [
    "QP",
    "Batches",
    "ConeProgram",
    "Factored",
    "LinearModel",
    "Minimization",
    "Parts",
    "Program",
    "Statement",
    "apply",
]
