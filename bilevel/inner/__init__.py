"""Solvers of the inner problem. One contract, `InnerSolver`: `init`, `step`, and `solve`, which runs them."""

from bilevel.inner._adapters import Optax, Optimistix
from bilevel.inner._base import InnerSolution, InnerSolver, Progress
from bilevel.inner._fista import FISTA
from bilevel.inner._lbfgs import LBFGS
from bilevel.inner._mirror import MirrorDescent
from bilevel.inner._newton import Newton
from bilevel.inner._quadratic import Quadratic

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
]
