"""Compare inner solvers with those of jaxopt and optimistix, and for the lasso with celer, skglm and scikit-learn.

Measured is the time from a common start to an objective within 1e-6 of the optimum, relative to the optimum, which a lower
bound certifies. Each contender runs with the loosest tolerance that reaches it, on a grid with four values per decade, and
with its fastest setting. The settings of jaxopt are its line searches or the step 1/L, and its own objective or our loss.
All programs are compiled beforehand, with data and hyperparameters as arguments, in float64.

A ratio is their time over ours in one repetition; the order alternates, and the interval goes from 5 % to 95 %. The
preparation of our solvers, once for all outer steps, is not included.

Run: python benchmarks/inner.py [--problems lasso] [--kinds FISTA] [--repeats 9]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
import warnings
from typing import Any, NamedTuple

# On busy cores, LAPACK's threads wait for each other up to 8 ms per call. One thread avoids this for all contenders.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import _inner_contenders as by
import _inner_jaxopt as theirs
import _inner_problems as problems
import jax
import numpy as np
import optimistix as optx

from bilevel import inner

TARGET = 1e-6
LONG = {"max_steps": by.MAX_STEPS}

INSTANCES = {
    "logistic": [problems.logistic],
    "lasso": [lambda: problems.lasso(1 / 10), lambda: problems.lasso(1 / 50)],
    "svm": [lambda: problems.svm_dual(1), lambda: problems.svm_dual(1 / 10)],
    "nnls": [problems.nnls],
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Our solver and theirs, of one kind."""

    kind: str
    ours: by.Family
    package: str
    theirs: by.Family


FISTA = by.ours(inner.FISTA, **LONG)
BLOCKS = by.ours(inner.BlockCoordinateDescent)
BEST_LASSO = by.together(FISTA=FISTA, BlockCoordinateDescent=BLOCKS, SemismoothNewton=by.ours(inner.SemismoothNewton))

PAIRS = {
    "logistic": [
        Pair("LBFGS", by.ours(inner.LBFGS), "jaxopt", theirs.lbfgs),
        Pair("LBFGS", by.ours(inner.LBFGS), "optimistix", by.optimistix("minimise", LBFGS=optx.LBFGS, BFGS=optx.BFGS)),
        Pair("FISTA", FISTA, "jaxopt", theirs.logistic),
        Pair("Anderson", by.ours(inner.Anderson, memory=10), "jaxopt", theirs.anderson),
        Pair("Newton", by.ours(inner.Newton), "optimistix", by.optimistix("root_find", Newton=optx.Newton)),
    ],
    "lasso": [
        Pair("FISTA", FISTA, "jaxopt", theirs.lasso),
        Pair("BlockCoordinateDescent", BLOCKS, "jaxopt", theirs.lasso_cd),
        Pair("best", BEST_LASSO, "celer", by.lasso_by_numpy("celer")),
        Pair("best", BEST_LASSO, "skglm", by.lasso_by_numpy("skglm")),
        Pair("best", BEST_LASSO, "sklearn", by.lasso_by_numpy("sklearn")),
    ],
    "svm": [
        Pair("FISTA", FISTA, "jaxopt", theirs.svm),
        Pair("MirrorDescent", by.ours(inner.MirrorDescent, **LONG), "jaxopt", theirs.svm_mirror),
        Pair("BlockCoordinateDescent", BLOCKS, "jaxopt", theirs.svm_cd),
    ],
    "nnls": [
        Pair("FISTA", FISTA, "jaxopt", theirs.nnls),
        Pair("BlockCoordinateDescent", BLOCKS, "jaxopt", theirs.nnls_cd),
        Pair("OSQP", by.ours(inner.OSQP), "jaxopt", theirs.nnls_program),
    ],
}


class Calibrated(NamedTuple):
    """A setting with its tolerance, and the gap and the steps of its solve."""

    tol: float
    solve: by.Solve
    gap: float
    steps: int
    setting: str = ""


def seconds(solve: by.Solve) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = solve()
    return time.perf_counter() - begun, found


def calibrate(make: Any, instance: problems.Instance, reference: float) -> Calibrated | None:
    """Find the loosest tolerance that reaches the target, by decades and then by quarters of a decade; None if none does."""
    for exponent in range(2, -14, -1):
        found = attempt(make, 10.0**exponent, instance, reference)
        if found.gap <= TARGET:
            looser = (attempt(make, 10 ** (exponent + more), instance, reference) for more in (0.75, 0.5, 0.25))
            return next((each for each in looser if each.gap <= TARGET), found)
        if found.steps >= by.MAX_STEPS:
            return None
    return None


