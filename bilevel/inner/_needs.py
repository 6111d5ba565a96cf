"""What a solver needs of a problem, declared by each class; refusals name the need, the obstacle and who fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from bilevel.problem import Problem


class Need(NamedTuple):
    """A requirement in words, and what stands in its way in a problem (None where it is met)."""

    requirement: str
    obstacle: Callable[[Problem], str | None]


def _parts(*names: str) -> Callable[[Problem], str | None]:
    def obstacle(problem):
        missing = [name for name in names if getattr(problem, name) is None]
        return f"has no Problem.{' and no Problem.'.join(missing)}" if missing else None

    return obstacle


def _none_of(*names: str) -> Callable[[Problem], str | None]:
    def obstacle(problem):
        given = [name for name in names if getattr(problem, name) is not None]
        return f"has Problem.{given[0]}" if given else None

    return obstacle


LOSS = Need("an inner loss", _parts("inner_loss"))
SMOOTH = Need(
    "a smooth unconstrained inner problem", _none_of("prox", "projection", "equality", "inequality", "cone_program")
)
NO_CONSTRAINTS = Need(
    "a set that is stated by its projection, if any", _none_of("equality", "inequality", "cone_program")
)
PROJECTION = Need("a set with a projection", _parts("projection"))
RESIDUALS = Need("residuals", _parts("residuals"))


def unmet(needs: Iterable[Need], problem: Problem) -> list[str]:
    """A clause for each need that the problem does not meet: `"residuals, and this one has no Problem.residuals"`."""
    found = ((need.requirement, need.obstacle(problem)) for need in needs)
    return [f"{requirement}, and this one {obstacle}" for requirement, obstacle in found if obstacle]
