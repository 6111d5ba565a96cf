"""Compiled programs are kept in the user's cache folder, so that the same run starts faster the next time."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def use() -> None:
    """Tell JAX where to keep compiled programs, unless the user did, or told it not to."""
    import jax

    # an entry that another process is writing, or was killed at, is compiled again
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    if _VARIABLE in os.environ or os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false"):
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "bilevel" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
