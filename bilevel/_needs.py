"""What a solver or a condition needs of a problem, declared by each class; a refusal names the need and the obstacle."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from bilevel.statements import Parts


class Need(NamedTuple):
    """A requirement in words, and what stands in its way in a problem (None where it is met)."""

    requirement: str
    obstacle: Callable[[Parts], str | None]


_WRITTEN = {
    "equality": "equality constraints",
    "inequality": "inequality constraints",
    "quadratic_program": 'bl.Program of kind "quadratic"',
    "cone_program": 'bl.Program of kind "cone"',
}


def _written(part: str) -> str:
    """A part as the user states it."""
    return _WRITTEN.get(part, f"Problem.{part}")


def _any_of(*names: str) -> Callable[[Parts], str | None]:
    def obstacle(parts: Parts) -> str | None:
        given = any(getattr(parts, name) is not None for name in names)
        return None if given else f"has no {' and no '.join(map(_written, names))}"

    return obstacle


def _none_of(*names: str) -> Callable[[Parts], str | None]:
    def obstacle(parts: Parts) -> str | None:
        given = [name for name in names if getattr(parts, name) is not None]
        return f"has {_written(given[0])}" if given else None

    return obstacle


LOSS = Need("an inner loss", _any_of("inner_loss"))
SMOOTH = Need(
    "a smooth unconstrained inner problem", _none_of("prox", "projection", "equality", "inequality", "cone_program")
)
NO_CONSTRAINTS = Need(
    "a set that is stated by its projection, if any", _none_of("equality", "inequality", "cone_program")
)
PROJECTION = Need("a set with a projection", _any_of("projection"))
RESIDUALS = Need("residuals", _any_of("residuals"))
MAP = Need("a fixed-point map or an inner loss", _any_of("fixed_point", "inner_loss"))
QUADRATIC = Need(
    "a loss that is quadratic in params",
    lambda parts: (
        f"has a {parts.linear_model.loss} loss in Problem.linear_model"
        if parts.linear_model is not None and parts.linear_model.loss != "squared"
        else None
    ),
)
PROX = Need("a prox", _any_of("prox"))
SET = Need("a prox or a projection", _any_of("prox", "projection"))
NO_PROX = Need(
    "a set that is not stated by a prox or by constraint functions", _none_of("prox", "equality", "inequality")
)
PROGRAM = Need("a quadratic program", _any_of("quadratic_program"))
CONE_PROGRAM = Need("a cone program", _any_of("cone_program"))
NO_SET = Need("constraints stated as functions, if any", _none_of("prox", "projection"))
EQUALITIES_ALONE = Need("a program whose only constraints are equalities", _none_of("prox", "projection"))
PROGRAM_OR_CONES = Need("a quadratic or a cone program", _any_of("quadratic_program", "cone_program"))
SEPARABLE_OR_POLYHEDRAL = Need(
    "a separable prox or the projection on a polyhedron",
    lambda parts: (
        None
        if parts.smooth or parts.separable or parts.polyhedral
        else "declares neither Problem.separable nor Problem.polyhedral"
    ),
)


def linear_model(loss: str, *, l1: bool) -> Need:
    """A linear model of this loss, with an ℓ1 penalty or without."""

    def obstacle(parts: Parts) -> str | None:
        model = parts.linear_model
        if model is None:
            return "has no Problem.linear_model"
        if model.loss != loss:
            return f"has a {model.loss} loss in Problem.linear_model"
        if (model.l1 is not None) != l1:
            return f"has {'no' if l1 else 'an'} ℓ1 penalty in Problem.linear_model"
        return None

    return Need(f"a linear model with a {loss} loss and {'an' if l1 else 'no'} ℓ1 penalty", obstacle)


def unmet(needs: Iterable[Need], parts: Parts) -> list[str]:
    """A clause for each need that is not met: `"residuals, and this one has no Problem.residuals"`."""
    found = ((need.requirement, need.obstacle(parts)) for need in needs)
    return [f"{requirement}, and this one {obstacle}" for requirement, obstacle in found if obstacle]


def require(name: str, needs: Iterable[Need], parts: Parts, advice: Callable[[], str]) -> None:
    """Refuse a problem that does not meet the needs of a solver or a condition.

    Raises:
      ValueError: naming who needs what, the obstacle, and what to do.
    """
    missing = unmet(needs, parts)
    if missing:
        raise ValueError(f"{name} needs {missing[0]}: {advice()}")
