"""The default choice of linear solver."""

from __future__ import annotations

import dataclasses

from bilevel import _tree
from bilevel.linear._base import LinearSolver
from bilevel.linear._cg import CG
from bilevel.linear._direct import Direct
from bilevel.linear._gmres import GMRES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Auto(LinearSolver):
    """Pick by size and structure: `Direct` when small, `CG` when positive definite, else `GMRES`. Never squares a system.

    Args:
      direct_below: systems with fewer unknowns are factored.
    """

    direct_below: int = 512

    def attempt(self, operator, b, init, tolerance):
        """Hand over to the chosen solver."""
        return self.choose(operator.structure, _tree.size(b)).attempt(operator, b, init, tolerance)

    def choose(self, structure: str, size: int) -> LinearSolver:
        """The solver that serves a system of this structure and size."""
        if size < self.direct_below:
            return Direct(rtol=self.rtol, atol=self.atol)
        if structure == "positive_definite":
            return CG(rtol=self.rtol, atol=self.atol)
        return GMRES(rtol=self.rtol, atol=self.atol)
