"""The default linear solver."""

import dataclasses

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.linear._base import LinearSolver, Operator, Prepared, PreparedSolver, Product
from bilevel.linear._cg import CG
from bilevel.linear._direct import Direct
from bilevel.linear._gmres import GMRES
from bilevel.linear._lsmr import LSMR
from bilevel.linear._minres import MINRES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Auto(PreparedSolver):
    """Choose a solver by the size and the structure of the operator. The default everywhere.

    Below `direct_below` unknowns the system is factored by `Direct`, by SVD if the operator may be singular. Larger systems go
    to `CG` if A is positive definite; to `MINRES` if it is symmetric, or semidefinite and possibly singular; to `GMRES` if it
    is general, and to `LSMR` if it is general and may be singular.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      direct_below: number of unknowns from which on a system is solved by iterations; 512 by default.

    Statuses: those of the chosen solver, which also sets the limit on steps.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> operator = bl.linear.Operator(lambda v: jnp.array([2.0, 4.0]) * v, "positive_definite")
      >>> found = bl.linear.Auto().solve(operator, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    direct_below: int = 512

    def prepare(self, operator: Operator, like: PyTree) -> Prepared:
        """Prepare the chosen solver."""
        return self.choose(operator.structure, _tree.size(like), operator.singular).prepare(operator, like)

    def preconditioned(self, preconditioner: Product | None) -> LinearSolver:
        """`CG`, which takes it."""
        return CG(rtol=self.rtol, atol=self.atol, preconditioner=preconditioner)

    def choose(self, structure: str, size: int, singular: bool = False) -> LinearSolver:
        """The solver for a system of this structure and size."""
        if size < self.direct_below:
            chosen = Direct
        elif structure == "general":
            chosen = LSMR if singular else GMRES
        else:
            chosen = MINRES if structure == "symmetric" or singular else CG
        return chosen(rtol=self.rtol, atol=self.atol)
