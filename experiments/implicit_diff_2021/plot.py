"""Draw the figures from their runs, and compare their numbers with expected.json.

python experiments/implicit_diff_2021/plot.py RUN_FOLDER... [--out FOLDER]

Writes <figure>.png and <figure>.svg (by default into the run's folder). Exit code 1 if a number is not as expected.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import figures

import bilevel as bl

EXPECTED = Path(__file__).with_name("expected.json")


def verdicts(figure: str, size: str, obtained: dict[str, float]) -> list[tuple[bool, str, float, str]]:
    """For each expected number of this figure: whether it holds, its name, the value obtained, and the expectation."""
    wanted = json.loads(EXPECTED.read_text(encoding="utf-8"))[figure]
    rows = []
    for name, rule in {**wanted.get("both", {}), **wanted.get(size, {})}.items():
        if name not in obtained:
            rows.append((False, name, float("nan"), "is not in this run"))
            continue
        value = obtained[name]
        if "value" in rule:
            holds = abs(value - rule["value"]) <= rule["rtol"] * abs(rule["value"])
            text = f"{rule['value']:g} ± {rule['rtol']:.0%}"
        elif "at_least" in rule:
            holds, text = value >= rule["at_least"], f"≥ {rule['at_least']:g}"
        else:
            holds, text = value <= rule["at_most"], f"≤ {rule['at_most']:g}"
        rows.append((holds, name, value, f"{text} ({rule['source']})"))
    return rows


def handle(folder: Path, out: Path) -> bool:
    """Draw one run and compare its numbers; return whether all are as expected."""
    run = bl.load(folder)
    if run.result is None or "study" not in run.result:
        sys.exit(f"{folder} holds no finished study")
    name, figure = figures.BY_STUDY[run.result["study"]]
    drawn = figure.draw(run)
    for kind in ("png", "svg"):
        drawn.savefig(out / f"{name}.{kind}", dpi=110)
    rows = verdicts(name, run.config["size"], figure.numbers(run))
    for holds, what, value, wanted in rows:
        print(f"{'ok   ' if holds else 'WRONG'} {name}: {what}: {value:.4g}, expected {wanted}")
    print(f"drawn: {out / name}.png, .svg")
    return all(holds for holds, *_ in rows)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--out", type=Path, help="folder for the pictures; default: the run's folder")
    options: Any = parser.parse_args(arguments)
    good = [handle(folder, options.out or folder) for folder in options.folders]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
