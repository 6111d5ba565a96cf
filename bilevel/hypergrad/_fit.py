"""Which parts go together, decided from their declarations before anything is traced."""

from collections.abc import Callable

from bilevel import optimality
from bilevel.hypergrad._base import Estimator
from bilevel.inner import InnerSolver
from bilevel.problem import Problem
from bilevel.statements._base import Kind

_POINTS: dict[Kind, str] = {
    "free": "the minimum over the whole space",
    "set": "a point of a set, or a minimum with a prox",
    "kkt": "a point with its multipliers",
    "conic": "a point of the embedding of a cone program",
    "weights": "the weights of vertices",
}
_ADVICE = "use the condition that the problem implies (optimality=auto)"
_OF_WEIGHTS = "solve the problem of the weights, ConvexHull.in_weights(problem), which implies its own condition"


def misfits(problem: Problem, inner: InnerSolver, hypergrad: Estimator | None = None) -> list[str]:
    """Why a problem, with the optimality condition that it names or implies, a solver and an estimator do not go together.

    Returns:
      A sentence for each reason, naming the part, what it needs, what is missing and what fits; empty if there is none.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> problem = bl.Problem(lambda x, theta, data: jnp.sum((x - theta) ** 2), projection=lambda x, theta, data: x)
      >>> bl.hypergrad.misfits(problem, bl.inner.FISTA())
      []
      >>> bl.hypergrad.misfits(problem, bl.inner.LBFGS())[0][:61]
      'inner.LBFGS needs a smooth unconstrained inner problem, and t'
    """
    checks: list[Callable[[], object]] = [lambda: inner.check(problem), lambda: _check_point(problem, inner)]
    if hypergrad is not None:
        checks.append(lambda: hypergrad.check(problem, inner))
    found = []
    for check in checks:
        try:
            check()
        except (TypeError, ValueError) as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _check_point(problem: Problem, inner: InnerSolver) -> None:
    """A condition that suits the problem, and takes the kind of point that the solver returns."""
    condition, returned = optimality.of(problem), inner.returns(problem)
    if returned not in condition.takes:
        raise ValueError(
            f"optimality.{type(condition).__name__} takes {_POINTS[condition.takes[0]]}, and inner.{type(inner).__name__} "
            f"returns {_POINTS[returned]}: {_OF_WEIGHTS if 'weights' in condition.takes else _ADVICE}"
        )
