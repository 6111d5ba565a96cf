"""How each figure is drawn from a run, and its numbers under the names of expected.json."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bilevel.runs import Run
from bilevel.tasks.pictures import panels

COLORS = {"mirror_descent": "tab:blue", "projected_gradient": "tab:orange", "block_coordinate_descent": "tab:green"}
STYLES = {"implicit": "-", "conditional": ":", "plain": "--", "checkpointed": "-."}


class Figure(NamedTuple):
    """The functions that draw a study and give its numbers, by the names of expected.json."""

    draw: Callable[[Run], Any]
    numbers: Callable[[Run], dict[str, float]]


def rows_where(run: Run, **wanted: Any) -> list[dict[str, Any]]:
    """The rows that have these values."""
    return [row for row in run.metrics if all(row.get(name) == value for name, value in wanted.items())]


def column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    """One number of each row; NaN for null."""
    return np.array([math.nan if row[name] is None else row[name] for row in rows], float)


def summary_of(run: Run) -> dict[str, Any]:
    """The summary of a finished study."""
    if run.result is None:
        raise ValueError(f"{run.folder}: this study did not finish")
    return run.result["summary"]


# Jacobian precision


def _draw_jacobian_precision(run: Run) -> Any:
    figure, ((axis,),) = panels(1, 1, 5.4, 3.6)
    errors = column(run.metrics, "solution_error")
    for name, label, style in (
        ("unrolled_error", "unrolled", "o-"),
        ("bound", "theorem's bound", "k--"),
        ("implicit_error", "implicit", "o-"),
    ):
        axis.loglog(errors, column(run.metrics, name), style, label=label)
    axis.set_xlabel("error of the solution, ‖x̂ − x*‖")
    axis.set_ylabel("error of the Jacobian")
    axis.legend(frameon=False)
    return figure


def _numbers_of_jacobian_precision(run: Run) -> dict[str, float]:
    found: dict[str, float] = {"bound holds": float(summary_of(run)["bound_holds"])}
    for row in run.metrics:
        for name in ("solution_error", "implicit_error", "unrolled_error", "bound"):
            found[f"{name.replace('_', ' ')}, t = {row['steps']}"] = row[name]
    return found


# Runtime of the SVM


def _draw_svm_runtime(run: Run) -> Any:
    figure, ((time, memory, loss),) = panels(1, 3, 4.6, 3.6)
    for solver, color in COLORS.items():
        for way, style in STYLES.items():
            condition = "" if way != "implicit" else _condition_of(solver)
            rows = rows_where(run, solver=solver, differentiation=way, condition=condition)
            features, low, high = (column(rows, name) for name in ("features", "seconds_low", "seconds_high"))
            time.loglog(features, column(rows, "seconds"), style, color=color, label=f"{solver}, {way}")
            time.fill_between(features, low, high, color=color, alpha=0.15, linewidth=0)
            memory.loglog(features, column(rows, "memory_mib"), style, color=color)
    markers = iter("os^Dv*")
    for solver, color in COLORS.items():
        for condition in ("mirror_descent", "projected_gradient"):
            rows = rows_where(run, solver=solver, condition=condition, differentiation="implicit")
            style = {"marker": next(markers), "linestyle": "", "color": color, "alpha": 0.6, "fillstyle": "none"}
            label = f"{solver}, {condition} map"
            loss.semilogx(column(rows, "features"), column(rows, "final_loss"), label=label, **style)
    titles = {time: "seconds per outer step", memory: "planned memory, MiB", loss: "final validation loss"}
    for axis, title in titles.items():
        axis.set_title(title)
        axis.set_xlabel("features p")
    figure.legend(*time.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    loss.legend(frameon=False, fontsize=7)
    return figure


def _condition_of(solver: str) -> str:
    """The condition with which a solver's time is drawn."""
    return "mirror_descent" if solver == "mirror_descent" else "projected_gradient"


def _numbers_of_svm_runtime(run: Run) -> dict[str, float]:
    summary = summary_of(run)
    spread, ratio = summary["loss_spread"].values(), summary["unrolled_over_implicit"]
    implicit = rows_where(run, differentiation="implicit")
    found = {
        "largest relative spread of final validation losses, implicit": max(s["final_implicit"] for s in spread),
        "largest relative spread of validation losses after the same steps, all": max(s["early_all"] for s in spread),
        "solves that failed, implicit": sum(row["failures"] for row in implicit),
    }
    for features, ratios in ratio.items():
        rows = rows_where(run, features=int(features), solver="mirror_descent")
        plans = {row["differentiation"]: row["memory_mib"] for row in rows}
        where = f"mirror_descent, p = {features}"
        found[f"conditional over plain unrolling, memory, {where}"] = plans["conditional"] / plans["plain"]
        found[f"unrolled (conditional) over implicit, seconds, {where}"] = ratios["mirror_descent, conditional"]
    return found


# Distillation


def _draw_distillation(run: Run) -> Any:
    images = {name: array for name, array in run.arrays["images"].items() if name in ("seed_0", "beyond")}
    classes, pixels = next(iter(images.values())).shape
    side = math.isqrt(pixels)
    figure, axes = panels(len(images), classes, 1.1, 1.35)
    labels = {"seed_0": "40 steps", "beyond": "beyond"}
    for line, (name, array) in zip(axes, images.items(), strict=True):
        for number, (axis, image) in enumerate(zip(line, array, strict=True)):
            largest = np.abs(image).max()
            axis.imshow(image.reshape(side, side), cmap="RdBu_r", vmin=-largest, vmax=largest)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if line is axes[0]:
                axis.set_title(str(number))
        line[0].set_ylabel(labels[name])
    return figure


