"""The default choice of linear solver."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.linear._base import LinearSolver
from bilevel.linear._cg import CG
from bilevel.linear._direct import Direct
from bilevel.linear._gmres import GMRES
from bilevel.linear._lsmr import LSMR
from bilevel.linear._minres import MINRES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Auto(LinearSolver):
    """Pick by size and structure. It never squares a system, unless that is general, large and singular.

    `Direct` when small (by SVD if the operator may be singular); else `CG` where A is positive definite, `MINRES` where it
    is symmetric, or semidefinite and may be singular, `LSMR` where it is general and may be singular, `GMRES` where it is
    general.

    Args:
      direct_below: systems with fewer unknowns are factored.

    Statuses: those of the solver that is chosen.
    """

    direct_below: int = 512

    def attempt(self, operator, b, init, tolerance):
        """Hand over to the chosen solver."""
        return self._chosen(operator, b).attempt(operator, b, init, tolerance)

    def prepare(self, operator, like):
        """Hand over to the chosen solver."""
        return self._chosen(operator, like).prepare(operator, like)

    def preconditioned(self, preconditioner: Callable[[PyTree], PyTree] | None) -> LinearSolver:
        """`CG`, which takes it."""
        return CG(rtol=self.rtol, atol=self.atol, preconditioner=preconditioner)

    def choose(self, structure: str, size: int, singular: bool = False) -> LinearSolver:
        """The solver that serves a system of this structure and size."""
        if size < self.direct_below:
            chosen = Direct
        elif structure == "general":
            chosen = LSMR if singular else GMRES
        else:
            chosen = MINRES if structure == "symmetric" or singular else CG
        return chosen(rtol=self.rtol, atol=self.atol)

    def _chosen(self, operator, like):
        return self.choose(operator.structure, _tree.size(like), operator.singular)
