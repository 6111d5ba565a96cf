"""Checkpoints: the whole state of a run, so that it goes on from there to the last bit."""

from __future__ import annotations

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
    """The checkpoints of one run: an `.npz` of arrays each, and a manifest with its checksum. The last two are kept.

    Args:
      folder: where they lie; made when the first is written.
      every: write one every so many steps; None for never on that account.
      seconds: write one when the last is older than this; None for never on that account.
      origin: what a checkpoint must have been made of to be used again, by name: hashes, as texts.
    """

    def __init__(self, folder: Path, every: int | None, seconds: float | None, origin: Mapping[str, str]):
        self._folder, self._every, self._seconds, self._origin = folder, every, seconds, dict(origin)
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether it is time to write one, after `step` steps."""
        by_step = self._every is not None and step % self._every == 0
        return by_step or (self._seconds is not None and time.monotonic() - self._last >= self._seconds)

    def save(self, step: int, tree: Any) -> None:
        """Write the checkpoint of a step: arrays, then the manifest that makes them count; then drop older ones."""
        self._folder.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        arrays = _named(tree)
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
        _files.replace(self._arrays(step), content, durable=True)
        _files.write_json(self._manifest(step), manifest, durable=True)
        self._last = time.monotonic()
        for old in self._steps()[:-_KEPT]:
            for path in (self._manifest(old), self._arrays(old)):
                path.unlink(missing_ok=True)

    def restore(self, template: Any, rows: int) -> tuple[int, Any] | None:
        """The newest usable checkpoint: its step, and a tree like `template` with its arrays.

        One that cannot be used is named in a warning, and the one before it taken.

        Args:
          template: a tree of the same structure, shapes and types.
          rows: how many rows of metrics there are; a checkpoint of a later step has lost some.

        Returns:
          None where there is no usable one.
        """
        for step in reversed(self._steps()):
            try:
                return step, self._read(step, template, rows)
            except (OSError, ValueError, KeyError) as error:
                _log.warning("checkpoint %s is not used: %s", self._arrays(step), error)
        return None

    def _read(self, step: int, template: Any, rows: int) -> Any:
        manifest = _files.read_json(self._manifest(step))
        if manifest is None or manifest.get("format") != FORMAT:
            raise ValueError("its manifest is not readable, or of another version")
        for name, value in self._origin.items():
            if manifest["origin"].get(name) != value:
                raise ValueError(f"it was made with another {name}")
        if rows < step:
            raise ValueError(f"it is of step {step}, and only {rows} rows of metrics are left")
        content = self._arrays(step).read_bytes()
        if len(content) != manifest["bytes"] or hashlib.sha256(content).hexdigest() != manifest["sha256"]:
            raise ValueError("its checksum is wrong: it is damaged or cut short")
        names = _named(template)
        if {name: _kind(leaf) for name, leaf in names.items()} != manifest["arrays"]:
            raise ValueError("its arrays are not those of this run")
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
            leaves = [_like(leaf, saved[name]) for name, leaf in names.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    def _steps(self) -> list[int]:
        stems = [path.stem for path in self._folder.glob("*.json")]
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _arrays(self, step: int) -> Path:
        return self._folder / f"{step:08d}.npz"

    def _manifest(self, step: int) -> Path:
        return self._folder / f"{step:08d}.json"


def fingerprint(tree: Any) -> str:
    """A hash of all arrays of a tree, their names, shapes and types."""
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
    # types beyond NumPy's own, such as bfloat16, are not for .npz files
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def _like(leaf: Any, saved: np.ndarray) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array):
        return jnp.asarray(saved if saved.dtype == leaf.dtype else saved.view(leaf.dtype))
    return saved if isinstance(leaf, np.ndarray) else saved.item()
