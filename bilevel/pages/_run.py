"""The page of one run."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.pages import _charts
from bilevel.pages._html import Html, element, facts, folded, image, section, shown, table
from bilevel.pages._html import page as whole_page
from bilevel.runs import Run, console, load, read_status

_ENDED = {
    "completed": "all steps are done",
    "converged": "the norm of the hypergradient reached gtol",
    "patience": "the outer loss did not improve for the number of steps that patience allows",
    "time_limit": "time_limit was reached",
    "interrupted": "interrupted; can be resumed",
    "non_finite": "the outer loss or its gradient was no longer finite",
}
_COUNTS = {"grad_evals": "gradient evaluations", "hvps": "Hessian-vector products"}
_LAST_ROWS = 10
_MOST_VALUES = 5000  # of an array that is drawn


def page(folder: Path) -> str:
    """The page of a run folder."""
    run, status = load(folder), read_status(folder)
    state = status.get("state", "done" if run.result else "running")
    error = status.get("error")
    log = folder / "log.txt"
    return whole_page(
        f"{_name(run)} · {folder.name}",
        str(folder),
        state,
        element("p", error, class_="error") if error else "",
        section("Result", facts(_outcome(run))),
        section("Progress", _progress(run)),
        section("Hyperparameters", *_hyperparameters(run)),
        section("Pictures", *(image(path.read_bytes(), path.stem) for path in sorted(folder.glob("*.png")))),
        section("Solves and cost", facts(_cost(run))),
        section("Summary", facts((run.result or {}).get("summary", {}).items())),
        folded("Last rows", _last_rows(run)),
        folded("Configuration", element("pre", (folder / "config.yaml").read_text(encoding="utf-8"))),
        folded("Versions", facts(_versions(run))),
        folded("Log", element("pre", log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "")),
    )


def _name(run: Run) -> str:
    result = run.result or {}
    target = (run.config.get("study") or run.config.get("task") or {}).get("_target_", "run")
    return result.get("task") or target.rpartition(".")[2]


def _outcome(run: Run) -> list[tuple[str, Any]]:
    result, rows = run.result or {}, run.metrics
    found: list[tuple[str, Any]] = []
    if rows and "outer_loss" in rows[-1]:
        found += [("first outer loss", rows[0]["outer_loss"]), ("last outer loss", rows[-1]["outer_loss"])]
    if "outer_loss" in result:
        found.append(("best outer loss", f"{shown(result['outer_loss'])} at step {result['best_step']}"))
        found.append(("reason for the end", _ENDED.get(result["status"], result["status"])))
    found += result.get("metrics", {}).items()
    return found + [(name.replace("_", " "), result[name]) for name in ("error_bound", "verdict") if name in result]


def _progress(run: Run) -> Html | str:
    if not run.metrics or "outer_loss" not in run.metrics[0]:
        return ""
    chart = _charts.progress(run.metrics, (run.result or {}).get("best_step"))
    return image(chart, "outer loss, gradient norm and residuals against outer steps")


def _hyperparameters(run: Run) -> list[Any]:
    result = run.result or {}
    before, after = result.get("start", {}), result.get("hparams", {})
    if not after:
        return []
    rows = [(name, _brief(before.get(name)), _brief(value)) for name, value in after.items()]
    arrays = {name: np.asarray(value, float) for name, value in after.items() if isinstance(value, list)}
    return [table(("", "before", "after"), rows)] + [
        image(_charts.hyperparameter(name, np.asarray(before.get(name, []), float), value), name)
        for name, value in arrays.items()
        if 1 < value.size <= _MOST_VALUES
    ]


def _brief(value: Any) -> Any:
    return console.brief(value) if isinstance(value, list) else value


def _cost(run: Run) -> list[tuple[str, Any]]:
    rows = run.metrics
    if not rows or "outer_error" not in rows[0]:
        return []
    statuses = Counter(row["status"] for row in rows)
    verdicts = Counter(row["verdict"] for row in rows if "verdict" in row)
    residuals = [name for name in rows[-1] if name.endswith("_residual")]
    return [
        ("outer steps", len(rows)),
        ("solves", ", ".join(f"{count} {name}" for name, count in statuses.most_common())),
        ("hypergradients", ", ".join(f"{count} {name}" for name, count in verdicts.most_common())),
        *((f"last {name.replace('_', ' ')}", rows[-1][name]) for name in residuals),
        ("estimated error of the last outer loss", rows[-1]["outer_error"]),
        *((words, sum(row[name] for row in rows)) for name, words in _COUNTS.items() if name in rows[-1]),
        ("seconds", rows[-1]["seconds"]),
    ]


def _last_rows(run: Run) -> Html:
    rows = run.metrics[-_LAST_ROWS:]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return table(columns, [[row.get(name) for name in columns] for row in rows])


def _versions(run: Run) -> list[tuple[str, Any]]:
    result = run.result or {}
    return [*result.get("versions", {}).items(), ("device", result.get("device")), ("seed", run.config.get("seed"))]
