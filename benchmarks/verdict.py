"""What the verdict costs: the time of an outer step with verdict=cheap and full, over that with off, from the same states.

A run of the task with verdict=off makes the states; every state is stepped by each contender in turn, so that drift of the
machine cancels. Printed: the ratio of the total times over all states, and its range over the repeats; the ratio of the times to
compile; and the states whose cheap verdict is not sure. Tasks at their defaults, with their own solvers.

Run: python benchmarks/verdict.py [--tasks svm logistic distillation] [--steps 30] [--repeats 7]
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from bilevel import config
from bilevel.hypergrad import Reason
from bilevel.outer import Nested

MODES = ("off", "cheap", "full")


def algorithms(name: str) -> tuple[dict[str, Nested], tuple[Any, Any, Any]]:
    """The task's algorithm with each verdict, and its start."""
    cfg = config.compose([f"task={name}"])
    setup = config.build(cfg.task).setup(0, cfg.precision)
    nested = config.build(cfg.outer)(setup.problem)
    found = {
        mode: dataclasses.replace(nested, hypergrad=dataclasses.replace(nested.hypergrad, verdict=mode))
        for mode in MODES
    }
    return found, (setup.hparams, setup.params, setup.data)


def main() -> None:
    """Print a row for each task and mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["svm", "logistic", "distillation"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print("| task | verdict | step, ratio to off | range | compilation, ratio | not sure |\n|---|---|---|---|---|---|")
    for name in args.tasks:
        made, (hparams, params, data) = algorithms(name)
        compiled, seconds = {}, {}
        state = made["off"].init(hparams, params, data)
        for mode, algorithm in made.items():
            begun = time.perf_counter()
            compiled[mode] = jax.jit(algorithm.step).lower(state, data).compile()
            seconds[mode] = time.perf_counter() - begun
        states = [state]
        for _ in range(args.steps - 1):
            states.append(compiled["off"](states[-1], data)[0])
        totals = {mode: np.zeros(args.repeats) for mode in MODES}
        for repeat in range(args.repeats):
            for state in states:
                for mode in MODES:
                    begun = time.perf_counter()
                    jax.block_until_ready(compiled[mode](state, data))
                    totals[mode][repeat] += time.perf_counter() - begun
        reports = [compiled["cheap"](state, data)[1] for state in states]
        unsure = sum(int(report.verdict.reason) == Reason.UNEXAMINED for report in reports)
        for mode in MODES[1:]:
            ratios = totals[mode] / totals["off"]
            print(
                f"| {name} | {mode} | {np.median(ratios):.2f} | [{ratios.min():.2f}, {ratios.max():.2f}] | "
                f"{seconds[mode] / seconds['off']:.2f} | {f'{unsure} of {len(states)}' if mode == 'cheap' else ''} |"
            )


if __name__ == "__main__":
    main()
