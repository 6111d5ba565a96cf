"""The Neumann series, as a solver that detects divergence."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _checks, _tree
from bilevel._status import Status
from bilevel._tree import PyTree
from bilevel.linear import _iteration, _sketch
from bilevel.linear._base import Attempt, Operator


class _State(NamedTuple):
    x: PyTree
    term: PyTree
    norm: jax.Array
    reason: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neumann(_iteration.Iterative):
    """The Neumann series x = α Σₖ (I − α A)ᵏ b, for A whose eigenvalues have positive real parts.

    The k-th term is the residual after k steps of Richardson's iteration, and that is how the series is computed: a truncated
    series is a solve with few `max_steps`, and ends as `MAX_STEPS`. `CG` and `GMRES` take far fewer products for the same
    residual.

    Args:
      rtol: the answer converges when ‖A x − b‖ ≤ max(rtol · ‖b‖, atol); `None` (default) is ε^⅔ of the precision of b.
      atol: absolute floor of the same test; 0 by default.
      max_steps: number of terms; 1000 by default.
      step: α; `None` (default) takes 0.9 / ‖A‖₂, with ‖A‖₂ estimated by power iteration.
      power_steps: steps of the power iteration, 10 by default; two products each, one if A is symmetric.

    Statuses besides `CONVERGED`: `MAX_STEPS`, `BREAKDOWN` (the terms grow: α is too large, or A has an eigenvalue with a
    negative real part; the start is returned), `STAGNATED` (the terms do not change: A is singular and b not in its range).

    Reference: Lorraine, Vicol & Duvenaud, Optimizing millions of hyperparameters by implicit differentiation, 2020.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> found = bl.linear.Neumann().solve(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
      >>> print(found.value.round(3), bl.Status(int(found.status)).word)
      [1.  0.5] converged
    """

    max_steps: int = 1000
    step: float | None = None
    power_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_positive("linear.Neumann", step=self.step, power_steps=self.power_steps)

    def attempt(self, operator: Operator, b: PyTree, init: PyTree, tolerance: jax.Array) -> Attempt:
        """Add terms until they are small, or no longer shrink."""
        step_size, cost = self._step_size(operator, b)
        first = _tree.sub(b, operator(init))
        first_norm = _tree.norm(first)

        def step(s: _State) -> _State:
            change = _tree.scale(step_size, operator(s.term))
            term = _tree.sub(s.term, change)
            norm = _tree.norm(term)
            # Terms of a convergent series may grow at first where A is far from normal, but not by this much.
            diverged, constant = norm > 100 * first_norm, _tree.norm(change) <= 10 * _tree.eps(b) * s.norm
            reason = _iteration.reason(jnp.isfinite(norm), (diverged, Status.BREAKDOWN), (constant, Status.STAGNATED))
            return _State(_tree.add_scaled(s.x, step_size, s.term), term, norm, reason, s.steps + 1)

        start = _State(init, first, first_norm, jnp.int32(Status.MAX_STEPS), jnp.int32(0))
        end, reason = _iteration.iterate(step, start, 0.9 * tolerance, self.max_steps)
        reason = jnp.where((end.reason == Status.MAX_STEPS) & (end.norm > first_norm), Status.BREAKDOWN, reason)
        x = _tree.where(end.norm > first_norm, init, end.x)
        return Attempt(x, reason, end.steps, end.steps + 1 + cost)

    def _step_size(self, operator: Operator, b: PyTree) -> tuple[jax.Array, int]:
        """α, and the number of products to find it."""
        if self.step is not None:
            return jnp.asarray(self.step, _tree.dtype(b)), 0
        norm = _sketch.norm_estimate(operator, b, self.power_steps)
        return 0.9 / _tree.positive(norm), self.power_steps * (2 if operator.structure == "general" else 1)
