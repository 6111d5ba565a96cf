"""Eager checks, shared by solvers and conditions: an error names the object, the requirement, what is missing, the fix."""

from __future__ import annotations

from typing import Any

from bilevel.problem import Problem


def require_parts(who: str, problem: Problem, *parts: str) -> None:
    """Raise ValueError unless the problem has these optional parts."""
    missing = [part for part in parts if getattr(problem, part) is None]
    if missing:
        raise ValueError(
            f"{who} needs Problem.{', Problem.'.join(missing)}, which this problem does not have: "
            f"add it to the Problem, or choose another"
        )


def require_smooth(who: str, problem: Problem, alternatives: str) -> None:
    """Raise ValueError if the problem has a prox, a projection or constraints, or no inner loss."""
    require_parts(who, problem, "inner_loss")
    if not problem.smooth:
        parts = ("prox", "projection", "equality", "inequality", "cone_program")
        part = next(name for name in parts if getattr(problem, name) is not None)
        raise ValueError(
            f"{who} needs a smooth unconstrained inner problem, and this one has a {part}: use {alternatives}"
        )


def require_positive(who: str, **values: Any) -> None:
    """Raise ValueError unless every given value is positive (None passes)."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{who}: {name} must be positive, got {value}")


def require_callable(who: str, **values: Any) -> None:
    """Raise TypeError unless every given value is a function (None passes)."""
    for name, value in values.items():
        if value is not None and not callable(value):
            raise TypeError(f"{who}: {name} must be a function, got {value!r}")
