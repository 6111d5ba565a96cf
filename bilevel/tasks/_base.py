"""The contract of a task."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from jax.typing import DTypeLike

from bilevel._tree import PyTree
from bilevel.problem import Problem

Tables = TypeVar("Tables")


@dataclasses.dataclass(frozen=True)
class Setup:
    """A bilevel problem with its data and start values.

    Attributes:
      problem: the bilevel problem.
      hparams, params: start values.
      data: one pytree of arrays for both losses; it holds no test data.
      title: the problem in a few words.
      sizes: named counts for the header of a run.
      metrics: (hparams, params) -> named numbers, including those of the test set; called once, at the end.
      physical: hparams -> named hyperparameters in the units that a user would pass to a solver.
      pictures: (hparams, params) -> named matplotlib figures; called once, at the end.
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


class Task(abc.ABC, Generic[Tables]):
    """The settings of a task: a frozen dataclass of plain values, built from `configs/task/<name>.yaml`.

    A task works in two steps: `tables` loads or makes the data, and `state` states the problem on them. Call `state` alone to
    use your own arrays, for example `DEQ().state(Split.of(Table.of(X, y, "classification")), "float32")` with the `Split` and
    the `Table` of `bilevel.datasets`.
    """

    @abc.abstractmethod
    def tables(self, seed: int) -> Tables:
        """Load or make the data, split and scaled, as NumPy arrays. Raises `datasets.DataError`."""

    @abc.abstractmethod
    def state(self, tables: Tables, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem on these arrays as they are, neither split nor scaled any further.

        Args:
          tables: the data. Parts that only the metrics use may be absent; the metrics then leave them out.
          dtype: of the arrays of the problem.
          seed: of the start values that are drawn at random, if any.

        Raises:
          datasets.DataError: an array has the wrong shape, or a part that the problem needs is absent.
        """

    def check(self, setting: str, right: bool, requirement: str) -> None:
        """Raise ValueError unless a setting is right; for `__post_init__`."""
        if not right:
            raise ValueError(f"task.{setting} must {requirement}, got {getattr(self, setting)}")

    def setup(self, seed: int, dtype: DTypeLike) -> Setup:
        """State the problem on the task's own data."""
        return self.state(self.tables(seed), dtype, seed)
