"""A solver for the damped system."""

import dataclasses

from bilevel import _checks
from bilevel._tree import PyTree
from bilevel.linear._base import LinearSolver, Operator, Prepared, PreparedSolver, damped
from bilevel.linear._direct import Direct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damped(PreparedSolver):
    """Solve (A + ridge · I) x = b with another solver; the answer is judged on that system.

    For an A that is singular or nearly so, where a biased answer of moderate size is wanted (Tikhonov regularization; the
    damping of iMAML and torchdeq). The status does not show the bias: `residual` is ‖(A + ridge I) x − b‖. Under
    `differentiable_solve` the derivatives are those of (A + ridge I)⁻¹ b. An exact reduction of a system is not used, since
    it is equivalent to A x = b only: `System` then passes the full operator, which is often not symmetric.

    Args:
      rtol: relative to ‖b‖, for the damped system; `None` (default) takes the solver's.
      atol: absolute floor of the same test; 0 (default) takes the solver's.
      solver: solver of the damped system; its limit on steps applies.
      ridge: positive, absolute, in the units of A; 1e-3 by default.

    Statuses: those of the solver.

    Reference: Rajeswaran et al., Meta-learning with implicit gradients, 2019.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.Damped(ridge=1.0).solve(lambda v: jnp.array([1.0, 0.0]) * v, jnp.array([1.0, 1.0]))
      >>> print(found.value, bl.Status(int(found.status)).word)
      [0.5 1. ] converged
    """

    solver: LinearSolver = dataclasses.field(default_factory=Direct)
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if not isinstance(self.solver, LinearSolver):
            raise TypeError(
                f"linear.Damped: solver must be one of bilevel.linear, such as linear.CG(), got {self.solver!r}"
            )
        super().__post_init__()
        _checks.require_positive("linear.Damped", ridge=self.ridge)

    @property
    def tolerances(self) -> tuple[float | None, float]:
        """Its own tolerances if they are given, else those of the wrapped solver."""
        rtol, atol = self.solver.tolerances
        return rtol if self.rtol is None else self.rtol, self.atol or atol

    def effective_operator(self, operator: Operator) -> Operator:
        """A + ridge · I."""
        return self.solver.effective_operator(damped(operator, self.ridge))

    def prepare(self, operator: Operator, like: PyTree) -> Prepared:
        """Prepare the solver; the operator is already the damped one."""
        return self.solver.prepare(operator, like)
