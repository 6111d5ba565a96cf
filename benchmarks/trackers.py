"""What trackers cost a run: python benchmarks/trackers.py

A step of about ten milliseconds, a hundred a second, written to a run folder, with three trackers that follow it and
without, in turns. Each turn lasts as long as a run that is long enough for the trackers to be at work, their start included.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import config
from bilevel.io import RunFolder, following

TRACKERS = ("wandb", "trackio", "tensorboard")


def make_step(milliseconds: float):
    """A compiled step that takes so long here, on one core."""

    @jax.jit
    def step(x, count):
        return jax.lax.fori_loop(0, count, lambda _, x: jnp.tanh(x @ x / 50), x)

    x = jnp.eye(64) + 0.01
    jax.block_until_ready(step(x, 100))
    begun = time.perf_counter()
    jax.block_until_ready(step(x, 1000))
    count = int(1000 * milliseconds / 1000 / (time.perf_counter() - begun))
    return lambda: jax.block_until_ready(step(x, count))


def turn(step, steps: int, trackers: tuple[str, ...]) -> float:
    """Seconds that the steps of one run take; each writes a row."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "run"
        overrides = [f"tracker=[{','.join(trackers)}]", *(["tracker.trackio.folder=" + home] if trackers else [])]
        cfg = config.compose(overrides if trackers else [])
        with contextlib.closing(RunFolder(folder, config.to_yaml(cfg), {})) as files:
            with following.Followers(folder, trackers) as followers:
                begun = time.perf_counter()
                for number in range(steps):
                    step()
                    files.log_row({"step": number, "outer_loss": 1 / (1 + number), "grad_norm": 0.1, "seconds": 0.0})
                    followers.look()
                seconds = time.perf_counter() - begun
                files.write_status("done")
            return seconds


def processor_time() -> float:
    """Seconds of processor time of the processes that have ended: the trackers."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the paired ratios and their median, and what the trackers used beside the run."""
    parser = argparse.ArgumentParser(description="What trackers cost a run.")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    step = make_step(10.0)
    ratios = []
    for number in range(given.repeats):
        pair = [(), TRACKERS] if number % 2 else [TRACKERS, ()]
        seconds = {trackers: turn(step, given.steps, trackers) for trackers in pair}
        ratios.append(seconds[TRACKERS] / seconds[()])
        print(f"{given.steps / seconds[()]:.0f} steps a second, ratio {ratios[-1]:.4f}", flush=True)
    beside = processor_time() / given.repeats
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(f"with {', '.join(TRACKERS)}: {middle:.4f} [{low:.4f}, {high:.4f}] of the time without")
    print(f"the trackers' own processor time, mostly their start: {beside:.1f} s a run, at the lowest priority")


if __name__ == "__main__":
    main()
