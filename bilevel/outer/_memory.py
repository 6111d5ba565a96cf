"""The memory that a compiled step needs, compared with the free memory before it runs."""

from pathlib import Path
from typing import Any

import jax

_CGROUP = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


class OutOfMemoryError(MemoryError):
    """One step needs more memory than is free on its device. The message has both numbers and what to reduce.

    Example:
      >>> import bilevel as bl
      >>> issubclass(bl.outer.OutOfMemoryError, MemoryError)
      True
    """


def require(compiled: Any) -> None:
    """Raise `OutOfMemoryError` if the buffers of a compiled step do not fit."""
    plan = compiled.memory_analysis()
    needed = 0 if plan is None else plan.temp_size_in_bytes + plan.output_size_in_bytes
    free = _free()
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"one outer step needs {_size(needed)}, and {_size(free)} are free on {jax.devices()[0].device_kind}: "
            f"take fewer rows or features, fewer hypergrad.steps if it is unrolled, or hypergrad=implicit"
        )


def _free() -> int | None:
    """Bytes free on the device that JAX uses; None where that cannot be told."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return _free_on_host()
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def _free_on_host() -> int | None:
    """Available memory as Linux reports it, within the limit of a container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit, used in _CGROUP:
        try:
            text = (Path("/sys/fs/cgroup") / limit).read_text().strip()
            found += [int(text) - int((Path("/sys/fs/cgroup") / used).read_text())] if text != "max" else []
        except (OSError, ValueError):
            continue
    return min(found, default=None)


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
