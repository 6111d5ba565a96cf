"""A deep equilibrium network: its hidden layer is the fixed point of a cell, and training differentiates that point."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bilevel import _tree
from bilevel.datasets import Split
from bilevel.inner import Anderson, FixedPointIteration, InnerSolver
from bilevel.problem import At, Problem
from bilevel.tasks._base import Setup
from bilevel.tasks._networks import draw
from bilevel.tasks._tables import ClassTask, cross_entropy, rows, sizes
from bilevel.tasks.pictures import panels
from bilevel.tasks.scores import accuracies

_DRAWN = 40  # iterations


@functools.cache
def network(width: int, classes: int, contraction: float) -> tuple[Any, Any]:
    """(cell, head), flax modules: the cell takes (hidden, features) to hidden, the head takes hidden to scores."""
    from flax import linen

    class Cell(linen.Module):
        @linen.compact
        def __call__(self, hidden: jax.Array, features: jax.Array) -> jax.Array:
            raw = self.param("recurrent", linen.initializers.orthogonal(contraction), (width, width))
            return jnp.tanh(hidden @ bounded(raw, contraction) + linen.Dense(width, name="input")(features))

    return Cell(), linen.Dense(classes)


def bounded(matrix: jax.Array, norm: float) -> jax.Array:
    """The matrix, scaled down to this spectral norm if it exceeds it."""
    return matrix * jnp.minimum(1, norm / jnp.linalg.norm(matrix, 2))


@dataclasses.dataclass(frozen=True)
class Equilibrium:
    """z = tanh(Wz + Ux + b) for each row, ‖W‖₂ ≤ contraction, and scores that are linear in z."""

    width: int
    classes: int
    contraction: float

    @property
    def problem(self) -> Problem:
        """The fixed point inside and the training loss outside."""
        return Problem(outer_loss=self._outer_loss, fixed_point=self._fixed_point)

    def init(self, key: jax.Array, features: jax.Array) -> dict[str, Any]:
        """Random weights."""
        (cell, head), hidden = self._modules, self.rest(features)
        first, second = jax.random.split(key)
        return {"cell": draw(cell, first, hidden, features), "head": draw(head, second, hidden)}

    def rest(self, features: jax.Array) -> jax.Array:
        """The start of the iterations, z = 0."""
        return jnp.zeros((len(features), self.width), features.dtype)

    def scores(self, hidden: jax.Array, hparams: Any) -> jax.Array:
        """Scores of the classes, shape (rows, classes)."""
        return self._modules[1].apply({"params": hparams["head"]}, hidden)

    @functools.partial(jax.jit, static_argnames="self")
    def classify(self, hparams: Any, features: jax.Array) -> jax.Array:
        """Scores of rows, from the fixed point that is found from z = 0."""
        solution = Anderson().solve(self.problem, self.rest(features), hparams, {"train": (features, None)})
        return self.scores(solution.params, hparams)

    @functools.partial(jax.jit, static_argnames=("self", "solver"))
    def residuals(self, solver: InnerSolver, hparams: Any, features: jax.Array) -> jax.Array:
        """‖T(z) − z‖/‖z‖ over all rows in the first iterations from z = 0."""
        at = At(self.problem, hparams, {"train": (features, None)})

        def step(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = solver.step(at, state)
            return state, state.progress.residual

        return jax.lax.scan(step, solver.init(at, self.rest(features)), length=_DRAWN)[1]

    @property
    def _modules(self) -> tuple[Any, Any]:
        return network(self.width, self.classes, self.contraction)

    def _fixed_point(self, params: jax.Array, hparams: Any, data: Any) -> jax.Array:
        return self._modules[0].apply({"params": hparams["cell"]}, params, data["train"][0])

    def _outer_loss(self, params: jax.Array, hparams: Any, data: Any) -> jax.Array:
        decay = data["decay"] * _tree.vdot(hparams, hparams) / 2
        return cross_entropy(self.scores(params, hparams), data["train"][1]) + decay


@dataclasses.dataclass(frozen=True, kw_only=True)
class DEQ(ClassTask):
    """A deep equilibrium network: a layer of infinite depth, trained by the gradient of its fixed point.

    For each row, z = tanh(Wz + Ux + b), with ‖W‖₂ ≤ contraction < 1, so that there is one z. Inner variable: all z, shape
    (training rows, width). The outer loss is the mean cross-entropy, on the training rows, of scores that are linear in z, +
    ½decay‖hparams‖². hparams: the flax parameters of `cell` and `head`. Only the metrics use validation and test rows.

    Args:
      data: a table of scikit-learn by its name, or another one by its path (see `datasets.load_table`).
      validation, test: shares of the rows, or their numbers; only the metrics use them.
      width: number of units in the layer.
      contraction: bound of ‖W‖₂; a W that exceeds it is scaled down.
      decay: ℓ2 penalty of all weights.

    Reference: Bai, Kolter & Koltun 2019.
    """

    width: int = 64
    contraction: float = 0.9
    decay: float = 0.0001

    def __post_init__(self) -> None:
        self.check("width", self.width >= 1, "be at least 1")
        self.check("contraction", 0 < self.contraction < 1, "be above 0 and below 1")
        self.check("decay", self.decay >= 0, "not be negative")

    def state(self, tables: Split, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem; `seed` draws the weights."""
        tables.require("classification")
        layer = Equilibrium(self.width, tables.train.classes, self.contraction)
        train = rows(tables.train, dtype)
        hparams = layer.init(jax.random.key(seed), train[0])

        def metrics(hparams: Any, params: Any) -> dict[str, float]:
            return accuracies(tables, lambda features: layer.classify(hparams, jnp.asarray(features, dtype)))

        def pictures(hparams: Any, params: Any) -> dict[str, Any]:
            features = rows(tables.parts.get("test", tables.train), dtype)[0]
            solvers = {"plain iteration": FixedPointIteration(), "Anderson": Anderson()}
            return {"iterations": picture({n: layer.residuals(s, hparams, features) for n, s in solvers.items()})}

        return Setup(
            problem=layer.problem,
            hparams=hparams,
            params=layer.rest(train[0]),
            data={"train": train, "decay": jnp.asarray(self.decay, dtype)},
            title=f"deep equilibrium network on {tables.train.name}",
            sizes=sizes(tables.parts, width=self.width, weights=_tree.size(hparams)),
            metrics=metrics,
            physical=lambda hparams: {
                "recurrent_norm": float(jnp.linalg.norm(bounded(hparams["cell"]["recurrent"], self.contraction), 2))
            },
            pictures=pictures,
        )


def picture(residuals: dict[str, Any]) -> Any:
    """How fast iterations converge."""
    figure, axes = panels(1, 1, 4.6, 3.2)
    axis = axes[0, 0]
    for name, values in residuals.items():
        axis.semilogy(np.arange(1, len(values) + 1), values, label=name)
    axis.set(xlabel="applications of the cell", ylabel="‖T(z) − z‖ / ‖z‖")
    axis.legend(frameon=False)
    return figure
