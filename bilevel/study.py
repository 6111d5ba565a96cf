"""The contract of a study: a measurement over many runs, such as a figure of a paper. The studies are in `experiments/`."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

from bilevel import _checks

Row = dict[str, Any]
Reporter = Callable[[Row], None]


@dataclasses.dataclass(frozen=True)
class Findings:
    """The outcome of a study.

    Attributes:
      summary: its results, numbers by name, possibly nested.
      arrays: further data for a figure, arrays by name, possibly nested.
    """

    summary: dict[str, Any]
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)


class Study(abc.ABC):
    """A measurement that takes more than one run: a frozen dataclass of plain settings.

    `configs/experiment/<paper>/<figure>.yaml` names it and its settings, smaller ones for `size=small`.
    """

    def require_positive(self, *names: str) -> None:
        """Raise ValueError unless the settings of these names are positive."""
        _checks.require_positive("study", **{name: getattr(self, name) for name in names})

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """The number of rows that it will report."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """What is measured, in a few words."""

    @abc.abstractmethod
    def run(self, seed: int, dtype: str, report: Reporter) -> Findings:
        """Measure, reporting each row (a flat dict of numbers and texts) as soon as it is known."""
