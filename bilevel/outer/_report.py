"""The contract of an outer algorithm, and what it reports of a step."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

from bilevel._tree import PyTree
from bilevel.hypergrad import Solve

S = TypeVar("S")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["outer_loss", "grad_norm", "outer_error", "solves", "counts"],
    meta_fields=["exact"],
)
@dataclasses.dataclass(frozen=True)
class Report:
    """What a step found out at the point from which it started.

    Attributes:
      outer_loss: the outer loss there.
      grad_norm: ‖hypergradient‖₂.
      outer_error: an estimate of how far outer_loss lies above the loss at the exact inner solution; None for no estimate.
      solves: how the solves of the step ended, by name, first the one on which the others depend (an `OrderedDict` keeps this
        order under `jit`); empty for an algorithm that solves nothing.
      counts: oracle calls of the step, by name.
      exact: outer_loss is of all data at this point, so that it may choose the best step; False for the loss of a minibatch.
    """

    outer_loss: jax.Array
    grad_norm: jax.Array
    outer_error: jax.Array | None = None
    solves: dict[str, Solve] = dataclasses.field(default_factory=dict)
    counts: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    exact: bool = True

    def numbers(self) -> dict[str, Any]:
        """All of it as one flat dict of scalars: `inner_status`, `inner_residual`, … for a solve `inner`; NaN for no estimate."""
        solves: dict[str, Any] = {}
        for name, solve in self.solves.items():
            solves |= {f"{name}_residual": solve.residual, f"{name}_status": solve.status}
        error = math.nan if self.outer_error is None else self.outer_error
        head = {"outer_loss": self.outer_loss, "outer_error": error, "grad_norm": self.grad_norm}
        return {**head, **solves, **self.counts}

    def __getitem__(self, name: str) -> Any:
        """One of `numbers` by its name."""
        return self.numbers()[name]


class Point(NamedTuple):
    """Hyperparameters and the inner variable that belongs to them."""

    hparams: PyTree
    params: PyTree


class Algorithm(Protocol[S]):
    """An outer algorithm: pure functions over a state of its own, a pytree of arrays, which is all that a checkpoint holds.

    `bilevel.outer.run_loop` runs whatever has these four methods. An algorithm that is a frozen dataclass of functions and
    numbers is compiled once for all that are equal to it by value.
    """

    def init(self, hparams: PyTree, params: PyTree, data: PyTree, key: jax.Array | None = None) -> S:
        """The first state; a JAX random key for algorithms that draw, fixed if None."""
        ...

    def step(self, state: S, data: PyTree) -> tuple[S, Report]:
        """One step. Pure, so that it can be compiled."""
        ...

    def point(self, new: S, old: S) -> Point:
        """The point that the report of the step from `old` to `new` is about. For a first state both are the same."""
        ...

    def hold(self, new: S, old: S) -> S:
        """The state after a step whose hypergradient must not be used: work that is done is kept, hyperparameters stay."""
        ...
