"""Bilevel hyperparameter optimization by implicit differentiation, on JAX.

Names are loaded when first used (PEP 562): importing `bilevel` alone imports no JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bilevel import diagnostics, hypergrad, implicit, inner, linear, operators, optimality, outer, runs, statements
    from bilevel._status import Status
    from bilevel.diagnostics import check_derivative, check_hypergradient, check_optimality
    from bilevel.implicit import custom_fixed_point, custom_root, root_jvp, root_vjp
    from bilevel.outer import Result, minimize
    from bilevel.problem import At, Problem
    from bilevel.runs import load
    from bilevel.statements import QP, Batches, ConeProgram, Factored, LinearModel, Minimization, Program

_HOMES = {
    "At": "bilevel.problem",
    "Batches": "bilevel.statements",
    "ConeProgram": "bilevel.statements",
    "Factored": "bilevel.statements",
    "LinearModel": "bilevel.statements",
    "Minimization": "bilevel.statements",
    "Problem": "bilevel.problem",
    "Program": "bilevel.statements",
    "QP": "bilevel.statements",
    "Result": "bilevel.outer",
    "Status": "bilevel._status",
    "check_derivative": "bilevel.diagnostics",
    "check_hypergradient": "bilevel.diagnostics",
    "check_optimality": "bilevel.diagnostics",
    "custom_fixed_point": "bilevel.implicit",
    "custom_root": "bilevel.implicit",
    "load": "bilevel.runs",
    "minimize": "bilevel.outer",
    "root_jvp": "bilevel.implicit",
    "root_vjp": "bilevel.implicit",
}
_ROOMS = (
    "diagnostics",
    "hypergrad",
    "implicit",
    "inner",
    "linear",
    "operators",
    "optimality",
    "outer",
    "runs",
    "statements",
)

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


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"bilevel.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'bilevel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
