"""A bilevel problem: what the solvers and estimators are told, apart from how they solve it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.statements import QP, ConeProgram, Factored, LinearModel

if TYPE_CHECKING:
    from bilevel.optimality import Condition

__all__ = ["QP", "ConeProgram", "Factored", "LinearModel", "Problem"]

Loss = Callable[[Any, Any, Any], Any]
Part = Any  # a Loss, or None where the problem lacks it: whoever calls one has required it first


@dataclasses.dataclass(frozen=True)
class Problem:
    """min over hparams of outer_loss(x*(hparams), hparams, data), where x* solves the inner problem.

    The inner problem is to minimize inner_loss(x, hparams, data) + g(x) over C, with g given by its `prox` or C by its
    `projection`, by `equality` and `inequality`, or not at all (smooth and unconstrained). Every function takes
    `(params, hparams, data)`; data is an argument, never closed over, so that nothing is compiled into the program.

    Attributes:
      inner_loss: (params, hparams, data) -> scalar, differentiable. None if `residuals`, `datafit`, `linear_model` or
        `quadratic_program` implies it, or if `cone_program`, `fixed_point` or `optimality` is all there is.
      outer_loss: (params, hparams, data) -> scalar, differentiable. May be None where only x* is wanted.
      optimality: the condition that x* satisfies: a `bilevel.optimality.Condition`, or a function
        F(params, hparams, data) with the structure of params, zero at x*. None: what `bilevel.optimality.of` infers.
      prox: (params, hparams, data, step) -> argmin over z of ½‖z − params‖² + step · g(z).
      projection: (params, hparams, data) -> the Euclidean projection of params on C.
      polyhedral: C is a polyhedron (box, simplices, half-spaces, …), so that the projection's Jacobian is an orthogonal
        projector; the linear systems are then solved on the active face.
      separable: g is a sum over coordinates (lasso, elastic net, …), or with `"rows"` over the rows of params (group
        lasso), so that the prox's Jacobian is diagonal, or has a block per row; the linear systems are then solved on
        the support.
      lipschitz: (hparams, data) -> a Lipschitz constant L of ∂₁inner_loss; solvers then need no line search.
      block_lipschitz: (hparams, data) -> one constant for each block (row of params), shape (rows,).
      block_prox: (block, index, hparams, data, step) -> the prox, or projection, of the row `index` of params alone.
      equality: (primal, hparams, data) -> H, zero at a feasible point. params is then a `KKTSolution`.
      inequality: (primal, hparams, data) -> G, not positive at a feasible point. Likewise.
      datafit: (prediction, hparams, data) -> scalar, and
      design: (hparams, data) -> X, shape (m, n): a linear model, which implies the inner loss datafit(X @ params). Solvers
        then take single columns of X.
      residuals: (params, hparams, data) -> r, any pytree; implies the inner loss ½‖r‖².
      samples: (data) -> the number of training samples, and
      batch_loss: (params, hparams, data, index) -> scalar: what the samples at `index` say of inner_loss, whose mean over all
        index sets of one size is inner_loss. For solvers that take minibatches.
      fixed_point: (params, hparams, data) -> T, with the structure of params, where the solution is the root of x − T(x);
        implies `optimality`.
      linear_model: a `LinearModel`; implies inner_loss and, for what it states, prox, block_prox, separable, datafit, design,
        residuals, quadratic_program, samples and batch_loss. What is given beside it stands.
      quadratic_program: (hparams, data) -> `QP`. Without an inner_loss it implies that, equality and inequality, and params
        is a `KKTSolution`. Beside an inner_loss it states the same problem once more, for solvers that take programs;
        params is then the primal point.
      cone_program: (hparams, data) -> `ConeProgram`.

    Example:
      >>> import jax.numpy as jnp, bilevel as bl
      >>> def train_loss(params, hparams, data):
      ...     features, y = data["train"]
      ...     return jnp.sum((features @ params - y) ** 2) + jnp.exp(hparams) * jnp.sum(params**2)
      >>> def validation_loss(params, hparams, data):
      ...     features, y = data["validation"]
      ...     return jnp.mean((features @ params - y) ** 2)
      >>> problem = bl.Problem(inner_loss=train_loss, outer_loss=validation_loss)
    """

    inner_loss: Part = None
    outer_loss: Part = None
    optimality: Condition | Loss | None = None
    prox: Callable[[Any, Any, Any, Any], Any] | None = None
    projection: Loss | None = None
    polyhedral: bool = False
    separable: bool | Literal["rows"] = False
    lipschitz: Callable[[Any, Any], Any] | None = None
    block_lipschitz: Callable[[Any, Any], Any] | None = None
    block_prox: Part = None
    equality: Part = None
    inequality: Part = None
    datafit: Part = None
    design: Part = None
    residuals: Part = None
    samples: Part = None
    batch_loss: Part = None
    fixed_point: Part = None
    linear_model: LinearModel | None = None
    quadratic_program: Part = None
    cone_program: Part = None

    def __post_init__(self):
        if (self.datafit is None) != (self.design is None):
            raise ValueError("Problem: datafit and design state a linear model together: give both or neither")
        for name, function in self._implied_parts().items():
            if getattr(self, name) in (None, False):
                object.__setattr__(self, name, function)
        for name in ("inner_loss", "outer_loss"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"Problem: {name} must be a function (params, hparams, data) -> scalar")
        if self.inner_loss is None and self.optimality is None and self.cone_program is None:
            raise TypeError(
                "Problem: nothing states the inner problem: give inner_loss, residuals, linear_model, datafit and design, "
                "quadratic_program, cone_program, fixed_point or optimality"
            )
        if self.prox is not None and self.projection is not None:
            raise ValueError("Problem: give a prox or a projection, not both; a projection is the prox of an indicator")
        if self.constrained and not self._unconstrained_parts:
            raise ValueError(
                "Problem: equality and inequality do not go with a prox or a projection: state all of C one way"
            )
        if self.polyhedral and self.projection is None:
            raise ValueError("Problem: polyhedral=True describes a projection, and there is none")
        if self.separable and self.prox is None:
            raise ValueError(f"Problem: separable={self.separable!r} describes a prox, and there is none")

    @property
    def smooth(self) -> bool:
        """Whether the inner problem is smooth and unconstrained."""
        return self._unconstrained_parts and not self.constrained and self.cone_program is None

    @property
    def constrained(self) -> bool:
        """Whether constraints are stated as functions, so that params is a `KKTSolution`."""
        return self.equality is not None or self.inequality is not None

    @property
    def _unconstrained_parts(self) -> bool:
        return self.prox is None and self.projection is None

    def proximal_step(self, params: Any, hparams: Any, data: Any, step: Any) -> Any:
        """The prox, the projection, or nothing: what follows a gradient step of length `step`."""
        if self.prox is not None:
            return self.prox(params, hparams, data, step)
        if self.projection is not None:
            return self.projection(params, hparams, data)
        return params

    def _implied_parts(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.linear_model is not None:
            found |= self.linear_model.parts()
            if self.prox is not None or self.projection is not None or self.inner_loss is not None:
                # Another set or loss was stated: what describes the model's own does not go with it.
                found = {name: part for name, part in found.items() if name in ("samples", "batch_loss")}
        elif self.quadratic_program is not None and self.inner_loss is None:
            found |= _of_program(self.quadratic_program)
        elif self.datafit is not None:
            found["inner_loss"] = _of_linear_model(self.datafit, self.design)
        elif self.residuals is not None:
            found["inner_loss"] = _half_square(self.residuals)
        if self.fixed_point is not None and self.inner_loss is None:
            found["optimality"] = _displacement(self.fixed_point)
        return found


def _half_square(residuals: Loss) -> Loss:
    def inner_loss(params, hparams, data):
        r = residuals(params, hparams, data)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(r)) / 2

    return inner_loss


def _of_linear_model(datafit: Loss, design: Callable[[Any, Any], Any]) -> Loss:
    return lambda params, hparams, data: datafit(design(hparams, data) @ params, hparams, data)


def _displacement(fixed_point: Loss) -> Loss:
    """x − T(x)."""
    return lambda params, hparams, data: _tree.sub(params, fixed_point(params, hparams, data))


def _of_program(program: Callable[[Any, Any], QP]) -> dict[str, Loss]:
    """The loss and the constraints of a quadratic program, as functions."""
    return {
        "inner_loss": lambda z, hparams, data: program(hparams, data).loss(z),
        "equality": lambda z, hparams, data: program(hparams, data).equality(z),
        "inequality": lambda z, hparams, data: program(hparams, data).inequality(z),
    }
