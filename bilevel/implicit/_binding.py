"""Match the arguments of a solver's call with the arguments of its optimality condition."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _Call(NamedTuple):
    """A solver's call without its start."""

    by_position: list[tuple[str, Any]]  # with the names in the solver's signature; index = position after the start
    by_keyword: dict[str, Any]
    extra: list[Any]  # positional, without a name
    defaults: dict[str, Any]  # of the solver's parameters that the call omits


def bind(
    solver: Callable[..., Any],
    optimality_fun: Callable[..., Any],
    reference: Callable[..., Any] | inspect.Signature | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with which to call `optimality_fun(sol, *args, **kwargs)`, from a call `solver(*args, **kwargs)`.

    The solver's first argument is its start; the condition's first is the solution. Every other argument is matched by
    name. An argument passed by position whose name the condition does not use is matched with the condition's parameter at
    the same position, if that is still free (`solver(init, lam)` fits `F(x, theta)`, as in jaxopt). The solver's defaults
    apply if the condition has a parameter of that name.

    Raises:
      TypeError: an argument is not known to the condition, or one that it needs is missing.
    """
    sig = _signature(optimality_fun if reference is None else reference)
    if sig is None:
        return args[1:], kwargs
    call, accepted = _read_call(solver, args, kwargs), _after_first(sig)
    kinds = {p.kind for p in sig.parameters.values()}
    positional = [name for name, p in accepted.items() if p.kind in _POSITIONAL]
    names = f"{_name(solver)!r}", f"{_name(optimality_fun)!r}"

    chosen = {name: value for name, value in call.by_position if name in accepted}
    solver_names = {name for name, _ in call.by_position} | set(call.by_keyword) | set(call.defaults)
    for position, (name, value) in enumerate(call.by_position):
        if name not in accepted:
            twin = positional[position] if position < len(positional) else None
            if twin is None or twin in solver_names:
                raise _unknown(name, accepted, *names)
            chosen[twin] = value
    for name, value in call.by_keyword.items():
        if name not in accepted and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise _unknown(name, accepted, *names)
        chosen[name] = value

    extra = list(call.extra)
    for name in positional:
        if extra and name not in chosen:
            chosen[name] = extra.pop(0)
    if extra and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise TypeError(f"the solver {names[0]} was called with {len(extra)} more arguments than {names[1]} takes")
    chosen = {**{k: v for k, v in call.defaults.items() if k in accepted}, **chosen}

    missing = [name for name, p in accepted.items() if p.default is inspect.Parameter.empty and name not in chosen]
    if missing:
        raise TypeError(
            f"the optimality condition {names[1]} needs {', '.join(map(repr, missing))}, which this call of the solver "
            f"{names[0]} does not pass: pass it to the solver under that name, or give it a default"
        )
    own = _signature(optimality_fun, follow_wrapped=False) or sig
    return _as_call([accepted[name] for name in positional], own, chosen, extra)


def _unknown(name: str, accepted: Iterable[str], solver: str, optimality_fun: str) -> TypeError:
    known = ", ".join(accepted) or "only the solution"
    return TypeError(
        f"argument {name!r} of the solver {solver} is not a parameter of its optimality condition {optimality_fun} "
        f"(parameters: {known}): add it there, or bind it to the solver with functools.partial"
    )


def _signature(function: Any, follow_wrapped: bool = True) -> inspect.Signature | None:
    if isinstance(function, inspect.Signature):
        return function
    try:
        return inspect.signature(function, follow_wrapped=follow_wrapped)
    except (TypeError, ValueError):  # some compiled functions have no signature
        return None


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _after_first(sig: inspect.Signature) -> dict[str, inspect.Parameter]:
    """The parameters of a condition after the solution, by name."""
    positional = [p for p in sig.parameters.values() if p.kind in _POSITIONAL][1:]
    by_keyword = [p for p in sig.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return {p.name: p for p in (*positional, *by_keyword)}


def _read_call(solver: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    sig = _signature(solver)
    start_is_bound = isinstance(solver, functools.partial) and len(solver.args) > 0
    if sig is None:
        return _Call([], dict(kwargs), list(args if start_is_bound else args[1:]), {})
    sig.bind(*args, **kwargs)  # a call that does not fit the solver raises Python's own error
    parameters = list(sig.parameters.values())
    positional = [p.name for p in parameters if p.kind in _POSITIONAL]
    by_position = list(zip(positional, args, strict=False))
    extra = list(args[len(positional) :])
    by_keyword = dict(kwargs)
    given = {name for name, _ in by_position} | set(kwargs)
    defaults = {
        p.name: p.default for p in parameters if p.name not in given and p.default is not inspect.Parameter.empty
    }
    if not start_is_bound:
        if args:
            by_position, extra = (by_position[1:], extra) if positional else (by_position, extra[1:])
        elif parameters and parameters[0].kind in (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY):
            by_keyword.pop(parameters[0].name, None)
            defaults.pop(parameters[0].name, None)
    return _Call(by_position, by_keyword, extra, defaults)


def _as_call(
    positional: list[inspect.Parameter], own: inspect.Signature, chosen: dict[str, Any], extra: list[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass by keyword what the function itself (`own`, not the one it wraps) takes by keyword; the rest by position."""
    kinds = {p.kind for p in own.parameters.values()}
    names = {name for name, p in own.parameters.items() if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    any_keyword = inspect.Parameter.VAR_KEYWORD in kinds

    def needs_position(p: inspect.Parameter) -> bool:
        return p.kind is inspect.Parameter.POSITIONAL_ONLY or not (any_keyword or p.name in names)

    last = max((i for i, p in enumerate(positional) if needs_position(p) and p.name in chosen), default=-1)
    by_position = {p.name: p.default for i, p in enumerate(positional) if extra or i <= last}
    args = tuple(chosen.get(name, default) for name, default in by_position.items())
    return (*args, *extra), {name: value for name, value in chosen.items() if name not in by_position}
