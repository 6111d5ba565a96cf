"""What the command line does between the configuration and the library: runs, resumed runs, sweeps, lists."""

from bilevel.cli.execute import execute
from bilevel.cli.job import FolderTakenError, Job

__all__ = ["FolderTakenError", "Job", "execute"]
