"""Few-shot learning by implicit MAML: a start from which a network learns a new episode from a few rows."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _tree
from bilevel.inner import LBFGS
from bilevel.problem import Problem
from bilevel.tasks import _networks
from bilevel.tasks._base import Setup, Task
from bilevel.tasks._classification import cross_entropy
from bilevel.tasks._episodes import Episodes, Rows, digits, sinusoids, split_digits
from bilevel.tasks._pictures import panels


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network with these widths, of which every episode has its own weights, held to a shared start."""

    widths: tuple[int, ...]

    @property
    def problem(self) -> Problem:
        """Learning from the support rows inside, what comes of it on the query rows outside."""
        return Problem(self._inner_loss, self._outer_loss)

    @property
    def classifies(self) -> bool:
        """Whether it tells classes apart; with one output, it predicts a number."""
        return self.widths[-1] > 1

    def init(self, key: jax.Array, features: jax.Array) -> Any:
        """Weights, drawn."""
        return _networks.draw(_networks.perceptron(self.widths), key, features)

    def copies(self, weights: Any, count: int) -> Any:
        """The same weights for each of `count` episodes."""
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), weights)

    def predict(self, params: Any, features: jax.Array) -> jax.Array:
        """Scores, or numbers, of the rows of each episode by its own weights."""
        network = _networks.perceptron(self.widths)
        outputs = jax.vmap(functools.partial(_networks.apply, network))(params, features)
        return outputs if self.classifies else outputs[..., 0]

    def losses(self, params: Any, rows: Rows) -> jax.Array:
        """Mean cross-entropy, or half of the mean square, of each episode."""
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
        """Of each episode: the share of its rows that is right, or the mean square of the error."""
        outputs, targets = np.asarray(self.predict(params, rows.features)), np.asarray(rows.targets)
        right = outputs.argmax(-1) == targets if self.classifies else (outputs - targets) ** 2
        return right.mean(axis=1)

    def _inner_loss(self, params, hparams, data):
        away = jax.tree.map(lambda own, shared: own - shared, params, hparams)
        return self.losses(params, data["episodes"].support).sum() + data["penalty"] * _tree.vdot(away, away) / 2

    def _outer_loss(self, params, hparams, data):
        del hparams
        return self.losses(params, data["episodes"].query).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta(Task):
    """Few-shot learning: the start of a network's weights, from which each of many episodes learns from a few rows.

    min over φ of Σ over episodes of loss(φₑ; support rows) + ½penalty‖φₑ − θ‖². Inner variable: φ, the weights of each episode,
    as flax keeps them, with a leading axis. The outer loss is the mean over episodes of the loss of φₑ on the query rows.
    hparams: θ, drawn at random. Test episodes, which the optimization does not see, learn from θ in the same way; in the
    metrics, `_start` marks what they reach from the weights drawn at first.

    Args:
      data: `sinusoids`, y = a sin(x − b) with amplitude and phase of each episode its own; or `digits`, a choice of classes in
        random order, where test episodes are made of rows that no training episode has.
      episodes, test_episodes: how many.
      shots: support rows, for digits of each class.
      queries: query rows of an episode, for digits rounded up to the same number for each class.
      ways: classes of an episode; not used by sinusoids.
      widths: of the network's hidden layers.
      penalty: how strongly φ is held to θ; with too little of it an episode has no unique solution.

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

    def __post_init__(self):
        for name in ("episodes", "test_episodes", "shots", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name} must be at least 1, got {getattr(self, name)}")
        if not 2 <= self.ways <= 10:
            raise ValueError(f"task.ways must be from 2 to 10, got {self.ways}")
        if self.widths and min(self.widths) < 1:
            raise ValueError(f"task.widths must be numbers of at least 1, one for each layer, got {list(self.widths)}")
        if not self.penalty > 0:
            raise ValueError(f"task.penalty must be positive, got {self.penalty}")

    def setup(self, seed, dtype):
        """Make the episodes, draw the start, and state the problem."""
        train, test = (episodes.arrays(dtype) for episodes in self._make(seed))
        learner = Learner((*self.widths, self.ways if self.data == "digits" else 1))
        hparams = learner.init(jax.random.key(seed), train.support.features[0])
        penalty = jnp.asarray(self.penalty, dtype)
        measure = "accuracy" if learner.classifies else "mse"

        def reached(start):
            params = learner.adapt(start, test, penalty)
            return float(learner.losses(params, test.query).mean()), learner.scores(params, test.query)

        def metrics(hparams_, params):
            (loss, scores), (start_loss, start_scores) = reached(hparams_), reached(hparams)
            return {
                f"train_{measure}": float(learner.scores(params, train.query).mean()),
                "test_loss": loss,
                "test_loss_start": start_loss,
                f"test_{measure}": float(scores.mean()),
                f"test_{measure}_start": float(start_scores.mean()),
            }

        def pictures(hparams_, params):
            del params
            if learner.classifies:
                return {"episodes": scores_picture(reached(hparams)[1], reached(hparams_)[1], measure)}
            return {
                "episodes": curves_picture(learner, {"from the start": hparams, "learned": hparams_}, test, penalty)
            }

        return Setup(
            problem=learner.problem,
            hparams=hparams,
            params=learner.copies(hparams, self.episodes),
            data={"episodes": train, "penalty": penalty},
            title=f"a start for few-shot learning of {self.data}",
            sizes={
                "training episodes": self.episodes,
                "test episodes": self.test_episodes,
                "support rows": train.support.targets.shape[1],
                "query rows": train.query.targets.shape[1],
                "weights": _networks.count(hparams),
            },
            metrics=metrics,
            physical=lambda hparams: {"start": _networks.flat(hparams)},
            pictures=pictures,
        )

    def _make(self, seed: int) -> tuple[Episodes, Episodes]:
        """Training and test episodes."""
        rng, counts = np.random.default_rng(seed), (self.episodes, self.test_episodes)
        if self.data == "sinusoids":
            train, test = (sinusoids(count, self.shots, self.queries, rng) for count in counts)
            return train, test
        tables = split_digits(0.4, seed)
        rows = self.shots + -(-self.queries // self.ways)
        fewest = min(int(np.bincount(table.targets).min()) for table in tables)
        if rows > fewest:
            raise ValueError(
                f"task.shots + task.queries / task.ways must be at most {fewest}, the rows of the rarest digit, got {rows}"
            )
        train, test = (
            digits(table, count, self.ways, self.shots, self.queries, rng)
            for table, count in zip(tables, counts, strict=True)
        )
        return train, test


def curves_picture(learner: Learner, starts: dict[str, Any], test: Episodes, penalty: jax.Array, drawn: int = 4) -> Any:
    """What a few test episodes learn from each start."""
    figure, axes = panels(1, drawn, 3, 2.6)
    learned = {
        name: learner.predict(learner.adapt(start, test, penalty), test.query.features)
        for name, start in starts.items()
    }
    for number, axis in enumerate(axes[0]):
        x = np.asarray(test.query.features[number, :, 0])
        axis.plot(x, test.query.targets[number], color="black", linewidth=1, label="truth")
        for (name, outputs), color in zip(learned.items(), ("tab:gray", "tab:blue"), strict=True):
            axis.plot(x, outputs[number], color=color, linestyle="--", label=name)
        axis.plot(*(np.asarray(part[number]).ravel() for part in test.support), "o", color="tab:red", markersize=4)
        axis.set_ylim(-2.6, 2.6)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def scores_picture(start: np.ndarray, learned: np.ndarray, measure: str) -> Any:
    """Histograms of the scores of test episodes."""
    figure, axes = panels(1, 1, 4.6, 3.2)
    axis, bins = axes[0, 0], np.linspace(0, 1, 26)
    axis.hist(start, bins, alpha=0.6, color="tab:gray", label="from the start")
    axis.hist(learned, bins, alpha=0.6, color="tab:blue", label="learned")
    axis.set_xlabel(f"{measure} of a test episode")
    axis.set_ylabel("episodes")
    axis.legend(frameon=False)
    return figure
