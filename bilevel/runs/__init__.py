"""Run folders, checkpoints, trackers and the console."""

from bilevel.runs._files import write_text
from bilevel.runs._folder import Run, RunFolder, holds_run, is_locked, load, read_result, read_status, write_status
from bilevel.runs._rows import FolderLockedError, plain, read_rows

__all__ = [
    "FolderLockedError",
    "Run",
    "RunFolder",
    "holds_run",
    "is_locked",
    "load",
    "plain",
    "read_result",
    "read_rows",
    "read_status",
    "write_status",
    "write_text",
]
