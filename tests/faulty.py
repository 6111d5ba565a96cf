"""A task that fails in the way that its seed says, for tests of sweeps, until a file `fixed` lies in the folder."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

from bilevel.datasets import DataError
from bilevel.tasks import Ridge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(Ridge):
    """Ridge regression.

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
