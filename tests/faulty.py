"""Tasks and trackers that fail as their settings say."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import jax.numpy as jnp

from bilevel.datasets import DataError
from bilevel.runs import trackers
from bilevel.tasks import Ridge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(Ridge):
    """Ridge regression that fails for some seeds, until the folder has a file `fixed`.

    Args:
      raising, killed, hanging: seeds.
    """

    raising: list[int] = dataclasses.field(default_factory=list)
    killed: list[int] = dataclasses.field(default_factory=list)
    hanging: list[int] = dataclasses.field(default_factory=list)

    def setup(self, seed, dtype):
        if not Path("fixed").exists():
            if seed in self.raising:
                raise DataError(f"seed {seed} is not to be used")
            if seed in self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            if seed in self.hanging:
                time.sleep(3600)
        return super().setup(seed, dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buggy(Ridge):
    """Ridge regression with an error.

    Args:
      bug: its place: "constructor", "setup" or "loss"; "none" is refused by a check.
    """

    bug: str

    def __post_init__(self):
        if self.bug == "none":
            raise ValueError("task.bug must not be none")
        if self.bug == "constructor":
            add_other_shapes()

    def setup(self, seed, dtype):
        if self.bug == "setup":
            return self.penalty["a"]
        setup = super().setup(seed, dtype)
        problem = dataclasses.replace(setup.problem, outer_loss=lambda *_: add_other_shapes())
        return dataclasses.replace(setup, problem=problem)


def add_other_shapes():
    return jnp.sum(jnp.zeros(3) + jnp.zeros(4))


@dataclasses.dataclass(kw_only=True)
class Tracker(trackers.Tracker):
    """Writes nothing.

    Args:
      raises: whether it does, at the second row.
      seconds: that it takes to start.
    """

    raises: bool = False
    seconds: float = 0.0

    def start(self, folder, config, run):
        self.rows = 0
        time.sleep(self.seconds)
        return "run"

    def log(self, row):
        self.rows += 1
        if self.raises and self.rows == 2:
            raise ConnectionError("the server is gone")

    def finish(self, result, pictures):
        pass
