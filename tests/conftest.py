"""Shared fixtures. Double precision where a test asks for `x64`; a fresh precision for every test."""

import contextlib
import gc
import getpass
import itertools
import os
import shutil
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["XDG_CACHE_HOME"] = str(
    Path(tempfile.gettempdir()) / f"bilevel-tests-{getpass.getuser()}"
)  # not the user's own
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compile faster; `.ci/run` has a job that optimizes
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and version("jaxlib").startswith("0.10."):
    older = "--xla_cpu_use_fusion_emitters=false"  # compiles faster by a third; newer versions end at a flag they do not know
    os.environ["XLA_FLAGS"] = " ".join({older: None} | dict.fromkeys(os.environ.get("XLA_FLAGS", "").split()))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["XDG_CACHE_HOME"] + "/compiled")  # for the next run too
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

COMPILED = Path(os.environ["XDG_CACHE_HOME"]) / "compiled"


def pytest_configure(config: pytest.Config) -> None:
    """Begin a new cache where the old one has grown large; JAX itself removes nothing from it."""
    main_process = not hasattr(config, "workerinput")
    if main_process and sum(path.stat().st_size for path in COMPILED.glob("*")) > 4 * 2**30:
        shutil.rmtree(COMPILED)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test marked `slice(n)`, every n-th runs by default, at least one of each kind; the others are slow.

    The kind is what stands before a colon in the name of a case. Which of the n depends on the test, so that tests of the same
    cases take different ones.
    """
    families = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slice"):
            test, _, case = item.nodeid.partition("[")
            families[test, case.partition(":")[0] if ":" in case else ""].append(item)
    for (test, _), cases in families.items():
        n = cases[0].get_closest_marker("slice").args[0]
        chosen = zlib.crc32(test.encode()) % min(n, len(cases))
        for number, item in enumerate(cases):
            if number % n != chosen:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Collect garbage rarely: JAX traces millions of small objects, of which few are in cycles. It saves a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Set for the whole process: callbacks run in threads of their own, which a thread's own setting does not reach."""
    config: Any = jax.config
    before = config.jax_enable_x64
    jax.config.update("jax_enable_x64", name == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test."""
    with precision("float64"):
        yield


@pytest.fixture
def strict() -> Iterator[None]:
    """Double precision, and no implicit dtype promotion: for tests of our own rooms."""
    with precision("float64"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both precisions."""
    with precision(request.param):
        yield request.param


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def few_memory_maps() -> Iterator[None]:
    """Compiled programs hold memory maps, of which Linux allows a process 65530; past that, the compiler crashes."""
    yield
    maps = Path("/proc/self/maps")
    if next(_tests) % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
