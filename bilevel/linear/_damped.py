"""A solver of the damped system."""

from __future__ import annotations

import dataclasses

from bilevel import _checks
from bilevel.linear._base import LinearSolver, damped
from bilevel.linear._direct import Direct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damped(LinearSolver):
    """Solve (A + ridge · I) x = b by another solver, and be judged on that system, not on A x = b.

    For A singular or nearly so, when a biased answer of moderate size is wanted (Tikhonov; iMAML's and torchdeq's
    damping). The bias does not show in the status: `residual` is ‖(A + ridge I) x − b‖. Under `differentiable_solve` the
    derivatives are those of (A + ridge I)⁻¹ b.

    Args:
      solver: of the damped system; its rtol and atol count where this one's are not given.
      ridge: absolute, in the units of A.

    Statuses: those of the solver.
    """

    solver: LinearSolver = dataclasses.field(default_factory=Direct)
    ridge: float = 1e-3

    def __post_init__(self):
        if not isinstance(self.solver, LinearSolver):
            raise TypeError(
                f"linear.Damped: solver must be one of bilevel.linear, such as linear.CG(), got {self.solver!r}"
            )
        if self.rtol is None:
            object.__setattr__(self, "rtol", self.solver.rtol)
        if self.atol == 0:
            object.__setattr__(self, "atol", self.solver.atol)
        super().__post_init__()
        _checks.require_positive("linear.Damped", ridge=self.ridge)

    def posed(self, operator):
        """A + ridge · I."""
        return self.solver.posed(damped(operator, self.ridge))

    def attempt(self, operator, b, init, tolerance):
        """Hand over; the operator is the damped one already."""
        return self.solver.attempt(operator, b, init, tolerance)

    def prepare(self, operator, like):
        """Hand over."""
        return self.solver.prepare(operator, like)
