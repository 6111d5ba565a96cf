"""A deep equilibrium network: its hidden layer is where a cell comes to rest, and it is trained through that point."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _tree
from bilevel.datasets import TablePath
from bilevel.inner import Anderson, FixedPointIteration, InnerSolver
from bilevel.problem import At, Problem
from bilevel.tasks import _networks
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._classification import cross_entropy, load, rows, share_right
from bilevel.tasks._pictures import panels

_DRAWN = 40  # iterations


@functools.cache
def network(width: int, classes: int, contraction: float) -> tuple[Any, Any]:
    """(cell, head), flax modules: the cell takes (hidden, features) to hidden, the head takes hidden to scores."""
    from flax import linen

    class Cell(linen.Module):
        @linen.compact
        def __call__(self, hidden, features):
            raw = self.param("recurrent", linen.initializers.orthogonal(contraction), (width, width))
            return jnp.tanh(hidden @ bounded(raw, contraction) + linen.Dense(width, name="input")(features))

    return Cell(), linen.Dense(classes)


def bounded(matrix, norm):
    """The matrix, scaled down to this spectral norm where it exceeds it."""
    return matrix * jnp.minimum(1, norm / jnp.linalg.norm(matrix, 2))


@dataclasses.dataclass(frozen=True)
class Equilibrium:
    """z = tanh(Wz + Ux + b) for each row, ‖W‖₂ ≤ contraction, and scores that are linear in z."""

    width: int
    classes: int
    contraction: float

    @property
    def problem(self) -> Problem:
        """The fixed point inside, the training loss outside."""
        return Problem(outer_loss=self._outer_loss, fixed_point=self._fixed_point)

    def init(self, key: jax.Array, features: jax.Array) -> dict[str, Any]:
        """Weights, drawn."""
        cell, head = self._modules
        first, second = jax.random.split(key)
        hidden = self.rest(features)
        return {
            "cell": _networks.draw(cell, first, hidden, features),
            "head": _networks.draw(head, second, hidden),
        }

    def rest(self, features: jax.Array) -> jax.Array:
        """The start of every iteration, z = 0."""
        return jnp.zeros((len(features), self.width), features.dtype)

    def scores(self, hidden: jax.Array, hparams: Any) -> jax.Array:
        """Of each class, shape (rows, classes)."""
        return _networks.apply(self._modules[1], hparams["head"], hidden)

    @functools.partial(jax.jit, static_argnames="self")
    def classify(self, hparams: Any, features: jax.Array) -> jax.Array:
        """Scores of rows, from rest."""
        solution = Anderson().solve(self.problem, self.rest(features), hparams, {"train": (features, None)})
        return self.scores(solution.params, hparams)

    @functools.partial(jax.jit, static_argnames=("self", "solver"))
    def residuals(self, solver: InnerSolver, hparams: Any, features: jax.Array) -> jax.Array:
        """‖T(z) − z‖/‖z‖ over all rows in the first iterations from rest."""
        at = At(self.problem, hparams, {"train": (features, None)})

        def step(state, _):
            state = solver.step(at, state)
            return state, state.progress.residual

        return jax.lax.scan(step, solver.init(at, self.rest(features)), length=_DRAWN)[1]

    @property
    def _modules(self):
        return network(self.width, self.classes, self.contraction)

    def _fixed_point(self, params, hparams, data):
        return _networks.apply(self._modules[0], hparams["cell"], params, data["train"][0])

    def _outer_loss(self, params, hparams, data):
        decay = data["decay"] * _tree.vdot(hparams, hparams) / 2
        return cross_entropy(self.scores(params, hparams), data["train"][1]) + decay


@dataclasses.dataclass(frozen=True, kw_only=True)
class DEQ(Task):
    """A deep equilibrium network: a layer of infinite depth, trained by the gradient of its fixed point.

    For each row, z = tanh(Wz + Ux + b), with ‖W‖₂ ≤ contraction < 1, so that there is one z. Inner variable: all z, shape
    (training rows, width). The outer loss is the mean cross-entropy, on the training rows, of scores that are linear in z, +
    ½decay‖hparams‖². hparams: the weights of `cell` and `head`, as flax keeps them. Validation and test rows are in the metrics
    only.

    Args:
      data: `digits`, `iris`, `wine`, `breast_cancer` (scikit-learn), or a table by path.
      validation, test: shares (or numbers) of the rows for validation and test; neither is seen by the optimization.
      width: of the layer.
      contraction: the bound of ‖W‖₂; W is scaled to it where it would exceed it.
      decay: ℓ2 penalty of all weights.

    Reference: Bai, Kolter & Koltun 2019.
    """

    data: Literal["digits", "iris", "wine", "breast_cancer"] | TablePath = "digits"
    validation: float = 0.2
    test: float = 0.2
    width: int = 64
    contraction: float = 0.9
    decay: float = 0.0001

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"task.width must be at least 1, got {self.width}")
        if not 0 < self.contraction < 1:
            raise ValueError(f"task.contraction must be above 0 and below 1, got {self.contraction}")
        if not self.decay >= 0:
            raise ValueError(f"task.decay must not be negative, got {self.decay}")

    def setup(self, seed, dtype):
        """Split, scale, draw the weights, and state the problem."""
        split = load(self.data, self.validation, self.test, seed)
        layer = Equilibrium(self.width, split.train.classes, self.contraction)
        train = rows(split.train, dtype)
        hparams = layer.init(jax.random.key(seed), train[0])

        def metrics(hparams, params):
            del params
            scores = {name: layer.classify(hparams, rows(part, dtype)[0]) for name, part in split._asdict().items()}
            return {
                f"{name}_accuracy": share_right(found, getattr(split, name).targets) for name, found in scores.items()
            }

        def pictures(hparams, params):
            del params
            features = rows(split.test, dtype)[0]
            solvers = {"plain iteration": FixedPointIteration(), "Anderson": Anderson()}
            return {"iterations": picture({n: layer.residuals(s, hparams, features) for n, s in solvers.items()})}

        return Setup(
            problem=layer.problem,
            hparams=hparams,
            params=layer.rest(train[0]),
            data={"train": train, "decay": jnp.asarray(self.decay, dtype)},
            title=f"deep equilibrium network on {self.data}",
            sizes={
                "training rows": len(train[0]),
                "validation rows": len(split.validation.features),
                "test rows": len(split.test.features),
                "width": self.width,
                "weights": _networks.count(hparams),
            },
            metrics=metrics,
            physical=lambda hparams: {
                "recurrent_norm": float(jnp.linalg.norm(bounded(hparams["cell"]["recurrent"], self.contraction), 2))
            },
            pictures=pictures,
        )


def picture(residuals: dict[str, Any]) -> Any:
    """How fast iterations come to rest."""
    figure, axes = panels(1, 1, 4.6, 3.2)
    axis = axes[0, 0]
    for name, values in residuals.items():
        axis.semilogy(np.arange(1, len(values) + 1), values, label=name)
    axis.set_xlabel("applications of the cell, test rows")
    axis.set_ylabel("‖T(z) − z‖ / ‖z‖")
    axis.legend(frameon=False)
    return figure
