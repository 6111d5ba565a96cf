"""Distillation of a training set into ten images: accuracy, time, and how far it goes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import datasets, hypergrad, inner, outer
from bilevel.studies import _timing
from bilevel.studies._base import Findings, Report, Row, Study
from bilevel.tasks import distillation
from bilevel.tasks.scores import accuracy


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledAccuracy(Study):
    """Test accuracy of a linear model trained on one made image per class, its time, and its ceiling.

    The first `train` rows are for training and the last `test` ones for the test, in file order; pixels over the largest one.
    Three parts. The paper's: gradient descent with momentum 0.9 and rate 1 for `steps` outer steps, for each seed. Time: one
    outer step from a cold start, FISTA to 1e-3 with the implicit gradient against as many steps as the paper allows it, unrolled.
    Beyond: the outer loss by L-BFGS, for each of `penalties` as ε and `further_steps` steps; the ε is chosen on the last
    `validation` training rows, and those rows then join the others. The ceiling is scikit-learn's multinomial logistic
    regression on all training rows, its C chosen likewise.

    Args:
      data: `digits`, `synthetic` (60,000 × 784 unless `train` and `test` say less), or a table by path.
      train, validation, test: rows.
      penalty: ε of the first two parts.
      steps: outer steps of the first part.
      seeds: starts of the first part.
      unrolled_steps: inner steps that are unrolled, and the limit of FISTA.
      kinds: of unrolling.
      repeats: timed steps.
      further_steps: outer steps of the third part; 0 leaves it out.
      penalties: the ε of the third part.

    Reference: Blondel et al. 2022, section 4.2.
    """

    data: str = "digits"
    train: int = 1400
    validation: int = 300
    test: int = 397
    penalty: float = 0.1
    steps: int = 40
    seeds: int = 5
    unrolled_steps: int = 500
    kinds: list[Literal["conditional", "plain", "checkpointed"]] = dataclasses.field(
        default_factory=lambda: ["conditional", "plain"]
    )
    repeats: int = 5
    further_steps: int = 100
    penalties: list[float] = dataclasses.field(default_factory=lambda: [0.1, 0.01, 0.001])

    @property
    def count(self):
        """A row per seed, per way to differentiate, per ε, and one for the ceiling."""
        compared = len(self.penalties) if len(self.penalties) > 1 else 0
        return self.seeds + 1 + len(self.kinds) + (compared + 2 if self.further_steps else 0)

    @property
    def title(self):
        """What is measured."""
        return f"distillation of {self.data} into one image per class, {self.train} training rows"

    def run(self, seed, dtype, report):
        """Rows of four kinds, by `part`: `paper`, `time`, `beyond`, `ceiling`."""
        train, test = self._load(seed)
        arrays: dict[str, Any] = {}
        descent = _algorithm(optax.sgd(1.0, 0.9))
        paper = [self._paper(descent, train, test, seed + k, dtype, report, arrays) for k in range(self.seeds)]
        times = self._times(train, seed, dtype, report)
        summary = {
            "test_accuracy": float(np.mean(paper)),
            "test_accuracy_by_seed": paper,
            "unrolled_over_implicit": {kind: times[kind] / times["implicit"] for kind in self.kinds},
        }
        if self.further_steps:
            summary |= self._beyond(train, test, seed, dtype, report, arrays)
            summary["ceiling_test_accuracy"] = self._ceiling(train, test, report)
        return Findings(summary, arrays)

    def _load(self, seed: int) -> tuple[datasets.Table, datasets.Table]:
        if self.data == "synthetic":
            table = datasets.make_images(self.train + self.test, 28, 10, seed)
        else:
            table = datasets.load_table(self.data, "classification")
        if self.train + self.test > len(table.features):
            raise datasets.DataError(
                f"{self.data}: study.train + study.test must be at most its {len(table.features)} rows, "
                f"got {self.train} + {self.test}"
            )
        scale = np.abs(table.features[: self.train]).max()
        train = _rows(table, slice(0, self.train), scale)
        return train, _rows(table, slice(len(table.features) - self.test, None), scale)

    def _paper(self, algorithm, train, test, seed, dtype, report: Report, arrays: dict[str, Any]) -> float:
        """Test accuracy after `steps` steps of gradient descent with momentum, from one start."""
        setup = _Start.make(train, seed, self.penalty, dtype)
        curve = [float("nan")] * (self.steps + 1)

        def callback(row, state):
            curve[row["step"]] = accuracy(test, state.params)

        found = outer.run_loop(algorithm, algorithm.init(*setup), setup.data, steps=self.steps + 1, callback=callback)
        arrays.setdefault("images", {})[f"seed_{seed}"] = np.asarray(found.state.hparams)
        report(
            {
                "part": "paper",
                "seed": seed,
                **{f"test_accuracy_{step}": curve[step] for step in (0, 10, 20, 30, 40) if step <= self.steps},
                "outer_loss": found.history[-1]["outer_loss"],
                "failures": found.failures,
            }
        )
        return curve[-1]

    def _times(self, train, seed, dtype, report: Report) -> dict[str, float]:
        """Median seconds of one outer step by each way to differentiate."""
        setup = _Start.make(train, seed, self.penalty, dtype)
        solver = inner.FISTA(rtol=1e-3, max_steps=self.unrolled_steps)
        ways: dict[str, hypergrad.Estimator] = {"implicit": hypergrad.Implicit()}
        ways |= {kind: hypergrad.Unrolled(steps=self.unrolled_steps, kind=kind) for kind in self.kinds}
        found = {}
        for name, estimator in ways.items():
            algorithm = outer.Nested(distillation.problem, solver, estimator, optax.sgd(1.0, 0.9))
            state = algorithm.init(*setup)
            step, memory = _timing.compiled(algorithm.step, state, setup.data)
            times = _timing.with_interval(_timing.seconds(step, state, setup.data, repeats=self.repeats))
            report({"part": "time", "differentiation": name, **times, "memory_mib": memory})
            found[name] = times["seconds"]
        return found

    def _beyond(self, train, test, seed, dtype, report: Report, arrays: dict[str, Any]) -> dict[str, Any]:
        """The best that better outer optimization reaches, ε by validation."""
        fitted = _rows(train, slice(0, self.train - self.validation))
        held_out = _rows(train, slice(self.train - self.validation, None))

        algorithm = _algorithm(optax.lbfgs())

        def optimize(part, penalty):
            setup = _Start.make(part, seed, penalty, dtype)
            return outer.run_loop(algorithm, algorithm.init(*setup), setup.data, steps=self.further_steps)

        best, highest = self.penalties[0], -1.0
        for penalty in self.penalties if len(self.penalties) > 1 else ():
            found = optimize(fitted, penalty)
            score = accuracy(held_out, found.params)
            report(_described("beyond", penalty, found, validation_accuracy=score))
            best, highest = (penalty, score) if score > highest else (best, highest)
        found = optimize(train, best)
        reached = accuracy(test, found.params)
        arrays["images"]["beyond"] = np.asarray(found.hparams)
        report(_described("beyond", best, found, test_accuracy=reached))
        return {"beyond_test_accuracy": reached, "beyond_penalty": best}

    def _ceiling(self, train, test, report: Report) -> float:
        """Test accuracy of logistic regression on all training rows."""
        from sklearn.linear_model import LogisticRegression

        cut = self.train - self.validation

        def score(c, fitted, judged):
            model = LogisticRegression(C=c, fit_intercept=False, max_iter=1000)
            return model.fit(fitted.features, fitted.targets).score(judged.features, judged.targets)

        grid = [0.01, 0.1, 1.0]
        best = max(grid, key=lambda c: score(c, _rows(train, slice(0, cut)), _rows(train, slice(cut, None))))
        accuracy = float(score(best, train, test))
        report({"part": "ceiling", "C": best, "test_accuracy": accuracy})
        return accuracy


@dataclasses.dataclass(frozen=True)
class _Start:
    """The start of a distillation."""

    hparams: jax.Array
    params: jax.Array
    data: dict[str, Any]

    @classmethod
    def make(cls, train: datasets.Table, seed: int, penalty: float, dtype: Any) -> _Start:
        pixels = train.features.shape[1]
        images = distillation.start(seed, train.classes, pixels, dtype)
        return cls(images, jnp.zeros((pixels, train.classes), dtype), distillation.make_data(train, 1, penalty, dtype))

    def __iter__(self):
        return iter((self.hparams, self.params, self.data))


def _algorithm(optimizer: optax.GradientTransformation) -> outer.Nested:
    return outer.Nested(distillation.problem, inner.LBFGS(rtol=1e-6), hypergrad.Implicit(), optimizer)


def _rows(table: datasets.Table, rows: slice, scale: float = 1.0) -> datasets.Table:
    return datasets.Table(table.name, table.features[rows] / scale, table.targets[rows], table.classes)


def _described(part: str, penalty: float, found: outer.Result, **scores: float) -> Row:
    return {"part": part, "penalty": penalty, "outer_loss": found.outer_loss, "failures": found.failures, **scores}
