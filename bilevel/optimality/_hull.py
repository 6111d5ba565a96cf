"""Convex hulls, the domain of Frank–Wolfe methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bilevel import _checks
from bilevel.operators.projection import projection_simplex
from bilevel.optimality._base import Condition
from bilevel.optimality._gradient_mapping import ProjectedGradient


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

    vertices: Callable[[Any, Any], Any]
    step: float | None = None

    def __post_init__(self):
        _checks.require_positive("optimality.ConvexHull", step=self.step)

    def check(self, problem):
        """Require a smooth inner loss."""
        _checks.require_smooth("optimality.ConvexHull", problem, "optimality.ProjectedGradient")

    def point(self, params, hparams, data):
        """x = V(θ)p."""
        matrix = self.vertices(hparams, data)
        return matrix(params) if callable(matrix) else matrix @ params

    def residual(self, problem, params, hparams, data):
        """The gradient mapping of the weights."""
        return ProjectedGradient(step=self.step).residual(self.in_weights(problem), params, hparams, data)

    def system(self, problem, params, hparams, data):
        """On the active face."""
        return ProjectedGradient(step=self.step).system(self.in_weights(problem), params, hparams, data)

    def in_weights(self, problem):
        """The same problem as one of p over the simplex, for inner solvers: minimize inner_loss(V(θ)p, θ)."""

        def inner_loss(params, hparams, data):
            return problem.inner_loss(self.point(params, hparams, data), hparams, data)

        return dataclasses.replace(
            problem,
            inner_loss=inner_loss,
            lipschitz=None,
            residuals=None,
            datafit=None,
            design=None,
            optimality=None,
            projection=lambda params, hparams, data: projection_simplex(params),
            polyhedral=True,
        )
