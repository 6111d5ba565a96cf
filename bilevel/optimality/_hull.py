"""Convex hulls, the domain of Frank–Wolfe methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from bilevel import _checks, _needs
from bilevel._needs import Need
from bilevel._tree import PyTree
from bilevel.linear import System
from bilevel.operators.projection import projection_simplex
from bilevel.optimality._base import Condition
from bilevel.optimality._gradient_mapping import ProjectedGradient
from bilevel.problem import At, Problem
from bilevel.statements._base import Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvexHull(Condition):
    """x* = V(θ)p* minimizes inner_loss over conv(v₁(θ), …, v_m(θ)): the condition of its weights p* on the simplex.

    params is p, shape (m,): what a Frank–Wolfe method returns beside x. The problem's inner_loss takes x; outer_loss takes
    p, and may call `vertices` for x. The map is the projected gradient of p ↦ inner_loss(V(θ)p, θ): ∂₁F is solved on the
    active face, where it is symmetric positive semidefinite. Where the active vertices are affinely dependent p is not
    unique, but x and its derivative are.

    Args:
      vertices: (hparams, data) -> V, shape (n, m); or a function p ↦ V(θ)p.
      step: η, as in `ProjectedGradient`.
    """

    needs: ClassVar[tuple[Need, ...]] = (_needs.LOSS, _needs.SMOOTH)
    takes: ClassVar[tuple[Kind, ...]] = ("weights",)

    vertices: Callable[[Any, Any], Any]
    step: float | None = None

    def __post_init__(self) -> None:
        _checks.require_positive("optimality.ConvexHull", step=self.step)

    def point(self, params: PyTree, hparams: PyTree, data: PyTree) -> PyTree:
        """x = V(θ)p."""
        matrix = self.vertices(hparams, data)
        return matrix(params) if callable(matrix) else matrix @ params

    def residual(self, at: At, params: PyTree) -> PyTree:
        """The gradient mapping of the weights."""
        return ProjectedGradient(step=self.step).residual(self._in_weights(at), params)

    def system(self, at: At, params: PyTree) -> System:
        """On the active face."""
        return ProjectedGradient(step=self.step).system(self._in_weights(at), params)

    def in_weights(self, problem: Problem) -> Problem:
        """The same problem as one of p over the simplex, for inner solvers: minimize inner_loss(V(θ)p, θ)."""

        def inner_loss(params: PyTree, hparams: PyTree, data: PyTree) -> jax.Array:
            return problem.parts.inner_loss(self.point(params, hparams, data), hparams, data)

        return Problem(
            inner_loss,
            problem.outer_loss,
            projection=lambda params, hparams, data: projection_simplex(params),
            polyhedral=True,
        )

    def _in_weights(self, at: At) -> At:
        return at.replace(problem=self.in_weights(at.problem))
