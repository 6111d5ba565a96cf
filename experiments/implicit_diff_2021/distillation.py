"""Distillation of a training set into ten images: accuracy, time, and how far it goes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import optax
from sklearn.linear_model import LogisticRegression

from bilevel import datasets, hypergrad, inner, outer, tasks
from bilevel.datasets import Table
from bilevel.study import Findings, Reporter, Row, Study
from bilevel.tasks import distillation
from bilevel.tasks.scores import accuracy
from experiments import steps

_algorithm = functools.partial(outer.Nested, distillation.problem)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledAccuracy(Study):
    """Test accuracy of a linear model that is trained on one synthetic image per class, its time, and its upper limit.

    In file order, the first `train` rows are for training and the last `test` rows for the test; pixels are divided by the
    largest one. `paper`: gradient descent with momentum 0.9 and rate 1 for `steps` outer steps, for each seed. `time`: one outer
    step from a cold start, by FISTA to 1e-3 and the implicit gradient, and by unrolling `unrolled_steps` steps of it. `beyond`:
    `further_steps` steps of L-BFGS on the outer loss for each ε in `penalties`; the last `validation` training rows choose ε, and
    the final run uses all training rows. `ceiling`: scikit-learn's multinomial logistic regression on all training rows, with C
    chosen in the same way.

    Args:
      data: `digits`, `synthetic` (`train` + `test` images of 28 × 28 pixels), or a table by path.
      train, validation, test: rows.
      penalty: ε of `paper` and `time`.
      steps: outer steps of `paper`.
      seeds: number of starts of `paper`.
      unrolled_steps: number of unrolled inner steps, and the limit of FISTA.
      kinds: kinds of unrolling.
      repeats: number of timed steps.
      further_steps: outer steps of `beyond`; 0 leaves out `beyond` and `ceiling`.
      penalties: values of ε for `beyond`.

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
    def count(self) -> int:
        compared = len(self.penalties) if len(self.penalties) > 1 else 0
        return self.seeds + 1 + len(self.kinds) + (compared + 2 if self.further_steps else 0)

    @property
    def title(self) -> str:
        return f"distillation of {self.data} into one image per class, {self.train} training rows"

    def run(self, seed: int, dtype: str, report: Reporter) -> Findings:
        """Rows of four kinds, by `part`: `paper`, `time`, `beyond`, `ceiling`."""
        train, test = self._load(seed)
        images: dict[str, Any] = {}
        gradient_descent = _algorithm(inner.LBFGS(rtol=1e-6), hypergrad.Implicit(), optax.sgd(1.0, 0.9))
        paper = []
        for start in range(seed, seed + self.seeds):
            found, curve = self._paper(gradient_descent, _stated(train, start, self.penalty, dtype), test)
            images[f"seed_{start}"] = np.asarray(found.state.hparams)
            shown = {f"test_accuracy_{step}": curve[step] for step in (0, 10, 20, 30, 40) if step <= self.steps}
            loss = found.history[-1]["outer_loss"]
            report({"part": "paper", "seed": start, **shown, "outer_loss": loss, "failures": found.failures})
            paper.append(curve[-1])
        seconds = self._times(_stated(train, seed, self.penalty, dtype), report)
        summary = {
            "test_accuracy": float(np.mean(paper)),
            "test_accuracy_by_seed": paper,
            "unrolled_over_implicit": {kind: seconds[kind] / seconds["implicit"] for kind in self.kinds},
        }
        if self.further_steps:
            penalty, found = self._beyond(train, seed, dtype, report)
            images["beyond"] = np.asarray(found.hparams)
            reached = accuracy(test, found.params)
            report(_row("beyond", penalty, found, test_accuracy=reached))
            summary |= {"beyond_test_accuracy": reached, "beyond_penalty": penalty}
            summary["ceiling_test_accuracy"] = self._ceiling(train, test, report)
        return Findings(summary, {"images": images})

    def _load(self, seed: int) -> tuple[Table, Table]:
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

    def _held_out(self, train: Table) -> tuple[Table, Table]:
        """The training rows without the last `validation` ones, and those."""
        cut = self.train - self.validation
        return _rows(train, slice(0, cut)), _rows(train, slice(cut, None))

    def _paper(self, algorithm: outer.Nested, setup: tasks.Setup, test: Table) -> tuple[outer.Result, list[float]]:
        """Gradient descent with momentum, and the test accuracies after 0, …, `steps` steps."""
        curve: list[float] = []

        def judge(row: Row, state: outer.NestedState) -> None:
            curve.append(accuracy(test, state.params))

        return _run(algorithm, setup, self.steps + 1, judge), curve

    def _times(self, setup: tasks.Setup, report: Reporter) -> dict[str, float]:
        """Median seconds of one outer step by each way to differentiate."""
        solver = inner.FISTA(rtol=1e-3, max_steps=self.unrolled_steps)
        ways: dict[str, hypergrad.Estimator] = {"implicit": hypergrad.Implicit()}
        ways |= {kind: hypergrad.Unrolled(steps=self.unrolled_steps, kind=kind) for kind in self.kinds}
        seconds = {}
        for name, estimator in ways.items():
            algorithm = _algorithm(solver, estimator, optax.sgd(1.0, 0.9))
            state = _begin(algorithm, setup)
            row = steps.Program.of(algorithm, state, setup.data).measured(state, setup.data, self.repeats)
            report({"part": "time", "differentiation": name, **row})
            seconds[name] = row["seconds"]
        return seconds

    def _beyond(self, train: Table, seed: int, dtype: str, report: Reporter) -> tuple[float, outer.Result]:
        """The ε with the best validation accuracy, and the run with it on all training rows, by L-BFGS."""
        algorithm = _algorithm(inner.LBFGS(rtol=1e-6), hypergrad.Implicit(), optax.lbfgs())

        def optimize(rows: Table, penalty: float) -> outer.Result:
            return _run(algorithm, _stated(rows, seed, penalty, dtype), self.further_steps)

        fitted, held_out = self._held_out(train)
        scores = {}
        for penalty in self.penalties if len(self.penalties) > 1 else ():
            found = optimize(fitted, penalty)
            scores[penalty] = accuracy(held_out, found.params)
            report(_row("beyond", penalty, found, validation_accuracy=scores[penalty]))
        best = max(self.penalties, key=lambda penalty: scores.get(penalty, 0.0))
        return best, optimize(train, best)

    def _ceiling(self, train: Table, test: Table, report: Reporter) -> float:
        """Test accuracy of logistic regression on all training rows."""

        def score(c: float, fitted: Table, judged: Table) -> float:
            model = LogisticRegression(C=c, fit_intercept=False, max_iter=1000)
            return float(model.fit(fitted.features, fitted.targets).score(judged.features, judged.targets))

        best = max([0.01, 0.1, 1.0], key=lambda c: score(c, *self._held_out(train)))
        reached = score(best, train, test)
        report({"part": "ceiling", "C": best, "test_accuracy": reached})
        return reached


def _stated(train: Table, seed: int, penalty: float, dtype: str) -> tasks.Setup:
    """One image per class, from all of these rows."""
    return tasks.Distillation(penalty=penalty).state(datasets.Split.of(train), dtype, seed)


def _begin(algorithm: outer.Nested, setup: tasks.Setup) -> outer.NestedState:
    return algorithm.init(setup.hparams, setup.params, setup.data)


def _run(
    algorithm: outer.Nested, setup: tasks.Setup, count: int, callback: Callable[..., Any] | None = None
) -> outer.Result:
    return outer.run_loop(algorithm, _begin(algorithm, setup), setup.data, steps=count, callback=callback)


def _rows(table: Table, rows: slice, scale: float = 1.0) -> Table:
    return Table(table.name, table.features[rows] / scale, table.targets[rows], table.classes)


def _row(part: str, penalty: float, found: outer.Result, **scores: float) -> Row:
    return {"part": part, "penalty": penalty, "outer_loss": found.outer_loss, "failures": found.failures, **scores}
