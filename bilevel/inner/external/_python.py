"""Any Python function as an inner solver."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from bilevel import _checks
from bilevel._needs import Need
from bilevel._tree import PyTree
from bilevel.inner.external import _callback
from bilevel.inner.external._base import Answer, Foreign, _External
from bilevel.problem import At


@dataclasses.dataclass(frozen=True, kw_only=True)
class Python(_External):
    """x = function(start, hparams, data), any Python code on NumPy arrays in double precision.

    It gets its own copy of the start; hparams and data must not be written to. A `BCOO` matrix in data comes as a SciPy CSR
    array. Serves every problem, and is judged by it.

    Args:
      function: (params, hparams, data) -> params, with the structure and shapes of params, floating-point.
      max_steps: has no effect.
    """

    needs: ClassVar[tuple[Need, ...]] = ()

    function: Callable[..., Any]
    max_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require_callable("inner.Python", function=self.function)
        if self.function is None:
            raise TypeError("inner.Python: function must be a function (params, hparams, data) -> params, got None")

    def _foreign(self, at: At, start: PyTree) -> tuple[Foreign, PyTree]:
        del start

        def foreign(start: PyTree, inputs: PyTree) -> Answer:
            return Answer(self.function(start, *_callback.in_scipy(inputs)))

        return foreign, (at.hparams, at.data)
