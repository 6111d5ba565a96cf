"""Compiled outer steps: their time, their memory, and a descent by them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bilevel import outer


class Program(NamedTuple):
    """A compiled outer step.

    Attributes:
      run: (state, data) -> (state, report).
      compiling: seconds for tracing and compiling.
      memory: MiB that the program plans besides its arguments and results; NaN if the backend does not report it.
    """

    run: Callable[[Any, Any], tuple[Any, outer.Report]]
    compiling: float
    memory: float

    @classmethod
    def of(cls, algorithm: outer.Nested, state: Any, data: Any) -> Program:
        """The step of an algorithm, for a state and data of these shapes."""
        begun = time.perf_counter()
        compiled = jax.jit(algorithm.step).lower(state, data).compile()
        compiling = time.perf_counter() - begun
        plan = compiled.memory_analysis()
        return cls(compiled, compiling, plan.temp_size_in_bytes / 2**20 if plan is not None else float("nan"))

    def measured(self, state: Any, data: Any, repeats: int) -> dict[str, float]:
        """Seconds of `repeats` calls from one state, after one that is not counted, and the planned memory."""
        jax.block_until_ready(self.run(state, data))
        seconds = np.empty(repeats)
        for repeat in range(repeats):
            begun = time.perf_counter()
            jax.block_until_ready(self.run(state, data))
            seconds[repeat] = time.perf_counter() - begun
        return {**with_interval(seconds), "memory_mib": self.memory}


class Taken(NamedTuple):
    """A step of a descent: the states around it, the outer loss before it, the solves that failed in it, its seconds."""

    before: Any
    after: Any
    outer_loss: float
    failures: int
    seconds: float


def descend(program: Program, state: Any, data: Any, count: int, *, cold: bool = False) -> Iterator[Taken]:
    """`count` steps; `cold` starts every inner solve from the params of the first state."""
    start = state.params
    for _ in range(count):
        begun = time.perf_counter()
        after, report = program.run(state, data)
        report = jax.device_get(report)
        seconds = time.perf_counter() - begun
        yield Taken(state, after, float(report.outer_loss), int(failures(report)), seconds)
        state = dataclasses.replace(after, params=start) if cold else after


def failures(report: outer.Report) -> Any:
    """The number of solves of a step that failed, traced or not."""
    return sum(solve.failed.astype("int32") for solve in report.solves.values())


def with_interval(values: np.ndarray, name: str = "seconds") -> dict[str, float]:
    """Median, and the 90 % interval of the values."""
    low, median, high = np.percentile(values, [5, 50, 95])
    return {name: float(median), f"{name}_low": float(low), f"{name}_high": float(high)}
