"""Checks for users: is a solver's answer a root of its condition, and is a derivative what differences say."""

from bilevel.diagnostics._hypergradient import (
    DerivativeReport,
    HypergradientReport,
    check_derivative,
    check_hypergradient,
)
from bilevel.diagnostics._optimality import OptimalityReport, check_optimality

__all__ = [
    "DerivativeReport",
    "HypergradientReport",
    "OptimalityReport",
    "check_derivative",
    "check_hypergradient",
    "check_optimality",
]
