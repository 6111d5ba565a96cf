"""What the package imports is what it declares, and what it declares is pinned."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from test_architecture import imports

ROOT = Path(__file__).resolve().parent.parent
OWN = {"bilevel", "hydra_plugins"}
AROUND = {"benchmarks", "experiments", "scripts"}
CALLED_BY_OTHERS = {
    *("clarabel", "scs", "osqp"),  # solvers of CVXPY
    *("hydra-joblib-launcher", "hydra-submitit-launcher", "hydra-optuna-sweeper"),  # found by Hydra itself
    "sqlalchemy",  # the storage of Optuna
}


def name_of(requirement: str) -> str:
    """The normalized name of a distribution."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def declared(dev: bool = False) -> set[str]:
    """The dependencies, and all extras; `dev` only where asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [project["dependencies"], *(extras[extra] for extra in extras if dev or extra != "dev")]
    return {name_of(requirement) for requirements in listed for requirement in requirements}


def imported(source: str) -> set[str]:
    """The top-level packages that a file imports anywhere, without the standard library and our own."""
    found = {item.name.split(".")[0] for item in imports(source, "bilevel")}
    return found - OWN - AROUND - sys.stdlib_module_names


def imported_in(folders: set[str]) -> dict[str, set[str]]:
    """The top-level packages that the files of some folders import, with the distributions that hold each."""
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        found |= imported(path.read_text(encoding="utf-8")) - {beside.stem for beside in path.parent.glob("*.py")}
    homes = metadata.packages_distributions()
    return {top: {name_of(home) for home in homes[top]} for top in found}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    used = imported_in(OWN)
    assert {top for top, names in used.items() if not names & declared()} == set()
    assert declared() - set().union(*used.values()) == CALLED_BY_OTHERS


def test_what_the_other_folders_import_is_declared_for_development():
    used = imported_in(AROUND)
    assert "lineax" in used
    assert {top for top, names in used.items() if not names & declared(dev=True)} == set()


def test_what_is_declared_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name_of(line) for line in lines if re.match(r"[\w.-]+==", line)}
    assert declared() - pinned == set()


def test_imports_are_found_wherever_they_are():
    source = (
        "import os, yaml.nodes\ndef f():\n    from scipy import linalg\n    from . import own\n    import bilevel.runs"
    )
    assert imported(source) == {"yaml", "scipy"}
    assert name_of("hydra_core>=1.3; python_version < '4'") == "hydra-core"
