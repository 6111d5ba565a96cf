"""Arithmetic on pytrees. Scalars that multiply a leaf are cast to its dtype, so that nothing is promoted."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp

PyTree = Any


def is_inexact(x: Any) -> bool:
    """Whether a leaf can carry a derivative (a float or complex array or number)."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return isinstance(x, float | complex)
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def as_arrays(tree: PyTree) -> PyTree:
    """Every leaf as a strongly typed JAX array, so that a state keeps its types from one step to the next."""

    def convert(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return jax.lax.convert_element_type(x, x.dtype) if is_inexact(x) else x

    return jax.tree.map(convert, tree)


def as_data(tree: PyTree) -> PyTree:
    """Every leaf as a JAX array, and every SciPy sparse matrix as a `jax.experimental.sparse.BCOO`."""
    import scipy.sparse
    from jax.experimental.sparse import BCOO

    return jax.tree.map(lambda x: BCOO.from_scipy_sparse(x) if scipy.sparse.issparse(x) else jnp.asarray(x), tree)


def split(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Split a tree into two of the same shape: the differentiable leaves and the rest, with `None` in the gaps."""
    moving = jax.tree.map(lambda x: x if is_inexact(x) else None, tree)
    fixed = jax.tree.map(lambda x: None if is_inexact(x) else x, tree)
    return moving, fixed


def merge(moving: PyTree, fixed: PyTree) -> PyTree:
    """Undo `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, moving, fixed, is_leaf=lambda x: x is None)


def vdot(x: PyTree, y: PyTree) -> jax.Array:
    """Inner product over all leaves."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), x, y)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), dtype(x)))


def norm(x: PyTree) -> jax.Array:
    """Euclidean norm over all leaves, scaled so that it neither overflows nor underflows; its derivative at 0 is 0."""
    leaves = [jnp.ravel(a) for a in jax.tree.leaves(x) if a.size]
    if not leaves:
        return jnp.zeros((), dtype(x))
    largest = jnp.stack([jnp.max(jnp.abs(jax.lax.stop_gradient(a))).astype(dtype(x)) for a in leaves]).max()
    unit = positive(jnp.where(jnp.isfinite(largest), largest, 1))
    total = sum(jnp.sum((a / unit.astype(a.dtype)) ** 2).astype(dtype(x)) for a in leaves)
    return unit * jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))


def normalized(x: PyTree) -> tuple[jax.Array, PyTree]:
    """‖x‖ and x/‖x‖, which is zero where x is."""
    length = norm(x)
    return length, scale(1 / positive(length), x)


def add_scaled(x: PyTree, scale: Any, y: PyTree) -> PyTree:
    """`x + scale · y`, leaf by leaf."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(scale).astype(a.dtype) * b, x, y)


def sub(x: PyTree, y: PyTree) -> PyTree:
    """`x − y`."""
    return jax.tree.map(lambda a, b: a - b, x, y)


def scale(factor: Any, x: PyTree) -> PyTree:
    """`factor · x`, each leaf keeping its dtype."""
    return jax.tree.map(lambda a: jnp.asarray(factor).astype(a.dtype) * a, x)


def zeros_like(x: PyTree) -> PyTree:
    """Zeros of the same shapes and dtypes."""
    return jax.tree.map(jnp.zeros_like, x)


def tie(x: PyTree) -> PyTree:
    """The same values, with every leaf linear in some element of every leaf.

    JAX differentiates and transposes `custom_linear_solve` only if each leaf of its right-hand side, its products and its
    answer takes part; a block of F that does not depend on θ, or of x that is not used, would be a symbolic zero.
    """
    leaves = [a for a in jax.tree.leaves(x) if a.size]
    if len(leaves) < 2:
        return x
    total = sum((a.ravel()[0].astype(dtype(x)) for a in leaves), start=jnp.zeros((), dtype(x)))
    return jax.tree.map(lambda a: a + (0 * total).astype(a.dtype), x)


def positive(x: jax.Array) -> jax.Array:
    """`x` where it is positive, else 1: a divisor that is never zero, negative or NaN."""
    return jnp.where(x > 0, x, jnp.ones_like(x))


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a / b`, and zero where b is zero."""
    zero = b == 0
    return jnp.where(zero, jnp.zeros_like(a), a / jnp.where(zero, jnp.ones_like(b), b))


def where(condition: Any, x: PyTree, y: PyTree) -> PyTree:
    """`x` where the scalar condition holds, else `y`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


def with_derivative_of(y: PyTree, x: PyTree) -> PyTree:
    """The values of `x` with the derivatives of `y`."""
    return jax.tree.map(lambda x, y: jax.lax.stop_gradient(x - y) + y, x, y)


def without_derivative(x: PyTree, sources: PyTree) -> PyTree:
    """`x`, whose derivative with respect to the sources is NaN rather than a silent zero."""
    inputs = [a for a in jax.tree.leaves(sources) if isinstance(a, jax.core.Tracer) and is_inexact(a)]

    @jax.custom_jvp
    def poison(value: jax.Array, *inputs: jax.Array) -> jax.Array:
        del inputs
        return value

    @poison.defjvp
    def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        value = primals[0]
        total = jnp.stack([jnp.sum(t).astype(value.dtype) for t in tangents[1:]]).sum()
        return value, jnp.full_like(value, jnp.nan) * total

    def mark(a: Any) -> Any:
        if not (inputs and isinstance(a, jax.Array) and is_inexact(a)):
            return a
        return poison(jax.lax.stop_gradient(a), *inputs)

    return jax.tree.map(mark, x)


def signs(x: PyTree) -> PyTree:
    """A tree like x of ±1 that look random: the highest bits of the squares of an odd number's multiples."""

    def of(a: jax.Array) -> jax.Array:
        mixed = (jnp.arange(1, a.size + 1, dtype=jnp.uint32) * jnp.uint32(2654435769)) ** 2
        return jnp.where(mixed >> 31 == 0, 1, -1).astype(a.dtype).reshape(a.shape)

    return jax.tree.map(of, x)


def all_finite(x: PyTree) -> jax.Array:
    """Whether no differentiable leaf holds a NaN or an infinity."""
    leaves = [jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(x) if is_inexact(a)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def size(x: PyTree) -> int:
    """Number of unknowns."""
    return sum(a.size for a in jax.tree.leaves(x))


def dtype(x: PyTree) -> Any:
    """The dtype in which norms and inner products of this tree are taken."""
    leaves = [a.dtype for a in jax.tree.leaves(x) if is_inexact(a)]
    return jnp.result_type(*leaves) if leaves else jnp.result_type(float)


def eps(x: PyTree) -> float:
    """The largest machine epsilon among the leaves."""
    leaves = [float(jnp.finfo(a.dtype).eps) for a in jax.tree.leaves(x) if is_inexact(a)]
    return max(leaves, default=float(jnp.finfo(float).eps))


def shapes(x: PyTree) -> str:
    """A short description of a tree's leaves, for error messages."""
    described = jax.tree.map(lambda a: f"{jnp.result_type(a).name}{list(jnp.shape(a))}", x)
    return str(described).replace("'", "")


def check_like(name: str, value: PyTree, reference_name: str, reference: PyTree) -> None:
    """Raise ValueError unless both trees have the same structure and shapes."""
    (leaves, structure), (expected, wanted) = jax.tree.flatten(value), jax.tree.flatten(reference)
    if structure != wanted or [jnp.shape(a) for a in leaves] != [jnp.shape(a) for a in expected]:
        raise ValueError(
            f"{name} must have the structure and shapes of {reference_name}: "
            f"got {shapes(value)}, expected {shapes(reference)}"
        )


def cast_like(value: PyTree, reference: PyTree) -> PyTree:
    """Each leaf in the dtype of its counterpart in `reference`."""
    return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.result_type(b)), value, reference)
