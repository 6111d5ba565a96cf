"""Compiled programs, kept for parts that are equal by value, so that a second run with equal parts compiles nothing.

Functions made anew (a lambda in a loop, `optax.adam(0.1)`) are equal if their code and everything that they use is equal:
closures, defaults, and for a user's functions the global names in them. With an array among these nothing is kept, so that no
cache holds data.
"""

import dataclasses
import enum
import functools
import sysconfig
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

_KEPT = 64
_MOST_PARTS = 20_000
_PATHS = sysconfig.get_paths()
_LIBRARIES = _PATHS["purelib"], _PATHS["platlib"], _PATHS["stdlib"], str(Path(__file__).resolve().parent)
_compiled: OrderedDict[Hashable, Callable[..., Any]] = OrderedDict()


class _UnlikeError(Exception):
    """A part that is like no other: an array, a file, or too many parts."""


def compiled(function: Callable[..., Any], *parts: Any) -> Any:
    """`jax.jit` of the function with these parts as its first arguments, the same one for parts that are equal by value.

    Args:
      function: of this package, defined at the top level of a file.
      parts: constants of the program: problems, solvers, optimizers.
    """
    try:
        key = function, _Keys().of(parts)
        hash(key)
    except (_UnlikeError, TypeError, RecursionError):
        return jax.jit(functools.partial(function, *parts))
    if key not in _compiled:
        _compiled[key] = jax.jit(functools.partial(function, *parts))
    _compiled.move_to_end(key)
    while len(_compiled) > _KEPT:
        _compiled.popitem(last=False)
    return _compiled[key]


class _Keys:
    """Keys by value; a part that was met already is named by its number, which ends cycles."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no id is used twice

    def of(self, part: Any) -> Hashable:
        """A hashable key, equal for parts that behave alike. Raises _UnlikeError where there is none."""
        if part is None or isinstance(part, bool | int | str | bytes | enum.Enum | type | types.ModuleType | np.dtype):
            return type(part), part
        if isinstance(part, float | complex | np.generic):
            return type(part), repr(part)
        if isinstance(part, np.ndarray | jax.Array):
            return self._of_array(part)
        if id(part) in self._met:
            return "met", self._met[id(part)]
        if len(self._met) > _MOST_PARTS:
            raise _UnlikeError
        self._met[id(part)] = len(self._met)
        self._alive.append(part)
        return self._of_structure(part)

    def _of_structure(self, part: Any) -> Hashable:
        if isinstance(part, types.FunctionType):
            return self._of_function(part)
        if isinstance(part, types.MethodType):
            return "method", self.of(part.__func__), self.of(part.__self__)
        if isinstance(part, functools.partial):
            return "partial", self.of(part.func), self.of(part.args), self.of(part.keywords)
        if isinstance(part, types.BuiltinFunctionType | np.ufunc):
            return "builtin", part
        if isinstance(part, tuple | list):
            return type(part), self._each(part)
        if isinstance(part, dict | types.MappingProxyType):
            return type(part), self._each(part), self._each(part.values())
        if isinstance(part, set | frozenset):
            return type(part), frozenset(_Keys().of(each) for each in part)
        if isinstance(part, types.CellType):
            return "cell", self.of(part.cell_contents)
        if dataclasses.is_dataclass(part):
            return type(part), self._each(getattr(part, field.name) for field in dataclasses.fields(part))
        if hasattr(part, "__wrapped__"):
            return "wrapped", type(part), self.of(part.__wrapped__)
        return self._of_object(part)

    def _of_function(self, function: types.FunctionType) -> Hashable:
        code = function.__code__
        used = ()
        if not code.co_filename.startswith(_LIBRARIES):
            used = tuple(name for name in _names(code) if name in function.__globals__)
        return (
            code,
            self._each(function.__defaults__ or ()),
            self._each((function.__kwdefaults__ or {}).values()),
            self._each(function.__closure__ or ()),
            used,
            self._each(function.__globals__[name] for name in used),
        )

    def _of_object(self, part: Any) -> Hashable:
        slots = [name for cls in type(part).__mro__ for name in getattr(cls, "__slots__", ())]
        if not hasattr(part, "__dict__") and not slots:
            raise _UnlikeError
        values = {**{name: getattr(part, name, None) for name in slots}, **getattr(part, "__dict__", {})}
        return type(part), self._each(values), self._each(values.values())

    def _of_array(self, array: Any) -> Hashable:
        if array.size > 1 or isinstance(array, Tracer):
            raise _UnlikeError
        return type(array), str(array.dtype), array.shape, np.asarray(array).tobytes()

    def _each(self, parts: Iterable[Any]) -> Hashable:
        return tuple(self.of(part) for part in parts)


def _names(code: types.CodeType) -> list[str]:
    """The global names that a function and the functions inside it may use."""
    inside = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return sorted({*code.co_names, *inside})
