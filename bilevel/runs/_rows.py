"""`metrics.jsonl`: one JSON object per line, written by one process at a time."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.runs import _files


class FolderLockedError(OSError):
    """Another process is writing in the folder."""


class Rows:
    """Appends to a file of rows, and holds its lock until closed.

    Args:
      path: the file, which is created if it is missing.

    Raises:
      FolderLockedError: another process holds the lock.
    """

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._path = path
        if not _files.lock(self._file):
            os.close(self._file)
            raise FolderLockedError(
                f"{path.parent}: another process is writing this run; wait until it ends, or choose another hydra.run.dir"
            )

    def read(self) -> list[dict[str, Any]]:
        """The complete rows."""
        return read_rows(self._path)

    def keep(self, count: int) -> list[dict[str, Any]]:
        """Delete all but the first `count` rows, and return these."""
        lines = self._path.read_bytes().splitlines(keepends=True)[:count]
        os.ftruncate(self._file, sum(map(len, lines)))
        os.lseek(self._file, 0, os.SEEK_END)
        return [json.loads(line) for line in lines]

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row, or nothing at all if the disk has no room for it."""
        line = (json.dumps(plain(row)) + "\n").encode()
        before = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, "no space left on the device", str(self._path))
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
                os.lseek(self._file, before, os.SEEK_SET)
            raise

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a file; none if there is no file."""
    return Tail(path).new() if path.is_file() else []


class Tail:
    """Reads a file of rows as it grows."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0

    def new(self) -> list[dict[str, Any]]:
        """The complete rows that were added since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: arrays as lists, and null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(np.asarray(value).tolist())
