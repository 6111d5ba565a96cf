"""Is the derivative of a function the one that differences give?"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._tree import PyTree
from bilevel.diagnostics._numeric import Checked, Comparison, compare, differences, each_direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class DerivativeReport(Comparison, Checked):
    """A function's derivative against differences along random directions; readable by `print`.

    Attributes:
      gaps: ‖J d − difference‖ relative to the larger of both, per direction d.
      errors: the differences' own estimated relative error, per direction.
      dot_test: |⟨w, J d⟩ − ⟨Jᵀw, d⟩|/‖J d‖, the largest.
      tolerance: the largest gap that passes, unless ten times the differences' error is larger.
      problems: a sentence for each thing that is wrong.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> report = bl.check_derivative(jnp.sin, jnp.array([0.3, 0.5]))
      >>> report.ok, len(report.gaps), max(report.gaps) < report.tolerance
      (True, 2, True)
    """

    dot_test: float

    def __str__(self) -> str:
        return self._printed("check_derivative", self.lines())

    def lines(self) -> list[str]:
        """A printed line for each direction, and one for the dot-product test."""
        return [*super().lines(), f"  JVP against VJP   {self.dot_test:.1e}"]


def check_derivative(
    function: Callable[..., PyTree],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    directions: int = 3,
    rtol: float | None = None,
    seed: int = 0,
) -> DerivativeReport:
    """Compare the derivative of any function, such as a solver under `custom_root`, with extrapolated differences.

    The differences halve their step until rounding or the function's own tolerance shows, and estimate their remaining error.

    Args:
      function: called as function(*args); returns a pytree of floating-point arrays.
      *args: the point, any pytrees.
      argnums: which arguments to differentiate.
      directions: number of random directions; no more than there are unknowns.
      rtol: the relative gap that passes; None is ε^¼ (1e-4 in float64, 2e-2 in float32).
      seed: seed of the directions.

    Reference: Ridders, Accurate computation of F'(x) and F'(x)F''(x), 1982.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> bl.check_derivative(jnp.sin, jnp.array([0.3, 0.5])).ok
      True
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    moving, fixed = _tree.split(tuple(jax.tree.map(jnp.asarray, args[i]) for i in numbers))

    def of_moving(moving: PyTree) -> PyTree:
        filled = list(args)
        for i, value in zip(numbers, _tree.merge(moving, fixed), strict=True):
            filled[i] = value
        return function(*filled)

    value, pull = jax.vjp(of_moving, moving)
    cotangent = each_direction(value, 1, seed + 1)[0]
    (pulled,) = pull(cotangent)
    along = each_direction(moving, directions, seed)
    pushed = [jax.jvp(of_moving, (moving,), (d,))[1] for d in along]
    dots = []
    for push, d in zip(pushed, along, strict=True):
        defect, norm = abs(float(_tree.vdot(cotangent, push)) - float(_tree.vdot(pulled, d))), float(_tree.norm(push))
        dots.append(defect / norm if norm > 0 else defect)
    tolerance = _tree.eps(value) ** 0.25 if rtol is None else rtol
    comparison = compare(pushed, differences(of_moving, moving, along), tolerance)
    problems = comparison.complaints("the derivative")
    if not max(dots) <= 100 * _tree.eps(value) ** 0.5:
        problems.append(
            f"JVP and VJP disagree by {max(dots):.1e}: a transpose is missing, or a linear solve is too loose"
        )
    return DerivativeReport(**vars(comparison), dot_test=max(dots), problems=tuple(problems))
