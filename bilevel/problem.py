"""A bilevel problem, apart from how it is solved, and the record that hands it to conditions and solvers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from bilevel import _checks
from bilevel.statements import Batches, LinearModel, Minimization, Parts, Statement

Loss = Callable[[Any, Any, Any], Any]

_OF_A_LOSS = ("prox", "separable", "projection", "polyhedral", "lipschitz")
_SHORT = ("inner_loss", "residuals", "linear_model", "fixed_point", *_OF_A_LOSS)
_BESIDE = ("residuals", "quadratic_program", "linear_model")


class HasResidual(Protocol):
    """The part of a `bilevel.optimality.Condition` that is known here."""

    def residual(self, at: "At", params: Any) -> Any:
        """F."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """min over hparams of outer_loss(x*(hparams), hparams, data), where x* solves the inner problem.

    The inner problem is stated once, by `inner`, or in the short form by the keywords from `inner_loss` to `fixed_point`. All
    functions take `(params, hparams, data)`, any pytrees; data is an argument, never closed over, so that it is not compiled into
    the program. `dataclasses.replace` makes a changed problem.

    Args:
      inner_loss: (params, hparams, data) -> scalar, differentiable: minimize it, plus g if there is a `prox`, over C if there is
        a `projection`.
      outer_loss: (params, hparams, data) -> scalar, differentiable. May be None where only x* is wanted.
      optimality: the condition that x* satisfies: a `bilevel.optimality.Condition`, or a function
        F(params, hparams, data) with the structure of params, zero at x*. None: what `bilevel.optimality.of` infers.
      prox, separable, projection, polyhedral, lipschitz: as in `bilevel.Minimization`.
      residuals: (params, hparams, data) -> r, any pytree: minimize ½‖r‖².
      linear_model: minimize the objective of a `bilevel.LinearModel`; with a projection, over C.
      fixed_point: (params, hparams, data) -> T, with the structure of params: the solution is the root of x − T(x).
      inner: the statement of the inner problem, in place of all of the above but outer_loss and optimality: a
        `bilevel.Minimization`, `bilevel.LinearModel` or `bilevel.Program`.
      also: further statements of the same problem, for solvers that take another form: a `bilevel.Program`, a
        `bilevel.LinearModel`. So are `residuals` and `linear_model` beside an inner_loss. When an algorithm or a solver is set
        up, they are checked against the first statement, and a contradiction is a ValueError.
      batches: the `bilevel.Batches` of data, for solvers and algorithms that take minibatches.

    Raises:
      TypeError: nothing states the inner problem, or a part is not a function.
      ValueError: parts that do not go together.

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

    inner_loss: Loss | None = None
    outer_loss: Loss | None = None
    _: dataclasses.KW_ONLY
    optimality: HasResidual | Loss | None = None
    prox: Callable[[Any, Any, Any, Any], Any] | None = None
    separable: bool | Literal["rows"] = False
    projection: Loss | None = None
    polyhedral: bool = False
    lipschitz: Callable[[Any, Any], Any] | None = None
    residuals: Loss | None = None
    linear_model: LinearModel | None = None
    fixed_point: Loss | None = None
    inner: Statement | None = None
    also: tuple[Statement, ...] = ()
    batches: Batches | None = None

    def __post_init__(self) -> None:
        functions = ("outer_loss", "residuals", "fixed_point", "lipschitz")
        _checks.require_callable("Problem", **{name: getattr(self, name) for name in functions})
        if self.inner is not None and not isinstance(self.inner, Statement):
            raise TypeError(f"Problem: inner must be a statement such as bilevel.LinearModel, got {self.inner!r}")
        given = [name for name in _SHORT if getattr(self, name) not in (None, False)]
        if self.inner is not None and given:
            raise ValueError(
                f"Problem: inner states the inner problem, and so does {given[0]}: give one of them; a second statement of the "
                "same problem belongs in also"
            )
        if self.fixed_point is not None and len(given) > 1:
            raise ValueError(
                f"Problem: fixed_point states the inner problem alone, and {given[0]} was given too: leave one out"
            )
        first = self._first()
        if first is None and self.fixed_point is None:
            if self.optimality is None:
                raise TypeError(
                    "Problem: nothing states the inner problem: give inner_loss, residuals, linear_model, fixed_point, "
                    "optimality, or a statement as inner"
                )
            if given:
                raise ValueError(f"Problem: {given[0]} describes a minimization, and there is no inner_loss")
        for name, part in (("separable", "prox"), ("polyhedral", "projection")):
            if getattr(self, name) and getattr(self, part) is None:
                raise ValueError(f"Problem: {name}={getattr(self, name)!r} describes a {part}, and there is none")
        if first is not None and first is self.linear_model and first.parts().inner_loss is None:
            raise TypeError(
                "Problem: a linear_model with a crammer_singer loss needs its dual as inner_loss and projection beside it"
            )

    @functools.cached_property
    def parts(self) -> Parts:
        """The functions that the statements give, as conditions and solvers ask for them."""
        first = self._first()
        parts = Parts(fixed_point=self.fixed_point) if first is None else first.parts()
        parts = dataclasses.replace(
            parts,
            residuals=parts.residuals or self.residuals,
            lipschitz=self.lipschitz or parts.lipschitz,
            optimality=self.optimality,
        )
        for statement in self.further_statements():
            parts = parts.missing_from(statement, *_BESIDE)
        if self.batches is not None and parts.inner_loss is not None:
            parts = dataclasses.replace(
                parts, samples=functools.partial(self.batches.rows, level="inner"), batch_loss=self._batch_loss
            )
        return parts

    def further_statements(self) -> list[Parts]:
        """The parts of the statements besides the first: they state the same problem once more."""
        found = [statement.parts() for statement in self.also]
        if self.residuals is not None and (self.inner_loss is not None or self.linear_model is not None):
            found.append(Parts(inner_loss=_half_square(self.residuals), residuals=self.residuals))
        if self.linear_model is not None and self.inner_loss is not None:
            found.append(self.linear_model.parts())
        return found

    def _first(self) -> Statement | None:
        loss, own_set = self.inner_loss, self.prox is not None or self.projection is not None
        if loss is None and self.linear_model is not None and own_set:
            loss = self.linear_model.over_a_set()
        elif loss is None and self.linear_model is None and self.residuals is not None:
            loss = _half_square(self.residuals)
        if loss is None:
            return self.inner or self.linear_model
        return Minimization(loss=loss, **{name: getattr(self, name) for name in _OF_A_LOSS})

    def _batch_loss(self, params: Any, hparams: Any, data: Any, index: Any) -> Any:
        assert self.batches is not None
        return self.parts.inner_loss(params, hparams, self.batches.take(data, "inner", index))


