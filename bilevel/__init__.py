"""Bilevel hyperparameter optimization by implicit differentiation, on JAX.

Names are loaded when first used (PEP 562): importing `bilevel` alone imports no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilevel import diagnostics, hypergrad, implicit, inner, linear, operators, optimality, outer, runs, statements
    from bilevel._status import Status
    from bilevel.diagnostics import check_derivative, check_hypergradient, check_optimality
    from bilevel.implicit import custom_fixed_point, custom_root, root_jvp, root_vjp
    from bilevel.outer import Result, minimize
    from bilevel.problem import At, Problem
    from bilevel.runs import load
    from bilevel.statements import QP, Batches, ConeProgram, Factored, LinearModel, Minimization, Program

_NAMES = {
    "bilevel._status": ("Status",),
    "bilevel.diagnostics": ("check_derivative", "check_hypergradient", "check_optimality"),
    "bilevel.implicit": ("custom_fixed_point", "custom_root", "root_jvp", "root_vjp"),
    "bilevel.outer": ("Result", "minimize"),
    "bilevel.problem": ("At", "Problem"),
    "bilevel.runs": ("load",),
    "bilevel.statements": ("QP", "Batches", "ConeProgram", "Factored", "LinearModel", "Minimization", "Program"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "QP",
    "At",
    "Batches",
    "ConeProgram",
    "Factored",
    "LinearModel",
    "Minimization",
    "Problem",
    "Program",
    "Result",
    "Status",
    "check_derivative",
    "check_hypergradient",
    "check_optimality",
    "custom_fixed_point",
    "custom_root",
    "diagnostics",
    "hypergrad",
    "implicit",
    "inner",
    "linear",
    "load",
    "minimize",
    "operators",
    "optimality",
    "outer",
    "root_jvp",
    "root_vjp",
    "runs",
    "statements",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bilevel' has no attribute {name!r}")
    if name not in _HOMES:
        return importlib.import_module(f"bilevel.{name}")
    globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
