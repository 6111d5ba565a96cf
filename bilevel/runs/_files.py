"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # no such locks outside POSIX
    fcntl = None


def replace(path: Path, content: bytes | Callable[[BinaryIO], Any], *, durable: bool = False) -> None:
    """Write a temporary file and move it to `path`; `durable` waits for the disk. What fails leaves no trace."""
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
    """Write a text, whole or not at all."""
    replace(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any], *, durable: bool = False) -> None:
    """Write a mapping as JSON, whole or not at all."""
    replace(path, (json.dumps(value, indent=2) + "\n").encode(), durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """A mapping written by `write_json`; None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def lock(file: int, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False where another process holds the lock, True also where there are none."""
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
    with contextlib.suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
