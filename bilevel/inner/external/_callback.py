"""How compiled JAX code calls foreign code, and the form of its arguments on the host.

`jax.pure_callback` copies large arguments by tasks on XLA's CPU threads. If that pool has one thread, and the callback
runs on it, the copies never arrive and the process hangs. In that case the arguments are handed over in place, by JAX's
`buffer_callback`. JAX code called from inside such a callback runs at once if none of its inputs has to be copied, so they
must be arrays that start at a multiple of 64 bytes (`aligned`).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

from bilevel._tree import PyTree

_ALIGNMENT = 64


def call(function: Callable[..., PyTree], shapes: PyTree, *args: PyTree) -> PyTree:
    """function(*args) on the host, where every leaf is a read-only NumPy array; under `vmap` one lane after the other.

    Args:
      function: returns arrays of exactly the structure, shapes and dtypes of `shapes`, and raises nothing.
      shapes: what it returns, as `jax.ShapeDtypeStruct`s.
      args: pytrees of arrays.
    """
    leaves, structure = jax.tree.flatten(args)

    def on_host(*leaves: Any) -> PyTree:
        return function(*jax.tree.unflatten(structure, [_read_only(a) for a in leaves]))

    def copying(*leaves: jax.Array) -> PyTree:
        return jax.pure_callback(on_host, shapes, *leaves, vmap_method="sequential")

    if pool_size() > 1:
        return copying(*leaves)
    return jax.lax.platform_dependent(*leaves, cpu=_in_place(on_host, shapes), default=copying)


def pool_size() -> int:
    """Threads of XLA's CPU pool: as set by the environment, else one for each core that this process may use."""
    given = os.environ.get("PJRT_NPROC") or os.environ.get("NPROC")
    if given and given.isdigit() and int(given) > 0:
        return int(given)
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_place(on_host: Callable[..., PyTree], shapes: PyTree) -> Callable[..., PyTree]:
    try:
        from jax.experimental.buffer_callback import buffer_callback
    except ImportError as error:
        raise RuntimeError(
            "an external solver may hang under jit if XLA has a single CPU thread, and this JAX has no buffer_callback to avoid "
            "it: set the environment variable NPROC=2 before JAX starts"
        ) from error

    def write(context: Any, out: PyTree, *leaves: Any) -> None:
        del context
        found = jax.tree.leaves(on_host(*leaves))
        for buffer, value in zip(jax.tree.leaves(out), found, strict=True):
            np.asarray(buffer)[...] = value

    return buffer_callback(write, shapes, vmap_method="sequential")


@contextlib.contextmanager
def jax_on_host() -> Iterator[None]:
    """Run JAX code that foreign code calls on the CPU, in double precision."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


def _read_only(leaf: Any) -> np.ndarray:
    view = np.asarray(leaf).view()
    view.flags.writeable = False
    return view


def in_double(tree: PyTree) -> PyTree:
    """Every floating-point leaf in double precision; the others as they are."""
    return jax.tree.map(lambda a: np.asarray(a, np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def in_scipy(tree: PyTree) -> PyTree:
    """Every `BCOO` matrix as a SciPy CSR array."""
    return jax.tree.map(lambda a: _csr(a) if isinstance(a, BCOO) else a, tree, is_leaf=lambda a: isinstance(a, BCOO))


def _csr(matrix: BCOO) -> Any:
    import scipy.sparse

    values, (rows, columns) = np.asarray(matrix.data), np.asarray(matrix.indices).T
    inside = (rows < matrix.shape[0]) & (columns < matrix.shape[1])  # padding lies outside
    return scipy.sparse.csr_array((values[inside], (rows[inside], columns[inside])), shape=matrix.shape)


def aligned(tree: PyTree) -> PyTree:
    """Every leaf at an address where JAX takes it without a copy."""
    return jax.tree.map(_align, tree)


def _align(array: np.ndarray) -> np.ndarray:
    if array.ctypes.data % _ALIGNMENT == 0 and array.flags.c_contiguous:
        return array
    raw = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    made = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    made[...] = array
    return made
