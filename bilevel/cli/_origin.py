"""With what a result was computed."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig


def version() -> str:
    """Of bilevel."""
    from bilevel import __version__

    return __version__


def machine(cfg: DictConfig) -> str:
    """A line for the header."""
    import jax

    device = jax.devices()[0]
    return f"  {device.platform} ({device.device_kind}) · {cfg.precision} · jax {jax.__version__} · seed {cfg.seed}"


def origin(cfg: DictConfig) -> dict[str, Any]:
    """Versions, device and seed, for `result.json`."""
    import platform
    from importlib import metadata

    import jax

    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")}
    return {
        "versions": {"python": platform.python_version(), "bilevel": version(), **versions},
        "device": jax.devices()[0].device_kind,
        "seed": cfg.seed,
    }
