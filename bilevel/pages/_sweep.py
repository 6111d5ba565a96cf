"""The page of a sweep."""

import math
from collections import Counter
from pathlib import Path

from bilevel.pages import _charts
from bilevel.pages._html import Html, beside, element, facts, folded, group, image, section, table
from bilevel.pages._html import page as whole_page
from bilevel.runs import read_rows, sweeps
from bilevel.runs.sweeps import SweepJob

_CURVES = 60  # the most curves in one chart


def page(folder: Path) -> str:
    """The page of a sweep's folder."""
    jobs = sweeps.read(folder)
    if not jobs:
        raise FileNotFoundError(f"{folder}: the sweep has no job yet")
    keys = sweeps.swept(jobs)
    states = Counter(job.state for job in jobs)
    best = sweeps.best(jobs)
    result = [("jobs", ", ".join(f"{count} {state}" for state, count in states.items()))]
    if best is not None:
        loss = best.results["outer_loss"]
        result += [("best job", best.name(keys)), ("best outer loss", loss), ("best run folder", str(best.folder))]
    return whole_page(
        f"sweep {folder.name}",
        str(folder),
        "done" if set(states) == {"done"} else "incomplete",
        section("Result", facts(result)),
        section("Jobs", _table(jobs, keys)),
        section("Outer loss by step", _curves(jobs, keys)),
        section("Outer loss by setting", beside(*_responses(jobs, keys))),
        folded("Best configuration", element("pre", (best.folder / "config.yaml").read_text(encoding="utf-8")))
        if best
        else "",
    )


def _table(jobs: list[SweepJob], keys: list[str]) -> Html:
    results = list(dict.fromkeys(name for job in jobs for name in job.results))
    errors = ["error"] if any(job.error for job in jobs) else []
    rows = [
        [job.folder.name, job.state, *(_plain(job.overrides.get(key, "")) for key in keys)]
        + [job.results.get(name) for name in results]
        + [job.error for _ in errors]
        for job in jobs
    ]
    return table(["folder", "state", *keys, *results, *errors], rows)


def _plain(text: str) -> str | float:
    number = sweeps.number(text)
    return number if math.isfinite(number) else text


def _curves(jobs: list[SweepJob], keys: list[str]) -> Html | str:
    runs = {job.name(keys): read_rows(job.folder / "metrics.jsonl") for job in jobs if job.state == "done"}
    drawn = [(name, rows) for name, rows in runs.items() if rows and "outer_loss" in rows[0]]
    if not drawn:
        return ""
    note = f"The first {_CURVES} of {len(drawn)} runs." if len(drawn) > _CURVES else ""
    return group(image(_charts.curves(dict(drawn[:_CURVES])), "outer loss of each run"), note)


def _responses(jobs: list[SweepJob], keys: list[str]) -> list[Html]:
    done = sweeps.with_loss(jobs)
    losses = [job.results["outer_loss"] for job in done]
    values = {key: [job.overrides.get(key, "") for job in done] for key in keys if done}
    return [
        image(_charts.response(key, given, losses, sweeps.number), f"outer loss against {key}")
        for key, given in values.items()
    ]
