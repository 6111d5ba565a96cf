"""JAX, configured for a run, and the versions and the device that a result was computed with."""

import os
import platform
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from omegaconf import DictConfig

from bilevel import __version__, config


def configure(cfg: DictConfig) -> None:
    """Set the platform, the precision and the folder of compiled programs.

    Raises:
      ConfigError: JAX finds no device of this platform.
    """
    jax.config.update("jax_enable_x64", cfg.precision == "float64")
    jax.config.update("jax_platforms", "cuda" if cfg.platform == "gpu" else "cpu")
    keep_compiled_programs()
    try:
        found = jax.devices()[0].platform
    except (RuntimeError, AssertionError):
        found = None
    if found != cfg.platform:  # also where JAX has already started on another platform
        raise config.ConfigError(
            f"platform={cfg.platform}: JAX finds no such device; install jax[cuda13] on a machine with a GPU, "
            f"or use platform=cpu"
        )


def keep_compiled_programs() -> None:
    """Keep compiled programs in the user's cache folder, unless the environment names another one or turns this off."""
    # JAX recompiles an entry that is incomplete: another process is writing it, or was killed while writing
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    off = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false")
    if off or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bilevel" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def header(cfg: DictConfig) -> str:
    """The line of the header that describes the device, the precision, the version of JAX and the seed."""
    device = jax.devices()[0]
    return f"  {device.platform} ({device.device_kind}) · {cfg.precision} · jax {jax.__version__} · seed {cfg.seed}"


def origin(cfg: DictConfig) -> dict[str, Any]:
    """Versions, device and seed, for `result.json`."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")}
    return {
        "versions": {"python": platform.python_version(), "bilevel": __version__, **versions},
        "device": jax.devices()[0].device_kind,
        "seed": cfg.seed,
    }
