"""Any Python function as an inner solver."""

import dataclasses
from collections.abc import Callable
from typing import Any

from bilevel import _checks
from bilevel._tree import PyTree
from bilevel.inner.external import _callback
from bilevel.inner.external._base import Answer, Foreign, _External
from bilevel.problem import At


@dataclasses.dataclass(frozen=True, kw_only=True)
class Python(_External):
    """x = function(start, hparams, data), any Python code on NumPy arrays in double precision, for any problem.

    The function gets its own copy of the start; hparams and data are read-only. A `BCOO` matrix in data becomes a SciPy CSR
    array. As for all external solvers, the answer is judged by the problem: the status is `CONVERGED`, `NOT_A_SOLUTION`,
    `EXTERNAL_ERROR` (the code raised), `WRONG_OUTPUT` (another structure or shape) or `NON_FINITE`; the derivative is NaN,
    so use `hypergrad.Implicit` or `custom_root`.

    Args:
      rtol, atol: judge the answer, as for `InnerSolver`.
      function: (params, hparams, data) -> params, with the structure and shapes of params, floating-point.
      max_steps: has no effect.

    Raises:
      TypeError: function is not callable.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(inner_loss=lambda x, hparams, data: jnp.sum((x - hparams) ** 2))
      >>> solver = bl.inner.Python(function=lambda start, hparams, data: hparams)
      >>> print(solver.solve(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).params)
      [1. 2.]
    """

    needs = ()

    function: Callable[..., Any]
    max_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_callable(self.name, function=self.function)
        if self.function is None:
            raise TypeError("inner.Python: function must be a function (params, hparams, data) -> params, got None")

    def _foreign(self, at: At, start: PyTree) -> tuple[Foreign, PyTree]:
        del start

        def foreign(start: PyTree, inputs: PyTree) -> Answer:
            return Answer(self.function(start, *_callback.in_scipy(inputs)))

        return foreign, (at.hparams, at.data)
