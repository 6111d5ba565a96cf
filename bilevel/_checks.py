"""Eager checks of settings: an error names the object, the requirement and the value."""

from typing import Any


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
