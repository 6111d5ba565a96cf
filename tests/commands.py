"""The command line as a user runs it, in this process or in one of its own, and what it leaves."""

import contextlib
import importlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from bilevel.runs import _files

HINT = "(HYDRA_FULL_ERROR=1 shows the traceback)"
DROPPED = ("HYDRA_FULL_ERROR", "NETRC", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PYTHONPATH")
OPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": None, "XLA_FLAGS": None}  # for the programs that users run
CONFIGURED = ("jax_enable_x64", "jax_platforms")
Done = subprocess.CompletedProcess[str]


def environment(**more: str | None) -> dict[str, str]:
    """The environment of this process, without what would change what a command prints; None drops a variable."""
    kept = {key: value for key, value in os.environ.items() if key not in DROPPED and not key.startswith("WANDB_")}
    return {key: value for key, value in (kept | more).items() if value is not None}


def module(name: str, *arguments: str, cwd: Path, timeout: float = 180, **more: str | None) -> Done:
    """`python -m bilevel.<name>`, run to its end in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"bilevel.{name}", *arguments],
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
    )


def command(*arguments: str, cwd: Path, **more: Any) -> Done:
    """`python -m bilevel.run`, run to its end in a process of its own."""
    return module("run", *arguments, cwd=cwd, **more)


def module_here(name: str, *arguments: str, cwd: Path, **more: str | None) -> Done:
    """`python -m bilevel.<name>`, run to its end in this process, which is left as it was."""
    main = importlib.import_module(f"bilevel.{name}").main
    code: Any = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        mock.patch.object(
            logging, "_handlerList", []
        ),  # Hydra closes those in it, some of which hold pytest's own files
        _restored(),
    ):
        _set_environment(environment(**more))
        os.chdir(cwd)
        sys.argv = [f"bilevel.{name}", *arguments]
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return subprocess.CompletedProcess(sys.argv, code or 0, out.getvalue(), err.getvalue())


def here(*arguments: str, cwd: Path, **more: str | None) -> Done:
    """`python -m bilevel.run`, run to its end in this process."""
    return module_here("run", *arguments, cwd=cwd, **more)


def _set_environment(wanted: dict[str, str]) -> None:
    for key in os.environ.keys() - wanted.keys():
        del os.environ[key]
    os.environ.update({key: value for key, value in wanted.items() if os.environ.get(key) != value})


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Put back whatever of this process the command line changes."""
    variables, folder, arguments = dict(os.environ), Path.cwd(), sys.argv
    configured = {name: getattr(jax.config, name) for name in CONFIGURED}
    loggers = [logging.getLogger(name) for name in (None, "bilevel", "matplotlib")]
    logged = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _set_environment(variables)
        os.chdir(folder)
        sys.argv = arguments
        for name, value in configured.items():
            jax.config.update(name, value)
        for logger, level, propagate, kept in logged:
            logger.setLevel(level)
            logger.propagate, logger.handlers[:] = propagate, kept
        for number, handler in handlers.items():
            signal.signal(number, handler)
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


def begin(*arguments: str, cwd: Path, **more: str | None) -> subprocess.Popen[bytes]:
    """`python -m bilevel.run`, begun; what it prints is left in `printed.txt`."""
    with (cwd / "printed.txt").open("wb") as printed:
        return subprocess.Popen(
            [sys.executable, "-m", "bilevel.run", *arguments],
            cwd=cwd,
            env=environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
        )


@contextlib.contextmanager
def going_on(command: list[str], *, cwd: Path, until: str, seconds: float = 60, **more: str | None) -> Iterator[Path]:
    """A command that ends on Ctrl-C, once it has printed some words: the file in which it prints."""
    path = cwd / "printed.txt"
    with path.open("wb") as printed:
        process = subprocess.Popen(command, cwd=cwd, env=environment(**more), stdout=printed, stderr=printed)
    deadline = time.monotonic() + seconds
    while until not in path.read_text(encoding="utf-8"):
        assert process.poll() is None, path.read_text(encoding="utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.2)
    try:
        yield path
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until a run has written that many rows; fail if it ends before."""
    deadline = time.monotonic() + seconds
    path = folder / "metrics.jsonl"
    while not path.is_file() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, f"no {count} rows after {seconds} s"
        time.sleep(0.001)


def wait_for_tracker(folder: Path, name: str, count: int, seconds: float = 300) -> None:
    """Wait until a tracker has sent that many rows and has ended; on a busy machine, long: it comes last in line."""
    deadline = time.monotonic() + seconds
    cursor, lock = (folder / "trackers" / f"{name}.{suffix}" for suffix in ("json", "lock"))
    while not cursor.is_file() or json.loads(cursor.read_text(encoding="utf-8"))["rows"] < count or not is_free(lock):
        assert time.monotonic() < deadline, f"{name} has not sent {count} rows after {seconds} s"
        time.sleep(0.1)


def is_free(path: Path) -> bool:
    """Whether no process holds the lock of a file."""
    with path.open("rb") as file:
        return _files.lock(file.fileno())


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    """Without what a second run does not repeat."""
    return {key: value for key, value in values.items() if key != "seconds"}


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text(encoding="utf-8"))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, with what is in it."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def error_of(done: Done, code: int = 2) -> str:
    """The sentence that a refused command ends with."""
    assert done.returncode == code, done.stderr
    sentence, hint = done.stderr.splitlines()
    assert hint == HINT
    assert sentence.startswith("error: ")
    return sentence.removeprefix("error: ")
