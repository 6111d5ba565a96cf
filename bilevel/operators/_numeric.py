"""Helpers of the operators: arguments in the dtype of x, and checks of them."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from bilevel import _tree


def as_float(x: Any) -> jax.Array:
    """A strongly typed floating-point array."""
    x = jnp.asarray(x)
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.result_type(float)
    return jax.lax.convert_element_type(x, dtype)


def as_floats(x: Any) -> Any:
    """`as_float` for every leaf."""
    return jax.tree.map(as_float, x)


def array(who: str, x: Any, ndim: int, kind: str) -> jax.Array:
    """The argument x as a floating-point array; a ValueError unless it has this number of axes."""
    if jnp.ndim(x) != ndim:
        raise ValueError(f"{who}: x must be a {kind}, got shape {jnp.shape(x)}; use jax.vmap for batches")
    return as_float(x)


def vector(who: str, x: Any) -> jax.Array:
    """The argument x as a floating-point vector; a ValueError if it is none."""
    return array(who, x, 1, "vector")


def cast(value: Any, x: Any) -> jax.Array:
    """A hyperparameter in the dtype of x."""
    return jnp.asarray(value, jnp.result_type(x))


def spread(value: Any, x: Any) -> Any:
    """A scalar or an array for every leaf of x; a tree with the structure of x as it is."""
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(value))
    return jax.tree.map(lambda _: value, x) if is_leaf else value


def threshold(penalty: Any, scaling: Any, x: Any) -> jax.Array:
    """scaling · penalty in the dtype of x; a penalty of None is 1."""
    return cast(1.0 if penalty is None else penalty, x) * cast(scaling, x)


def radius(who: str, name: str, value: Any, x: Any) -> jax.Array:
    """A size in the dtype of x: an error if a plain number is negative, NaN if a traced value is."""
    if isinstance(value, int | float) and value < 0:
        raise ValueError(f"{who}: {name} must be at least 0, got {value}: no point has that size")
    value = cast(value, jnp.zeros((), _tree.dtype(x)))
    return nan_unless(value >= 0, value)


def nan_unless(holds: Any, x: jax.Array) -> jax.Array:
    """The array x where the condition holds, else NaN. A product, so that derivatives become NaN too."""
    return x * jnp.where(holds, 1, jnp.nan).astype(x.dtype)


def feasible(who: str, what: str, holds: Any, x: jax.Array, check: bool) -> jax.Array:
    """The array x if a set is not empty, else NaN; a ValueError instead if `check`, and the values are known."""
    if check and not isinstance(holds, jax.core.Tracer) and not holds:
        raise ValueError(
            f"{who}: {what} is empty, or its projection was not found to the tolerance: (a) correct the constraints, "
            f"or (b) pass check_feasible=False for NaN instead of this error"
        )
    return nan_unless(holds, x)


def tolerance(x: jax.Array) -> float:
    """Relative residual up to which the answer of an iterative operator is a solution: 1e-10, in float32 1e-4."""
    return 10 * float(jnp.finfo(x.dtype).eps) ** 0.7


def require_shape(who: str, name: str, value: Any, shape: tuple[int, ...], why: str) -> None:
    """Raise ValueError unless an argument has this shape."""
    if jnp.shape(value) != shape:
        raise ValueError(
            f"{who}: {name} must have shape {shape} ({why}), got {jnp.shape(value)}; use jax.vmap for rows"
        )
