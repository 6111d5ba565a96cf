"""Seconds per outer step of the multiclass SVM: solvers, conditions, and ways to differentiate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax

from bilevel import Problem, hypergrad, inner, linear, optimality, outer, tasks
from bilevel.study import Findings, Reporter, Row, Study
from experiments import steps

SOLVERS = {
    "mirror_descent": inner.MirrorDescent(rtol=1e-5),
    "projected_gradient": inner.FISTA(rtol=1e-6),
    "block_coordinate_descent": inner.BlockCoordinateDescent(rtol=1e-6),
}
CONDITIONS = {"mirror_descent": optimality.MirrorStep(), "projected_gradient": optimality.ProjectedGradient()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVMRuntime(Study):
    """Seconds per outer step, planned memory, and validation loss, against the number of features p.

    The data are the paper's synthetic ones: 700 training and 200 validation rows, 5 classes, a tenth of the features informative.
    Implicit differentiation uses each solver with each condition, warm-started and solved to a tolerance. Unrolling uses each
    solver with each kind of `hypergrad.Unrolled`, from the uniform start and for as many steps as in the paper. A step is one
    solve and one hypergradient; it is timed at the start, where every solve is cold. Then gradient descent takes `outer_steps`
    steps (`unrolled_outer_steps` when unrolled) with rate 5e-3, which falls with the square root after 100 steps.

    Args:
      features: numbers of features p to compare.
      samples, validation_samples: numbers of rows.
      kinds: kinds of unrolling.
      unrolled_steps: number of unrolled steps for each solver, `mirror_descent`, `projected_gradient` or
        `block_coordinate_descent`; a solver that is not named is left out.
      outer_steps, unrolled_outer_steps: numbers of outer steps.
      repeats: number of timed calls of one step.

    Reference: Blondel et al. 2022, section 4.1.
    """

    features: list[int] = dataclasses.field(default_factory=lambda: [100, 1000, 10000])
    samples: int = 700
    validation_samples: int = 200
    kinds: list[Literal["conditional", "plain", "checkpointed"]] = dataclasses.field(
        default_factory=lambda: ["conditional", "plain", "checkpointed"]
    )
    unrolled_steps: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SOLVERS, 500))
    outer_steps: int = 150
    unrolled_outer_steps: int = 3
    repeats: int = 5

    def __post_init__(self) -> None:
        unknown = [name for name in self.unrolled_steps if name not in SOLVERS]
        if unknown:
            raise ValueError(f"study.unrolled_steps: {unknown[0]!r} is none of {', '.join(SOLVERS)}")

    @property
    def count(self) -> int:
        return len(self.features) * len(self.unrolled_steps) * (len(CONDITIONS) + len(self.kinds))

    @property
    def title(self) -> str:
        return f"runtime of the multiclass SVM, p = {', '.join(map(str, self.features))}"

    def run(self, seed: int, dtype: str, report: Reporter) -> Findings:
        """One row per combination: `features`, `solver`, `condition`, `differentiation`, seconds, memory, losses."""
        optimizer = optax.inject_hyperparams(optax.sgd)(
            learning_rate=lambda step: 5e-3 / jnp.sqrt(jnp.maximum(step - 99, 1).astype(jnp.float32))
        )
        rows: list[Row] = []
        for features in self.features:
            setup = self._setup(features, seed, dtype)
            for names, problem, estimator, count in self._variants(setup.problem):
                algorithm = outer.Nested(problem, SOLVERS[names["solver"]], estimator, optimizer)
                rows.append({"features": features, **names, **self._measure(algorithm, setup, count)})
                report(rows[-1])
        return Findings({"rows": rows, **_compare(rows)})

    def _setup(self, features: int, seed: int, dtype: str) -> tasks.Setup:
        task = tasks.SVM(
            data="synthetic",
            features=features,
            samples=self.samples,
            validation_samples=self.validation_samples,
            test_samples=self.validation_samples,
        )
        return task.setup(seed, dtype)

    def _variants(self, problem: Problem) -> Iterator[tuple[Row, Problem, hypergrad.Estimator, int]]:
        """The labels of each variant, its problem and estimator, and its number of outer steps."""
        for solver, unrolled in self.unrolled_steps.items():
            for name, condition in CONDITIONS.items():
                labels = {"solver": solver, "condition": name, "differentiation": "implicit", "unrolled_steps": None}
                estimator = hypergrad.Implicit(linear=linear.Auto(rtol=1e-4))
                yield labels, dataclasses.replace(problem, optimality=condition), estimator, self.outer_steps
            for kind in self.kinds:
                labels = {"solver": solver, "condition": "", "differentiation": kind, "unrolled_steps": unrolled}
                yield labels, problem, hypergrad.Unrolled(steps=unrolled, kind=kind), self.unrolled_outer_steps

    def _measure(self, algorithm: outer.Nested, setup: tasks.Setup, count: int) -> Row:
        state = algorithm.init(setup.hparams, setup.params, setup.data)
        program = steps.Program.of(algorithm, state, setup.data)
        measured = program.measured(state, setup.data, self.repeats)
        cold = isinstance(algorithm.hypergrad, hypergrad.Unrolled)
        taken = steps.descend(program, state, setup.data, count, cold=cold)
        losses, failures, seconds = zip(
            *((step.outer_loss, step.failures, step.seconds) for step in taken), strict=True
        )
        return {
            **measured,
            **steps.with_interval(np.array(seconds), "warm_seconds"),
            "early_loss": losses[min(self.unrolled_outer_steps, count) - 1],
            "final_loss": losses[-1],
            "outer_steps": count,
            "failures": sum(failures),
        }


def _compare(rows: list[Row]) -> Row:
    """For each p: the relative spread of the validation losses, and seconds of an unrolled over seconds of an implicit step."""
    spread, ratio = {}, {}
    for features in dict.fromkeys(row["features"] for row in rows):
        here = [row for row in rows if row["features"] == features]
        implicit = [row for row in here if row["differentiation"] == "implicit"]
        spread[str(features)] = {
            "final_implicit": _spread([row["final_loss"] for row in implicit]),
            "early_all": _spread([row["early_loss"] for row in here]),
        }
        ratio[str(features)] = {
            f"{row['solver']}, {row['differentiation']}": row["seconds"]
            / min(other["seconds"] for other in implicit if other["solver"] == row["solver"])
            for row in here
            if row["differentiation"] != "implicit"
        }
    return {"loss_spread": spread, "unrolled_over_implicit": ratio}


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / min(values)
