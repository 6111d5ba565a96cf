"""Optimizers of the hyperparameters by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any


def from_optax(name: str, learning_rate: float | None = 0.1, options: Mapping[str, Any] | None = None) -> Any:
    """Any optimizer of optax by its name, for the configuration: `optimizer=optax optimizer.name=lion`.

    Args:
      name: a function of optax that returns a gradient transformation, such as `adam` or `lion`.
      learning_rate: its first argument; None is its own default.
      options: its other arguments by name.

    Raises:
      ValueError: no such optimizer, or an argument that it does not take.
    """
    import optax
    from optax import contrib

    make = getattr(optax, name, None) or getattr(contrib, name, None)
    takes = inspect.signature(make).parameters if inspect.isfunction(make) else {}
    if "learning_rate" not in takes:
        known = [n for n in dir(optax) if inspect.isfunction(f := getattr(optax, n)) and "learning_rate" in inspect.signature(f).parameters]
        near = difflib.get_close_matches(name, known)
        raise ValueError(f"optimizer.name={name}: optax has no such optimizer; {'did you mean ' + ' or '.join(near) if near else 'it has ' + ', '.join(known)}?")
    unknown = [key for key in options or {} if key not in takes]
    if unknown:
        raise ValueError(f"optimizer.options.{unknown[0]}: optax.{name} takes {', '.join(takes)}")
    rate = {} if learning_rate is None else {"learning_rate": learning_rate}
    return make(**rate, **(options or {}))