def _numbers_of_distillation(run: Run) -> dict[str, float]:
    summary = summary_of(run)
    paper = rows_where(run, part="paper")
    found = {
        "test accuracy after 40 steps, mean of seeds": summary["test_accuracy"],
        "test accuracy at the start": float(column(paper, "test_accuracy_0").mean()),
        "ceiling, logistic regression on all rows": summary["ceiling_test_accuracy"],
        "beyond, test accuracy": summary["beyond_test_accuracy"],
    }
    for kind, ratio in summary["unrolled_over_implicit"].items():
        found[f"unrolled ({kind}) over implicit, seconds"] = ratio
    return found


# Dictionary learning

METHODS = {
    "l1_logistic": "ℓ1 logistic",
    "l2_logistic": "ℓ2 logistic",
    "dictionary": "dictionary + ℓ2 logistic",
    "task_driven": "task-driven dictionary",
}
RECALLED = {
    "l1_logistic": (71.6, 2.0),
    "l2_logistic": (72.4, 2.8),
    "dictionary": (68.3, 2.3),
    "task_driven": (73.2, 2.1),
}


def _draw_dictionary_learning(run: Run) -> Any:
    figure, ((axis,),) = panels(1, 1, 6.4, 3.6)
    places = np.arange(len(METHODS), dtype=float)
    found = summary_of(run)["test_auc"]
    table = run.config["study"]["data"].replace("\\", "/").rpartition("/")[2].removesuffix(".npz").removesuffix(".csv")
    for place, method in zip(places, METHODS, strict=True):
        values = 100 * column(rows_where(run, method=method), "test_auc")
        axis.plot(np.full(len(values), place - 0.12), values, ".", color="tab:blue", alpha=0.3, markeredgewidth=0)
    for shift, color, label, pairs in (
        (-0.12, "tab:blue", f"here, {table} (dots: splits)", [_percent(found[method]) for method in METHODS]),
        (0.12, "tab:gray", "paper, TCGA (as recalled; other data)", [RECALLED[method] for method in METHODS]),
    ):
        means, intervals = zip(*pairs, strict=True)
        axis.errorbar(places + shift, means, intervals, fmt="o", capsize=4, color=color, label=label)
    axis.set_xticks(places, [name.replace(" + ", " +\n").replace("-driven ", "-driven\n") for name in METHODS.values()])
    axis.set_xlim(-0.5, len(METHODS) - 0.5)
    axis.set_ylabel("test AUC, %")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _percent(auc: dict[str, float]) -> tuple[float, float]:
    return 100 * auc["mean"], 100 * auc["interval"]


def _numbers_of_dictionary_learning(run: Run) -> dict[str, float]:
    summary = summary_of(run)
    found = {f"test AUC, {name}": summary["test_auc"][method]["mean"] for method, name in METHODS.items()}
    gain = summary["task_driven_over_dictionary"]
    found["task-driven less dictionary, upper end of the interval"] = gain["mean"] + gain["interval"]
    found["share of zero codes, task-driven dictionary"] = summary["zero_codes"]["task_driven"]
    found["solves that failed"] = summary["failures"]
    return found


# Molecular dynamics

WAYS = {
    "implicit": ("implicit", "tab:blue"),
    "unrolled": ("unrolled", "tab:red"),
    "unrolled_constant_steering": ("unrolled, ‖v‖/‖F‖ as a constant", "tab:orange"),
}


def _draw_molecular_dynamics(run: Run) -> Any:
    figure, (axes,) = panels(1, len(WAYS), 3.8, 3.2)
    steps, reference = run.arrays["steps"], run.arrays["reference"][:, None]
    shares = summary_of(run)["share_settled"]
    for axis, (way, (label, color)) in zip(axes, WAYS.items(), strict=True):
        axis.semilogy(steps, (run.arrays["sensitivity"][way] / reference).T, color=color, alpha=0.3, linewidth=0.8)
        axis.set_title(f"{label}: {shares[way][str(steps[-1])]:.0%} settle", fontsize=10)
        axis.set_xlabel("FIRE steps")
        axis.set_ylim(1e-1, 1e4)
    axes[0].set_ylabel("‖∂x/∂θ‖₁ over its last value")
    return figure


def _numbers_of_molecular_dynamics(run: Run) -> dict[str, float]:
    summary = summary_of(run)
    found = {}
    for way, (label, _) in WAYS.items():
        for steps, share in summary["share_settled"][way].items():
            found[f"share settled by step {steps}, {label}"] = share
    early = str(run.config["study"]["steps"] // 4)
    by_way = {way: shares[early] for way, shares in summary["share_settled"].items()}
    found["share settled early, implicit less unrolled"] = by_way["implicit"] - by_way["unrolled"]
    found["largest force at the last step"] = float(column(run.metrics, "force").max())
    return found


BY_STUDY = {
    "JacobianPrecision": ("jacobian_precision", Figure(_draw_jacobian_precision, _numbers_of_jacobian_precision)),
    "SVMRuntime": ("svm_runtime", Figure(_draw_svm_runtime, _numbers_of_svm_runtime)),
    "DistilledAccuracy": ("distillation", Figure(_draw_distillation, _numbers_of_distillation)),
    "DictionaryLearning": ("dictionary_learning", Figure(_draw_dictionary_learning, _numbers_of_dictionary_learning)),
    "Sensitivities": ("molecular_dynamics", Figure(_draw_molecular_dynamics, _numbers_of_molecular_dynamics)),
}
