"""Time and planned memory of compiled steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def compiled(function: Callable, *args: Any) -> tuple[Any, float]:
    """The program of `function` for these arguments, and the memory that it plans beside arguments and results, in MiB."""
    program = jax.jit(function).lower(*args).compile()
    plan = program.memory_analysis()
    return program, plan.temp_size_in_bytes / 2**20 if plan is not None else float("nan")


def seconds(program: Callable, *args: Any, repeats: int) -> np.ndarray:
    """Wall-clock seconds of each of `repeats` calls, after one that is not counted."""
    jax.block_until_ready(program(*args))
    found = np.empty(repeats)
    for repeat in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(program(*args))
        found[repeat] = time.perf_counter() - begun
    return found


def with_interval(values: np.ndarray, name: str = "seconds") -> dict[str, float]:
    """Median, and the 90 % interval of the values."""
    low, median, high = np.percentile(values, [5, 50, 95])
    return {name: float(median), f"{name}_low": float(low), f"{name}_high": float(high)}
