"""Optimizers of the hyperparameters by name."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import optax


def from_optax(
    name: str, learning_rate: float | None = 0.1, options: Mapping[str, Any] | None = None
) -> optax.GradientTransformation:
    """Any optimizer of optax by its name, for the configuration: `optimizer=optax optimizer.name=lion`.

    Args:
      name: a function of optax that returns a gradient transformation, such as `adam` or `lion`.
      learning_rate: its first argument; None is its own default.
      options: its other arguments by name.

    Raises:
      ValueError: no such optimizer, or an argument that it does not take.

    Example:
      >>> import bilevel as bl
      >>> bl.outer.from_optax("lion", 0.01, {"b1": 0.8})._fields
      ('init', 'update')
    """
    make = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    takes = inspect.signature(make).parameters if inspect.isfunction(make) else {}
    if "learning_rate" not in takes:
        near = difflib.get_close_matches(name, _names())
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(_names())}"
        raise ValueError(f"name={name}: optax has no such optimizer; {hint}")
    unknown = [key for key in options or {} if key not in takes]
    if unknown:
        raise ValueError(f"options.{unknown[0]}: optax.{name} takes {', '.join(takes)}")
    rate = {} if learning_rate is None else {"learning_rate": learning_rate}
    assert make is not None
    return make(**rate, **(options or {}))


def _names() -> list[str]:
    functions = {name: value for name, value in vars(optax).items() if inspect.isfunction(value)}
    return sorted(name for name, value in functions.items() if "learning_rate" in inspect.signature(value).parameters)
