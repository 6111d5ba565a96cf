"""What the command line does between the configuration and the library: runs, resumed runs, sweeps, lists."""

from bilevel.cli.execute import Ended, execute
from bilevel.cli.job import FolderTakenError, Job

__all__ = ["Ended", "FolderTakenError", "Job", "execute"]