def _half_square(residuals: Loss) -> Loss:
    def inner_loss(params: Any, hparams: Any, data: Any) -> Any:
        r = residuals(params, hparams, data)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(r)) / 2

    return inner_loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class At:
    """An inner problem at its hyperparameters and data, as conditions and solvers take it. A pytree.

    Its methods are the parts of the problem as functions of the inner variable alone; only those in `parts` may be called.

    Attributes:
      problem: the problem, which is not a leaf of the pytree.
      hparams, data: passed to its functions, any pytrees.
      prepared: the arrays that `InnerSolver.prepare` computed from the data; None for nothing.
      key: a JAX random key, for solvers that draw; None for a solve by itself.

    Example:
      >>> import bilevel as bl
      >>> at = bl.At(bl.Problem(lambda x, h, data: (x - h) ** 2), hparams=1.0)
      >>> print(at.inner_loss(3.0), at.gradient(3.0))
      4.0 4.0
    """

    problem: Problem = dataclasses.field(metadata={"static": True})
    hparams: Any
    data: Any = None
    prepared: Any = None
    key: Any = None

    @property
    def parts(self) -> Parts:
        """The parts of the problem."""
        return self.problem.parts

    def replace(self, **changes: Any) -> "At":
        """The same with other hparams, data or prepared."""
        return dataclasses.replace(self, **changes)

    def inner_loss(self, params: Any) -> jax.Array:
        """The inner loss, a scalar."""
        return self.parts.inner_loss(params, self.hparams, self.data)

    def gradient(self, params: Any) -> Any:
        """The gradient of the inner loss, with the structure of params."""
        return jax.grad(self.inner_loss)(params)

    def outer_loss(self, params: Any) -> jax.Array:
        """The outer loss, a scalar."""
        assert self.problem.outer_loss is not None
        return self.problem.outer_loss(params, self.hparams, self.data)

    def proximal_step(self, params: Any, step: Any) -> Any:
        """The prox or the projection that follows a gradient step of length `step`; params where there is neither."""
        if self.parts.prox is not None:
            return self.parts.prox(params, self.hparams, self.data, step)
        if self.parts.projection is not None:
            return self.parts.projection(params, self.hparams, self.data)
        return params

    def block_prox(self, block: Any, index: Any, step: Any) -> Any:
        """The prox of one row of params."""
        return self.parts.block_prox(block, index, self.hparams, self.data, step)

    def equality(self, primal: Any) -> Any:
        """H, or None."""
        return self.parts.equality(primal, self.hparams, self.data)

    def inequality(self, primal: Any) -> Any:
        """G, or None."""
        return self.parts.inequality(primal, self.hparams, self.data)

    def residuals(self, params: Any) -> Any:
        """r, a pytree."""
        return self.parts.residuals(params, self.hparams, self.data)

    def fixed_point(self, params: Any) -> Any:
        """T, with the structure of params."""
        return self.parts.fixed_point(params, self.hparams, self.data)

    def datafit(self, prediction: Any) -> jax.Array:
        """The loss of a prediction Xw."""
        return self.parts.datafit(prediction, self.hparams, self.data)

    def design(self) -> Any:
        """X."""
        return self.parts.design(self.hparams, self.data)

    def lipschitz(self) -> jax.Array | None:
        """L, where the problem states it."""
        return None if self.parts.lipschitz is None else jnp.asarray(self.parts.lipschitz(self.hparams, self.data))

    def block_lipschitz(self) -> Any:
        """A Lipschitz constant for each row, where the problem states them."""
        return None if self.parts.block_lipschitz is None else self.parts.block_lipschitz(self.hparams, self.data)

    def quadratic_program(self) -> Any:
        """The `QP`."""
        return self.parts.quadratic_program(self.hparams, self.data)

    def cone_program(self) -> Any:
        """The `ConeProgram`."""
        return self.parts.cone_program(self.hparams, self.data)

    def samples(self) -> int:
        """Rows of the inner loss."""
        return self.parts.samples(self.data)

    def batch_loss(self, params: Any, index: Any) -> jax.Array:
        """The inner loss on the rows at `index`."""
        return self.parts.batch_loss(params, self.hparams, self.data, index)
