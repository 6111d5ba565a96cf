"""Every condition of `bilevel.optimality` against independent oracles; the table of the errors is `docs/catalog.md`."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from catalog import ENTRIES
from catalog.core import CLOSED, DIFFERENCES, NONSYMMETRIC_CONES

from bilevel import optimality

pytestmark = pytest.mark.slice(16)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "catalog.md"
RECORDS = "BILEVEL_CATALOG"  # a folder for what is measured, set by scripts/catalog.py


class Row(NamedTuple):
    condition: str
    problem: str
    oracle: str
    mode: str
    bound: str
    error: str


def decimal(bound):
    return f"{bound:.8f}".rstrip("0")


def in_words(error, bound):
    """In e-notation; as a decimal where it is above the bound of all but the loosest rows."""
    return f"{error:.7f}" if bound > DIFFERENCES and error > DIFFERENCES else f"{error:.1e}"


def expected_rows():
    bounds = {(entry.name, check.oracle): check.bound for entry in ENTRIES for check in entry.checks}
    return [
        (entry.condition.__name__, entry.problem, oracle, mode, decimal(bounds[entry.name, oracle]))
        for entry in ENTRIES
        for oracle, mode in entry.rows
    ]


@pytest.fixture(scope="module")
def page():
    lines = PAGE.read_text().partition("## Errors")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [Row(*row) for row in cells[1:]]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.usefixtures("x64")
def test_derivatives_agree_with_independent_oracles(entry):
    measured = list(entry.compute())
    record(entry, measured)
    missed = [
        f"{oracle}, {mode}: {error:.1e} > {bound}" for oracle, mode, bound, error in measured if not error <= bound
    ]
    assert not missed
    assert sorted((oracle, mode) for oracle, mode, _, _ in measured) == sorted(entry.rows)


def record(entry, measured):
    folder = os.environ.get(RECORDS)
    if folder is None:
        return
    rows = [
        Row(entry.condition.__name__, entry.problem, oracle, mode, decimal(bound), in_words(error, bound))
        for oracle, mode, bound, error in measured
    ]
    Path(folder, f"{ENTRIES.index(entry):03}.json").write_text(json.dumps(rows))


def test_entries_have_names_of_their_own():
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)


def test_every_condition_is_in_the_catalog():
    exported = {getattr(optimality, name) for name in optimality.__all__}
    conditions = {x for x in exported if isinstance(x, type) and issubclass(x, optimality.Condition)}
    assert {entry.condition for entry in ENTRIES} == conditions - {optimality.Condition}


def test_bounds_are_those_of_the_oracles():
    for entry in ENTRIES:
        curved = entry.condition is optimality.Conic and re.search("semidefinite|exponential|all cones", entry.problem)
        for check in entry.checks:
            differences = check.oracle.startswith("differences") or check.oracle == "diffcp"
            assert check.bound == (NONSYMMETRIC_CONES if curved else DIFFERENCES if differences else CLOSED), entry.name


def test_every_condition_is_checked_forwards_and_in_reverse_and_constraints_by_two_oracles():
    for condition in {entry.condition for entry in ENTRIES}:
        entries = [entry for entry in ENTRIES if entry.condition is condition]
        assert {"jvp, jit", "vjp, jit"} <= {mode for entry in entries for mode in entry.modes}, condition
        if condition in (optimality.KKT, optimality.QuadraticProgram, optimality.Conic):
            assert all(len(entry.checks) >= 2 for entry in entries), condition


def test_the_page_has_the_rows_of_the_entries(page):
    found = [tuple(row[:5]) for row in page]
    assert found == expected_rows(), "docs/catalog.md is stale: run python scripts/catalog.py"


def test_the_errors_of_the_page_are_within_their_bounds(page):
    for row in page:
        assert float(row.error) <= float(row.bound), row


def test_the_page_writes_nothing_but_errors_in_e_notation(page):
    found = re.findall(r"\d+(?:\.\d+)?[eE][+-]?\d+", PAGE.read_text())
    errors = [row.error for row in page if "e" in row.error]
    assert found == errors
    assert all(re.fullmatch(r"\d\.\de[+-]\d\d", error) and float(error) <= DIFFERENCES for error in errors)
