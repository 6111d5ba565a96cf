"""Files that are replaced as a whole, so that no reader ever sees half of one."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # fcntl exists on POSIX systems alone
    fcntl = None


def replace(path: Path, content: bytes | Callable[[BinaryIO], Any], *, durable: bool = False) -> None:
    """Write a temporary file and move it to `path`; an error leaves neither behind. `durable` waits for the disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text."""
    replace(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any], *, durable: bool = False) -> None:
    """Replace a file by a mapping, as JSON."""
    replace(path, (json.dumps(value, indent=2) + "\n").encode(), durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, or None if there is no such file or it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def lock(file: int, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed, and return whether that succeeded.

    It fails if another process holds the lock, and always succeeds on a system without locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot do this
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
