"""The contract of a task."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

from bilevel._tree import PyTree
from bilevel.problem import Problem


@dataclasses.dataclass(frozen=True)
class Setup:
    """A task made concrete by its data.

    Attributes:
      problem: the bilevel problem.
      hparams, params: start values.
      data: one pytree of arrays for both losses; it holds no test data.
      title: what is solved, in a few words.
      sizes: what there is how many of, for the header.
      metrics: (hparams, params) -> named numbers, those on the test set included; called once, at the end.
      physical: hparams -> named hyperparameters in physical units, as the user would give them to a solver.
      pictures: (hparams, params) -> matplotlib figures by name, where one tells more than a number; called once, at the end.
    """

    problem: Problem
    hparams: PyTree
    params: PyTree
    data: PyTree
    title: str
    sizes: dict[str, int]
    metrics: Callable[[PyTree, PyTree], dict[str, float]]
    physical: Callable[[PyTree], dict[str, Any]]
    pictures: Callable[[PyTree, PyTree], dict[str, Any]] = lambda hparams, params: {}


class Task(abc.ABC):
    """A task's settings: a frozen dataclass of plain values, built from `configs/task/<name>.yaml`."""

    @abc.abstractmethod
    def setup(self, seed: int, dtype: Any) -> Setup:
        """Load or make the data and state the problem, with arrays of `dtype`. Raises `datasets.DataError`."""
