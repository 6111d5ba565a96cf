"""The catalog of optimality conditions. One contract, `Condition`."""

import functools
from collections.abc import Callable
from typing import Any

from bilevel import _tree
from bilevel.optimality._base import Bound, Condition, Custom
from bilevel.optimality._conic import Conic, ConicPoint, ConicSolution
from bilevel.optimality._gradient_mapping import BlockProximalGradient, ConvexHull, ProjectedGradient, ProximalGradient
from bilevel.optimality._kkt import KKT, KKTSolution, QuadraticProgram
from bilevel.optimality._mirror import MirrorStep
from bilevel.optimality._stationary import LeastSquares, NewtonStep, Stationary
from bilevel.problem import Problem

__all__ = [
    "KKT",
    "BlockProximalGradient",
    "Bound",
    "Condition",
    "Conic",
    "ConicPoint",
    "ConicSolution",
    "ConvexHull",
    "Custom",
    "KKTSolution",
    "LeastSquares",
    "MirrorStep",
    "NewtonStep",
    "ProjectedGradient",
    "ProximalGradient",
    "QuadraticProgram",
    "Stationary",
    "bind",
    "of",
]


def of(problem: Problem) -> Condition:
    """The condition of a problem: the one that it names, or the one that its parts imply.

    Raises:
      ValueError: the problem does not meet the needs of the condition.

    Example:
      >>> import bilevel as bl
      >>> bl.optimality.of(bl.Problem(lambda x, theta, data: (x - theta) ** 2))
      Stationary(structure='positive_definite', singular=False)
    """
    condition: Any = problem.optimality or _implied(problem)
    if not isinstance(condition, Condition):  # a function of the user
        condition = Custom(function=condition)
    condition.check(problem)
    return condition


def bind(problem: Problem) -> Bound:
    """F(params, hparams, data) of a problem's condition, for `custom_root`, `root_vjp` and `root_jvp`.

    With the form in which its linear systems are best solved: on the support, on the active face, symmetric. Raises as `of`.

    Example:
      >>> import jax, jax.numpy as jnp, bilevel as bl
      >>> from bilevel.operators.prox import prox_lasso
      >>> problem = bl.Problem(
      ...     inner_loss=lambda x, theta, y: jnp.sum((x - y) ** 2) / 2,
      ...     prox=lambda x, theta, y, step: prox_lasso(x, theta, step),
      ...     separable=True,
      ... )
      >>> @bl.custom_root(bl.optimality.bind(problem))
      ... def solver(init, theta, y):
      ...     return jnp.sign(y) * jnp.maximum(jnp.abs(y) - theta, 0)
      >>> print(jax.jacobian(solver, argnums=1)(None, 1.0, jnp.array([3.0, -0.5, -2.0])))
      [-1.  0.  1.]
    """
    return Bound(of(problem), problem)


def _displacement(fixed_point: Callable[..., Any], params: Any, hparams: Any, data: Any) -> Any:
    """x − T(x)."""
    return _tree.sub(params, _tree.cast_like(fixed_point(params, hparams, data), params))


def _implied(problem: Problem) -> Condition:
    parts = problem.parts
    if parts.fixed_point is not None:
        return Custom(function=functools.partial(_displacement, parts.fixed_point))
    if parts.kind == "set":
        return ProximalGradient() if parts.projection is None else ProjectedGradient()
    return {"free": Stationary, "kkt": KKT, "conic": Conic}[parts.kind]()
