"""What a sweep found, told at its end: its table, the best job, the failed ones."""

from __future__ import annotations

from pathlib import Path

from bilevel import _explain
from bilevel.runs import console, sweeps, write_text

_NAMED = 8  # jobs that are named on the console; all are in the table


def sum_up(folder: Path) -> int:
    """Write `sweep.csv` and the best configuration, `best.yaml`; print the outcome, and return the exit code."""
    lines = sweeps.read(folder)
    keys = sweeps.swept(lines)
    sweeps.write_table(folder, lines)
    states = {state: sum(line.state == state for line in lines) for state in ("done", "failed", "interrupted")}
    missing = [line for line in lines if line.state != "done"]
    told = [", ".join(f"{number} {state}" for state, number in states.items() if number)]
    told += [f"  {line.state}: {line.name(keys)}: {line.error}" for line in missing[:_NAMED]]
    if len(missing) > _NAMED:
        told.append(f"  and {len(missing) - _NAMED} more")
    best = sweeps.best(lines)
    if best is not None:
        write_text(folder / "best.yaml", (best.folder / "config.yaml").read_text(encoding="utf-8"))
        told.append(f"best: {best.name(keys)}: outer loss {best.found['outer_loss']:.6g}, in {best.folder}")
    told.append(f"table: {folder / sweeps.TABLE}; to look at it: python -m bilevel.report {folder}")
    if missing:
        told.append("the same command again does what is missing")
    for line in told:
        console.console.print(line, markup=False)
    if states["interrupted"]:
        return _explain.INTERRUPTED
    return _explain.FAILED if missing else _explain.DONE
