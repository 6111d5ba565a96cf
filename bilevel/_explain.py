"""Errors of the command line: a sentence with the problem and its fix, and an exit code. Errors in code keep their traceback."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from bilevel import config

DONE, FAILED, REFUSED, SYSTEM, INTERRUPTED = 0, 1, 2, 3, 75  # 75: try again later, as in sysexits.h
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def errors_in_a_sentence(arguments: Sequence[str] = ()) -> Iterator[None]:
    """End the process with a sentence and an exit code if the block raises.

    An error in code keeps its traceback, and every error does if HYDRA_FULL_ERROR is 1.
    """
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        message, code = explain(error, arguments)
        if traceback_wanted or (code == FAILED and not _is_ours(error)):
            raise
        print(f"error: {message}\n(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
        sys.exit(code)


def explain(error: BaseException, arguments: Sequence[str] = ()) -> tuple[str, int]:
    """The message and the exit code for an exception that ended the command."""
    if type(error).__module__.split(".")[0] in ("hydra", "omegaconf"):
        return _from_overrides(arguments) or _first_line(error), REFUSED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: continue a run with resume=FOLDER, and a sweep by rerunning its command", INTERRUPTED
    about_input = isinstance(error, ValueError | TypeError) and _is_ours(error)
    if about_input or isinstance(error, FileExistsError | config.ConfigError):
        return _first_line(error), REFUSED
    if isinstance(error, OSError):
        return _from_system(error), SYSTEM
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"out of memory: {_first_line(error)}", SYSTEM
    return f"{type(error).__name__}: {_first_line(error)}", FAILED


def _is_ours(error: BaseException) -> bool:
    """Whether bilevel raised an error on purpose: it defines the class, as of `DataError`, or a `raise` of its own ran."""
    return type(error).__module__.startswith("bilevel.") or config.raised_in(error, ("bilevel", "experiments"))


def _from_system(error: OSError) -> str:
    where = error.filename or "the run folder"
    if error.errno in _FULL:
        return f"{where}: the disk is full or a quota is used up; free some space, then continue with resume=FOLDER"
    if error.errno in _FORBIDDEN:
        return f"{where}: no permission to write there; choose another folder with hydra.run.dir=FOLDER"
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
