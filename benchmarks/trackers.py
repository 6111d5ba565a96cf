"""Measure how much time trackers take from a run.

A run of about a hundred steps a second writes its rows to a folder that three trackers follow. The speed of a machine drifts by
more than trackers take, so two numbers are measured in pairs: the time of their start, from short runs with and without them,
and the time of following, from neighboring windows of one run. In one window of each pair the trackers are stopped, so that in
the other they do the work of two.

Run: python benchmarks/trackers.py [--repeats 20] [--windows 100]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import config
from bilevel.runs import RunFolder, following

TRACKERS = ("wandb", "trackio", "tensorboard")
WINDOW = 100  # steps
START = 500  # steps, in which trackers start


def make_step(milliseconds: float) -> Callable[[], object]:
    """Make a compiled step that takes this long on one core of this machine."""

    @jax.jit
    def step(x, count):
        return jax.lax.fori_loop(0, count, lambda _, x: jnp.tanh(x @ x / 50), x)

    x = jnp.eye(64) + 0.01
    jax.block_until_ready(step(x, 100))
    begun = time.perf_counter()
    jax.block_until_ready(step(x, 1000))
    count = int(1000 * milliseconds / 1000 / (time.perf_counter() - begun))
    return lambda: jax.block_until_ready(step(x, count))


@contextlib.contextmanager
def run(step: Callable[[], object], trackers: tuple[str, ...]) -> Iterator[tuple[Callable[[int], float], Callable]]:
    """A run with trackers: a function that takes steps and returns their seconds, and one that signals the trackers."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "run"
        overrides = [f"tracker=[{','.join(trackers)}]", *(["tracker.trackio.folder=" + home] if trackers else [])]
        cfg = config.compose(overrides if trackers else [])
        with (
            contextlib.closing(RunFolder(folder, config.to_yaml(cfg), {})) as files,
            following.Followers(folder, trackers) as followers,
        ):
            numbers = itertools.count()

            def advance(steps: int) -> float:
                begun = time.perf_counter()
                for _ in range(steps):
                    step()
                    files.rows.append({"step": next(numbers), "outer_loss": 1.0, "grad_norm": 0.1, "seconds": 0.0})
                    followers.look()
                return time.perf_counter() - begun

            def tell(what: signal.Signals) -> None:
                for process in followers.alive.values():
                    os.killpg(process.pid, what)

            yield advance, tell
            files.write_status("done")


def start_costs(step: Callable[[], object], repeats: int) -> list[float]:
    """By how many seconds the first steps take longer with trackers, for each pair of runs."""
    costs = []
    for number in range(repeats):
        seconds = {}
        for trackers in [(), TRACKERS] if number % 2 else [TRACKERS, ()]:
            with run(step, trackers) as (advance, _):
                seconds[trackers] = advance(START)
        costs.append(seconds[TRACKERS] - seconds[()])
    return costs


def following_ratios(step: Callable[[], object], pairs: int) -> list[float]:
    """The time of a window with trackers over the time of the neighboring window without, for each pair."""
    ratios = []
    with run(step, TRACKERS) as (advance, tell):
        advance(3 * START)
        for number in range(pairs):
            seconds = {}
            for what in (signal.SIGCONT, signal.SIGSTOP) if number % 2 else (signal.SIGSTOP, signal.SIGCONT):
                tell(what)
                seconds[what] = advance(WINDOW)
            ratios.append(seconds[signal.SIGCONT] / seconds[signal.SIGSTOP])
        tell(signal.SIGCONT)
    return ratios


def quartiles(values: list[float]) -> str:
    """The median and the quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print both numbers, and the processor time of the trackers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="pairs of runs (default: 20)")
    parser.add_argument("--windows", type=int, default=100, help="pairs of windows (default: 100)")
    given = parser.parse_args()
    step = make_step(10.0)
    costs = start_costs(step, given.repeats)
    print(
        f"{', '.join(TRACKERS)}: their start takes {quartiles(costs)} s, once per run; mean {np.mean(costs):.3f}",
        flush=True,
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"processor time of the trackers, at the lowest priority: {(used.ru_utime + used.ru_stime) / given.repeats:.1f} s"
    )
    ratios = following_ratios(step, given.windows)
    error = np.std(ratios) / np.sqrt(len(ratios))
    print(
        f"time of a window with trackers / without: {quartiles(ratios)}; mean {np.mean(ratios):.4f}, error {error:.4f}"
    )


if __name__ == "__main__":
    main()