def attempt(make: Any, tol: float, instance: problems.Instance, reference: float) -> Calibrated:
    solve = make(tol)
    params, steps = solve()
    return Calibrated(tol, solve, instance.gap(params, reference), int(steps))


def fastest(family: by.Family, instance: problems.Instance, reference: float) -> Calibrated | None:
    """The fastest calibrated setting of a family."""
    found = []
    for setting, make in family(instance).items():
        calibrated = calibrate(make, instance, reference)
        if calibrated is not None:
            found.append((min(seconds(calibrated.solve)[0] for _ in range(3)), setting, calibrated))
    _, setting, calibrated = min(found, default=(0, "", None))
    return calibrated and calibrated._replace(setting=setting)


def paired(first: by.Solve, second: by.Solve, repeats: int) -> np.ndarray:
    """The seconds of both, shape (repeats, 2), in alternating order."""
    times = np.empty((repeats, 2))
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 else (1, 0):
            times[repeat, which] = seconds((first, second)[which])[0]
    return times


def compare(instance: problems.Instance, pairs: list[Pair], repeats: int) -> list[dict[str, Any]]:
    """Print and return one row per pair."""
    reference, rows = instance.reference(), []
    known: dict[Any, Calibrated | None] = {}
    for pair in pairs:
        for family in (pair.ours, pair.theirs):
            if family not in known:
                known[family] = fastest(family, instance, reference)
        mine, other = known[pair.ours], known[pair.theirs]
        if mine is None or other is None:
            missing = "ours" if mine is None else "theirs"
            print(f"{instance.name:18}{pair.kind:24}{pair.package:11}{missing}: not reached", flush=True)
            continue
        times = paired(mine.solve, other.solve, repeats)
        low, ratio, high = np.percentile(times[:, 1] / times[:, 0], [5, 50, 95])
        mine_ms, other_ms = 1e3 * np.median(times, axis=0)
        print(
            f"{instance.name:18}{pair.kind:24}{pair.package:11}{mine_ms:9.2f}{other_ms:10.2f}"
            f"{f'{ratio:.2f} [{low:.2f}, {high:.2f}]':>22}  {describe(mine)} | {describe(other)}",
            flush=True,
        )
        rows.append({"problem": instance.name, "package": pair.package, "ratio": ratio, "low": low, "high": high})
    return rows


def describe(contender: Calibrated) -> str:
    name = f"{contender.setting}, " if contender.setting else ""
    return f"{name}tol {contender.tol:.0e}, {contender.steps} steps, gap {contender.gap:.0e}"


def verdict(rows: list[dict[str, Any]]) -> None:
    """Print the geometric mean against jaxopt, and the problems on which our solvers are slower."""
    against = [row for row in rows if row["package"] == "jaxopt"]
    if against:
        mean = np.exp(np.mean(np.log([row["ratio"] for row in against])))
        print(f"\ngeometric mean against jaxopt, {len(against)} pairs: {mean:.2f}")
    for name in dict.fromkeys(row["problem"] for row in rows):
        slower = [row for row in rows if row["problem"] == name and row["high"] < 1]
        print(
            f"{name}: {'slower than ' + ', '.join(row['package'] for row in slower) if slower else 'no interval below 1'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=INSTANCES, default=list(INSTANCES), help="problems to solve")
    parser.add_argument("--kinds", nargs="+", help="compare only pairs of these kinds, such as FISTA")
    parser.add_argument("--packages", nargs="+", help="compare only with these packages, such as jaxopt")
    parser.add_argument("--repeats", type=int, default=9, help="paired repetitions (default: 9)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    jax.config.update("jax_enable_x64", True)
    print(f"{jax.devices()[0].device_kind}, float64; ratio: theirs over ours [5 %, 95 %]")
    print(f"{'':53}{'ours ms':>9}{'theirs ms':>10}{'ratio':>22}  ours | theirs")
    rows = []
    for name in options.problems:
        pairs = [
            pair
            for pair in PAIRS[name]
            if (not options.kinds or pair.kind in options.kinds)
            and (not options.packages or pair.package in options.packages)
        ]
        for instance in INSTANCES[name]:
            rows += compare(instance(), pairs, options.repeats)
    verdict(rows)


if __name__ == "__main__":
    main()
