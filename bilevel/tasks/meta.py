"""Few-shot learning by implicit MAML: start weights from which a network learns a new episode from a few rows."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike

from bilevel import _tree
from bilevel.inner import LBFGS
from bilevel.problem import Problem
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._networks import Perceptron
from bilevel.tasks._tables import cross_entropy
from bilevel.tasks.episodes import Episodes, EpisodeSplit, Rows, digits, sinusoids, split_digits
from bilevel.tasks.pictures import histograms, panels


class Learner(Perceptron):
    """A network with its own weights for every episode; a penalty keeps them near a shared start."""

    @property
    def problem(self) -> Problem:
        """Learning from the support rows inside and the loss on the query rows outside."""
        return Problem(self._inner_loss, self._outer_loss)

    @property
    def classifies(self) -> bool:
        """Whether the outputs are scores of classes; a single output is a predicted number."""
        return self.widths[-1] > 1

    def copies(self, weights: Any, count: int) -> Any:
        """The same weights for each of `count` episodes."""
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), weights)

    def predict(self, params: Any, features: jax.Array) -> jax.Array:
        """Scores or numbers for the rows of each episode by its own weights."""
        outputs = jax.vmap(self.outputs)(params, features)
        return outputs if self.classifies else outputs[..., 0]

    def losses(self, params: Any, rows: Rows) -> jax.Array:
        """Mean cross-entropy, or half of the mean squared error, of each episode."""
        outputs = self.predict(params, rows.features)
        if self.classifies:
            return jax.vmap(cross_entropy)(outputs, rows.targets)
        return jnp.mean((outputs - rows.targets) ** 2, axis=1) / 2

    @functools.partial(jax.jit, static_argnames="self")
    def adapt(self, hparams: Any, episodes: Episodes, penalty: jax.Array) -> Any:
        """The weights that each episode learns from the start `hparams`."""
        start = self.copies(hparams, len(episodes.support.features))
        return LBFGS().solve(self.problem, start, hparams, {"episodes": episodes, "penalty": penalty}).params

    def scores(self, params: Any, rows: Rows) -> np.ndarray:
        """The accuracy, or the mean squared error, of each episode."""
        outputs, targets = np.asarray(self.predict(params, rows.features)), np.asarray(rows.targets)
        right = outputs.argmax(-1) == targets if self.classifies else (outputs - targets) ** 2
        return right.mean(axis=1)

    def _inner_loss(self, params: Any, hparams: Any, data: Any) -> jax.Array:
        away = _tree.sub(params, hparams)
        return self.losses(params, data["episodes"].support).sum() + data["penalty"] * _tree.vdot(away, away) / 2

    def _outer_loss(self, params: Any, hparams: Any, data: Any) -> jax.Array:
        return self.losses(params, data["episodes"].query).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta(Task[EpisodeSplit]):
    """Few-shot learning: start weights of a network, from which each of many episodes learns from a few rows.

    min over φ of Σ over episodes of loss(φₑ; support rows) + ½penalty‖φₑ − θ‖². Inner variable: φ, the flax parameters of each
    episode, with a leading axis. The outer loss is the mean over episodes of the loss of φₑ on the query rows. hparams: θ,
    drawn at random. Test episodes, which only the metrics use, learn from θ in the same way; metrics that end in `_start` are
    for the random θ.

    Args:
      data: `sinusoids`, y = a sin(x − b) with a random amplitude and phase per episode; or `digits`, random classes in random
        order, where training and test episodes have no row in common.
      episodes, test_episodes: numbers of episodes.
      shots: support rows of an episode; for digits, of each class.
      queries: query rows of an episode; for digits, rounded up to the same number for each class.
      ways: classes of an episode; not used for sinusoids.
      widths: widths of the network's hidden layers.
      penalty: keeps φ near θ; if it is too small, an episode has no unique solution.

    Reference: Rajeswaran et al. 2019; Finn, Abbeel & Levine 2017 (the sinusoids).
    """

    data: Literal["sinusoids", "digits"] = "sinusoids"
    episodes: int = 30
    test_episodes: int = 200
    shots: int = 10
    queries: int = 50
    ways: int = 5
    widths: list[int] = dataclasses.field(default_factory=lambda: [40, 40])
    penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("episodes", "test_episodes", "shots", "queries"):
            self.check(name, getattr(self, name) >= 1, "be at least 1")
        self.check("ways", 2 <= self.ways <= 10, "be from 2 to 10")
        self.check("widths", min(self.widths, default=1) >= 1, "be numbers of at least 1, one for each layer")
        self.check("penalty", self.penalty > 0, "be positive")

    def tables(self, seed: int) -> EpisodeSplit:
        """Make the episodes."""
        rng, counts = np.random.default_rng(seed), (self.episodes, self.test_episodes)
        if self.data == "sinusoids":
            train, test = (sinusoids(count, self.shots, self.queries, rng) for count in counts)
            return EpisodeSplit(train, test, self.data)
        tables = split_digits(0.4, seed)
        rows = self.shots + -(-self.queries // self.ways)
        fewest = min(int(np.bincount(table.targets).min()) for table in tables)
        if rows > fewest:
            raise ValueError(
                f"task.shots + task.queries / task.ways must be at most {fewest}, the number of rows of the rarest digit, got "
                f"{rows}"
            )
        sizes = self.ways, self.shots, self.queries
        train, test = (digits(table, count, *sizes, rng) for table, count in zip(tables, counts, strict=True))
        return EpisodeSplit(train, test, self.data)

    def state(self, tables: EpisodeSplit, dtype: DTypeLike, seed: int = 0) -> Setup:
        """State the problem; `seed` draws the start weights."""
        tables.require()
        train = tables.train.arrays(dtype)
        test = None if tables.test is None else tables.test.arrays(dtype)
        learner = Learner((*self.widths, tables.classes or 1))
        start = learner.init(jax.random.key(seed), train.support.features[0])
        penalty, episodes = jnp.asarray(self.penalty, dtype), len(train.support.features)
        measure = "accuracy" if learner.classifies else "mse"

        def reached(hparams: Any, test: Episodes) -> tuple[float, np.ndarray]:
            params = learner.adapt(hparams, test, penalty)
            return float(learner.losses(params, test.query).mean()), learner.scores(params, test.query)

        def metrics(hparams: Any, params: Any) -> dict[str, float]:
            found = {f"train_{measure}": float(learner.scores(params, train.query).mean())}
            if test is not None:
                for suffix, weights in {"": hparams, "_start": start}.items():
                    loss, scores = reached(weights, test)
                    found |= {f"test_loss{suffix}": loss, f"test_{measure}{suffix}": float(scores.mean())}
            return found

        def pictures(hparams: Any, params: Any) -> dict[str, Any]:
            if test is None:
                return {}
            starts = {"from the start": start, "learned": hparams}
            if not learner.classifies:
                return {"episodes": curves_picture(learner, starts, test, penalty)}
            scores = {name: reached(weights, test)[1] for name, weights in starts.items()}
            label = f"{measure} of a test episode"
            return {"episodes": histograms(scores, label, "episodes", ("tab:gray", "tab:blue"), bins=25)}

        return Setup(
            problem=learner.problem,
            hparams=start,
            params=learner.copies(start, episodes),
            data={"episodes": train, "penalty": penalty},
            title=f"start weights for few-shot learning of {tables.name}",
            sizes={
                "training episodes": episodes,
                **({} if test is None else {"test episodes": len(test.support.features)}),
                "support rows": train.support.targets.shape[1],
                "query rows": train.query.targets.shape[1],
                "weights": _tree.size(start),
            },
            metrics=metrics,
            physical=lambda hparams: {"start": np.asarray(ravel_pytree(hparams)[0])},
            pictures=pictures,
        )


def curves_picture(learner: Learner, starts: dict[str, Any], test: Episodes, penalty: jax.Array, drawn: int = 4) -> Any:
    """The curves over the first feature that the first test episodes learn from each start."""
    figure, axes = panels(1, min(drawn, len(test.query.features)), 3, 2.6)
    learned = {
        name: learner.predict(learner.adapt(start, test, penalty), test.query.features)
        for name, start in starts.items()
    }
    for number, axis in enumerate(axes[0]):
        x = np.asarray(test.query.features[number, :, 0])
        axis.plot(x, test.query.targets[number], color="black", linewidth=1, label="truth")
        for (name, outputs), color in zip(learned.items(), ("tab:gray", "tab:blue"), strict=True):
            axis.plot(x, outputs[number], color=color, linestyle="--", label=name)
        axis.plot(test.support.features[number, :, 0], test.support.targets[number], "o", color="tab:red", markersize=4)
        axis.set_ylim(-2.6, 2.6)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure
