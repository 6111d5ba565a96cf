"""The contract of an outer algorithm, and its report of a step."""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

from bilevel._tree import PyTree
from bilevel.hypergrad import Solve, Verdict

S = TypeVar("S")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Report:
    """The measurements of a step at the point from which it started. All are scalars.

    Attributes:
      outer_loss: the outer loss there.
      grad_norm: ‖hypergradient‖₂.
      outer_error: an estimate of outer_loss minus the loss at the exact inner solution; None for no estimate.
      solves: how the solves of the step ended, by name, first the one on which the others depend (an `OrderedDict` keeps this
        order under `jit`); empty for an algorithm that solves nothing.
      counts: oracle calls of the step, by name.
      exact: whether outer_loss is the loss of all data, by which the best step can be chosen; False for the loss of a minibatch.
      verdict: how far the hypergradient can be used; None leaves it to the solves.
      update_norm: ‖update of the hyperparameters‖₂, not finite if it was not applied for that; None if it is not known.

    Example:
      >>> import bilevel as bl
      >>> report = bl.outer.Report(0.5, 0.1, solves={"inner": bl.hypergrad.Solve(bl.Status.CONVERGED, 1e-7)}, counts={"hvps": 3})
      >>> print(report["inner_residual"], report["hvps"], report["outer_error"])
      1e-07 3 nan
    """

    outer_loss: jax.Array
    grad_norm: jax.Array
    outer_error: jax.Array | None = None
    solves: dict[str, Solve] = dataclasses.field(default_factory=dict)
    counts: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    exact: bool = dataclasses.field(default=True, metadata={"static": True})
    verdict: Verdict | None = None
    update_norm: jax.Array | None = None

    def numbers(self) -> dict[str, Any]:
        """A flat dict of scalars: `inner_status`, `inner_residual`, … for a solve `inner`; NaN for no estimate."""
        error = math.nan if self.outer_error is None else self.outer_error
        found: dict[str, Any] = {"outer_loss": self.outer_loss, "outer_error": error, "grad_norm": self.grad_norm}
        if self.update_norm is not None:
            found["update_norm"] = self.update_norm
        if self.verdict is not None:
            found |= {"error_estimate": self.verdict.error_estimate, "condition": self.verdict.condition}
        for name, solve in self.solves.items():
            found |= {f"{name}_residual": solve.residual, f"{name}_status": solve.status}
        return found | self.counts

    def __getitem__(self, name: str) -> Any:
        """One of `numbers` by its name."""
        return self.numbers()[name]


class Point(NamedTuple):
    """Hyperparameters and the inner variable that belongs to them, any pytrees.

    Example:
      >>> import bilevel as bl
      >>> bl.outer.Point(hparams=0.5, params=[1.0, 2.0]).params
      [1.0, 2.0]
    """

    hparams: PyTree
    params: PyTree


class Algorithm(Protocol[S]):
    """An outer algorithm: pure functions over a state of its own, a pytree of arrays, which is all that a checkpoint holds.

    `bilevel.outer.run_loop` runs every object with these four methods. If it is a frozen dataclass of functions and numbers, its
    step is compiled once for all objects that are equal by value.

    Example:
      >>> import dataclasses, jax.numpy as jnp, bilevel as bl
      >>> @dataclasses.dataclass(frozen=True)
      ... class Descent:                                   # on hparams², without an inner problem
      ...     rate: float
      ...     def init(self, hparams, params, data, key=None):
      ...         return hparams
      ...     def step(self, state, data):
      ...         return state - self.rate * 2 * state, bl.outer.Report(state**2, abs(2 * state))
      ...     def point(self, new, old):
      ...         return bl.outer.Point(old, None)
      ...     def hold(self, new, old):
      ...         return old
      >>> bl.outer.run_loop(Descent(0.25), jnp.array(1.0), None, steps=100, gtol=1e-3).status
      'converged'
    """

    def init(self, hparams: PyTree, params: PyTree, data: PyTree, key: jax.Array | None = None) -> S:
        """The first state. `key` is a JAX random key, for algorithms that draw; None is a fixed one."""
        ...

    def step(self, state: S, data: PyTree) -> tuple[S, Report]:
        """One step. Pure, so that it can be compiled."""
        ...

    def point(self, new: S, old: S) -> Point:
        """The point that the report of the step from `old` to `new` describes. Both are the same before the first step."""
        ...

    def hold(self, new: S, old: S) -> S:
        """The state after a step whose hypergradient must not be used: finished work is kept, hyperparameters stay."""
        ...
