"""The catalog of optimality conditions. One contract, `Condition`."""

from __future__ import annotations

from bilevel.optimality._base import AdjointSystem, Condition, Custom
from bilevel.optimality._gradient_mapping import ProjectedGradient, ProximalGradient
from bilevel.optimality._stationary import Stationary
from bilevel.problem import Problem

__all__ = [
    "AdjointSystem",
    "Condition",
    "Custom",
    "ProjectedGradient",
    "ProximalGradient",
    "Stationary",
    "of",
]


def of(problem: Problem) -> Condition:
    """The condition of a problem: the one that it names, or the one that its parts imply. Checked against the problem."""
    condition = problem.optimality
    if condition is None:
        if problem.projection is not None:
            condition = ProjectedGradient()
        else:
            condition = Stationary() if problem.smooth else ProximalGradient()
    if not isinstance(condition, Condition):
        condition = Custom(function=condition)
    condition.check(problem)
    return condition
