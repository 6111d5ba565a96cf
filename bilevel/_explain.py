"""Errors of the command line in a sentence: what Hydra, the configuration, the data or a solver refused, and the fix."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from typing import Any

from bilevel import config

DONE, FAILED, REFUSED, MACHINE, INTERRUPTED = 0, 1, 2, 3, 75  # 75: try again later, as in sysexits.h
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(error: BaseException, arguments: Sequence[str] = ()) -> tuple[str, int]:
    """The message and the exit code for an exception that ended the command."""
    if type(error).__module__.split(".")[0] in ("hydra", "omegaconf"):
        return _from_overrides(arguments) or _first_line(error), REFUSED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: resume=FOLDER goes on with a run, the same command again with a sweep", INTERRUPTED
    if isinstance(error, FileExistsError | config.ConfigError | ValueError | TypeError):  # DataError is a ValueError
        return _first_line(error), REFUSED
    if isinstance(error, OSError):
        return _from_system(error), MACHINE
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"out of memory: {_first_line(error)}", MACHINE
    return f"{type(error).__name__}: {_first_line(error)}", FAILED


def _from_system(error: OSError) -> str:
    where = error.filename or "the run folder"
    if error.errno in _FULL:
        return f"{where}: the disk is full or a quota is used up; free some space, then go on with resume=FOLDER"
    if error.errno in _FORBIDDEN:
        return f"{where}: not allowed to write there; choose a folder of yours, hydra.run.dir=FOLDER"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _from_overrides(arguments: Sequence[str]) -> str | None:
    """Find the override that Hydra could not use, by the groups and keys that exist."""
    groups = config.groups()
    chosen, settings = [], []
    for argument in arguments:
        found = re.match(r"^(?P<mark>\+\+|\+|~)?(?P<key>[\w./@-]+)(=(?P<value>.*))?$", argument)
        if argument.startswith("-"):
            continue
        if found is None:
            return f"{argument!r} is not an override: write key=value, quoted if the value has special characters"
        key, value = found["key"], found["value"]
        if key in groups:
            wrong = _wrong_choice(key, value, groups[key])
            if wrong:
                return wrong
            chosen.append(argument)
        elif not key.startswith("hydra") and not found["mark"]:
            settings.append((key, value))
    return next(filter(None, (_wrong_key(key, value, chosen, groups) for key, value in settings)), None)


def _wrong_choice(group: str, value: str | None, choices: Sequence[str]) -> str | None:
    for choice in (value or "").strip("[]").split(","):
        if choice not in choices:
            return f"{group}={choice}: there is no such choice{config.close(choice, choices)}"
    return None


def _wrong_key(key: str, value: str | None, chosen: Sequence[str], groups: dict[str, Any]) -> str | None:
    node: Any = config.plain_values(config.compose([c for c in chosen if "," not in c]), resolve=False)
    path = ""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            known = list(node) if isinstance(node, dict) else []
            known = known if path else [*known, *groups]
            return f"{path}{part}: there is no such key{config.close(part, [k for k in known if k != 'hydra'])}"
        node, path = node[part], f"{path}{part}."
    return f"{key}: no value given, write {key}=value" if value is None else None
