"""Checkpoints: the complete state of a run, from which it resumes with identical results."""

import hashlib
import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.runs import _files

FORMAT = 1
_KEPT = 2
_log = logging.getLogger("bilevel")


class Checkpoints:
    """The last two checkpoints of a run, each an `.npz` file of arrays and a manifest with its checksum.

    Args:
      folder: their folder, which is created with the first checkpoint.
      every: number of steps from one checkpoint to the next; None for no such rule.
      seconds: write a checkpoint if the last one is older than this; None for no such rule.
      origin: hashes by name of what the run depends on; a checkpoint with other hashes is not used.
    """

    def __init__(self, folder: Path, every: int | None, seconds: float | None, origin: Mapping[str, str]):
        self._folder, self._every, self._seconds, self._origin = folder, every, seconds, dict(origin)
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to write a checkpoint after `step` steps."""
        by_step = self._every is not None and step % self._every == 0
        return by_step or (self._seconds is not None and time.monotonic() - self._last >= self._seconds)

    def save(self, step: int, tree: Any) -> None:
        """Write a checkpoint, and delete older ones."""
        self._folder.mkdir(exist_ok=True)
        buffer, arrays = io.BytesIO(), _named(tree)
        saved: dict[str, Any] = {name: _as_numpy(leaf) for name, leaf in arrays.items()}
        np.savez(buffer, **saved)
        content = buffer.getvalue()
        manifest = {
            "format": FORMAT,
            "step": step,
            "origin": self._origin,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "arrays": {name: _kind(leaf) for name, leaf in arrays.items()},
        }
        _files.replace(self._path(step, "npz"), content, durable=True)
        _files.write_json(self._path(step, "json"), manifest, durable=True)  # makes the arrays valid
        self._last = time.monotonic()
        for old in self._steps()[:-_KEPT]:
            for suffix in ("json", "npz"):
                self._path(old, suffix).unlink(missing_ok=True)

    def restore(self, template: Any, rows: int) -> tuple[int, Any] | None:
        """Read the newest usable checkpoint; a warning names each checkpoint that cannot be used.

        Args:
          template: a tree of the same structure, shapes and types.
          rows: the number of rows of metrics; a checkpoint of a later step is not used.

        Returns:
          The step and a tree like `template`, or None if no checkpoint can be used.
        """
        for step in reversed(self._steps()):
            try:
                return step, self._read(step, template, rows)
            except (OSError, ValueError, KeyError) as error:
                _log.warning("checkpoint %s is not used: %s", self._path(step, "npz"), error)
        return None

    def _read(self, step: int, template: Any, rows: int) -> Any:
        manifest = _files.read_json(self._path(step, "json"))
        if manifest is None or manifest.get("format") != FORMAT:
            raise ValueError("its manifest is not readable, or has another version")
        for name, value in self._origin.items():
            if manifest["origin"].get(name) != value:
                raise ValueError(f"it belongs to another {name}")
        if rows < step:
            raise ValueError(f"it was written after step {step}, but only {rows} rows of metrics are left")
        content = self._path(step, "npz").read_bytes()
        if len(content) != manifest["bytes"] or hashlib.sha256(content).hexdigest() != manifest["sha256"]:
            raise ValueError("its checksum is wrong: the file is damaged or incomplete")
        names = _named(template)
        if {name: _kind(leaf) for name, leaf in names.items()} != manifest["arrays"]:
            raise ValueError("its arrays differ from the arrays of this run")
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
            leaves = [_like(leaf, saved[name]) for name, leaf in names.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    def _steps(self) -> list[int]:
        stems = [path.stem for path in self._folder.glob("*.json")]
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _path(self, step: int, suffix: str) -> Path:
        return self._folder / f"{step:08d}.{suffix}"


def fingerprint(tree: Any) -> str:
    """A hash of the arrays of a tree, with their names, shapes and types."""
    digest = hashlib.blake2b(digest_size=16)
    for name, leaf in _named(tree).items():
        digest.update(f"{name} {_kind(leaf)}".encode())
        digest.update(np.ascontiguousarray(_as_numpy(leaf)).data)
    return digest.hexdigest()


def _named(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> str:
    if _is_key(leaf):
        return f"key {jax.random.key_impl(leaf)} {leaf.shape}"
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype} {tuple(leaf.shape)}"


def _as_numpy(leaf: Any) -> np.ndarray:
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    # .npz files cannot hold types that NumPy lacks, such as bfloat16
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def _like(leaf: Any, saved: np.ndarray) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array):
        return jnp.asarray(saved if saved.dtype == leaf.dtype else saved.view(leaf.dtype))
    return saved if isinstance(leaf, np.ndarray) else saved.item()
