"""The page of a sweep."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bilevel.pages import _charts
from bilevel.pages._html import Html, beside, element, facts, folded, group, image, section, table
from bilevel.pages._html import page as whole_page
from bilevel.runs import load, read_rows, sweeps

_CURVES = 60  # at most so many


def page(folder: Path) -> str:
    """The page of a sweep's folder."""
    lines = sweeps.read(folder)
    if not lines:
        raise FileNotFoundError(f"{folder}: the sweep has no job yet")
    keys = sweeps.swept(lines)
    states = Counter(line.state for line in lines)
    best = sweeps.best(lines)
    about = [("jobs", ", ".join(f"{count} {state}" for state, count in states.items()))]
    if best is not None:
        about += [
            ("best", best.name(keys)),
            ("its outer loss", best.found["outer_loss"]),
            ("its folder", str(best.folder)),
        ]
    return whole_page(
        f"sweep {folder.name}",
        str(folder),
        "done" if set(states) == {"done"} else "incomplete",
        section("Result", facts(about)),
        section("Jobs", _table(lines, keys)),
        section("Curves", _curves(lines, keys)),
        section("Response", beside(*_responses(lines, keys))),
        folded("Configuration of the best", element("pre", _config(best))) if best else "",
    )


def _table(lines: list[sweeps.Line], keys: list[str]) -> Html:
    found = list(dict.fromkeys(name for line in lines for name in line.found))
    errors = ["error"] if any(line.error for line in lines) else []
    rows = [
        [line.folder.name, line.state, *(_plain(line.given.get(key, "")) for key in keys)]
        + [line.found.get(name) for name in found]
        + ([line.error] if errors else [])
        for line in lines
    ]
    return table(["folder", "state", *keys, *found, *errors], rows)


def _plain(text: str) -> str | float:
    number = sweeps.number(text)
    return text if number in (float("inf"), -float("inf")) or number != number else number


def _curves(lines: list[sweeps.Line], keys: list[str]) -> Html | str:
    runs = {line.name(keys): read_rows(line.folder / "metrics.jsonl") for line in lines if line.state == "done"}
    drawn = {name: rows for name, rows in runs.items() if rows and "outer_loss" in rows[0]}
    if not drawn:
        return ""
    shown = dict(list(drawn.items())[:_CURVES])
    told = f"The first {_CURVES} of {len(drawn)} runs." if len(drawn) > _CURVES else ""
    return group(image("svg+xml", _charts.curves(shown), "outer loss of each run"), told)


def _responses(lines: list[sweeps.Line], keys: list[str]) -> list[Html]:
    done = [line for line in lines if isinstance(line.found.get("outer_loss"), int | float)]
    losses = [line.found["outer_loss"] for line in done]
    return [
        image(
            "svg+xml",
            _charts.response(key, [line.given.get(key, "") for line in done], losses, sweeps.number),
            f"outer loss against {key}",
        )
        for key in keys
        if done
    ]


def _config(best: sweeps.Line) -> str:
    return (load(best.folder).folder / "config.yaml").read_text(encoding="utf-8")
