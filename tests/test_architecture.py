"""Who may import whom, what importing the package loads, and a few rules that hold for every file."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import bilevel

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "bilevel").rglob("*.py"))
ROOMS = sorted(path.parent.name for path in (ROOT / "bilevel").glob("*/__init__.py"))

BASE = {"_tree", "_status"}
OPERATORS = BASE | {"operators"}
GROUND = OPERATORS | {"statements", "problem", "_checks", "_needs", "_curvature", "_compiled"}
LINEAR = GROUND | {"linear"}
MIDDLE = LINEAR | {"optimality", "implicit", "inner"}
HYPERGRAD = MIDDLE | {"hypergrad"}
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    "operators": BASE,
    "_checks": set(),
    "_compiled": set(),
    "statements": OPERATORS | {"_checks"},
    "problem": OPERATORS | {"statements", "_checks"},
    "_needs": {"statements"},
    "_curvature": BASE | {"problem"},
    "linear": GROUND,
    "optimality": LINEAR,
    "implicit": LINEAR,
    "inner": LINEAR | {"optimality"},
    "hypergrad": MIDDLE,
    "diagnostics": HYPERGRAD,
    "outer": HYPERGRAD,
    "datasets": set(),
    "tasks": GROUND | {"optimality", "implicit", "inner", "datasets"},  # solvers for metrics alone
    "study": {"_checks"},
    "runs": BASE,
    "pages": BASE | {"runs"},
    "_schema": set(),
    "config": {"_schema"},
    "_explain": {"config"},
    "cli": {"config", "_explain", "_schema", "outer", "tasks", "study", "runs", "__init__"},
    "run": {"config", "_explain", "cli"},
    "track": {"config", "_explain", "cli", "runs"},
    "report": {"_explain", "pages", "runs"},
    "dashboard": {"_explain", "runs"},
    "__init__": HYPERGRAD | {"diagnostics", "outer", "runs"},
}
FOR_EXPERIMENTS = HYPERGRAD | {"outer", "datasets", "tasks", "study", "runs", "__init__"}
OF_CONFIGURATION = ("job", "resume", "sweep", "_task", "_jax")
HOME = {
    "hydra": ("run.py", "config.py", "cli/resume.py", "cli/sweep.py"),
    "omegaconf": ("run.py", "config.py", *(f"cli/{name}.py" for name in OF_CONFIGURATION)),
    "wandb": ("runs/trackers.py",),
    "jaxopt": (),
    "experiments": (),
}
NEVER_AT_MODULE_LEVEL = {"matplotlib", "sklearn"}


class Import(NamedTuple):
    name: str
    line: int
    deferred: bool  # inside a function
    typing_only: bool


def imports(source, package):
    """Every import of a file of `package`, with `from a import b` as a.b."""
    found = []

    def visit(node, deferred, typing_only):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, deferred, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.extend(Import(f"{module}.{alias.name}", node.lineno, deferred, typing_only) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, deferred, True)
            for child in node.orelse:
                visit(child, deferred, typing_only)
        else:
            inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                visit(child, inside, typing_only)

    visit(ast.parse(source), False, False)
    return found


def room_of(relative):
    return relative.split("/")[0].removesuffix(".py")


def imported_room(name):
    """The room of a dotted name in the package; None for other packages."""
    parts = name.split(".")
    if parts[0] != "bilevel":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in (*MAY_IMPORT, *ROOMS) else "__init__"


def violations(relative, source):
    """What a file, by its path inside the package, imports against the rules."""
    room = room_of(relative)
    package = ".".join(["bilevel", *Path(relative).parent.parts])
    plugin = "hydra_plugins" in Path(relative).parts
    found = []
    for item in imports(source, package):
        top, other = item.name.split(".")[0], imported_room(item.name)
        levels_broken = other is not None and other != room and other not in MAY_IMPORT.get(room, set())
        foreign = top in HOME and relative not in HOME[top] and not (plugin and top in ("hydra", "omegaconf"))
        eager = top in NEVER_AT_MODULE_LEVEL and not item.deferred and not item.typing_only
        if (levels_broken and not item.typing_only and not plugin) or foreign or eager:
            found.append(f"{relative}:{item.line} imports {item.name}")
    return found


def relative(path):
    return path.relative_to(ROOT / "bilevel").as_posix()


def test_imports_follow_the_levels():
    assert [found for path in FILES for found in violations(relative(path), path.read_text(encoding="utf-8"))] == []


def test_every_file_has_a_rule():
    rooms = {room_of(relative(path)) for path in FILES} - {"hydra_plugins"}
    assert rooms <= set(MAY_IMPORT)
    assert {"problem", "inner", "outer", "tasks", "runs"} <= rooms


WRONG = (
    ("_tree.py", "from bilevel import linear"),
    ("problem.py", "import bilevel.optimality"),
    ("operators/prox.py", "from bilevel.linear import CG"),
    ("linear/_cg.py", "from bilevel.inner._base import InnerSolver"),
    ("linear/_cg.py", "from ..inner import InnerSolver"),
    ("linear/_cg.py", "from .. import inner"),
    ("linear/_cg.py", "def f():\n    from bilevel import hypergrad"),
    ("linear/_cg.py", "from bilevel import minimize"),
    ("inner/first_order/_fista.py", "from bilevel import implicit"),
    ("optimality/_base.py", "from bilevel import inner"),
    ("operators/prox.py", "from bilevel.problem import Problem"),
    ("hypergrad/_implicit.py", "class A:\n    from bilevel import outer"),
    ("outer/_loop.py", "from bilevel.runs import console"),
    ("runs/console.py", "from bilevel.outer import Result"),
    ("tasks/svm.py", "from bilevel import hypergrad"),
    ("tasks/svm.py", "from bilevel.linear import CG"),
    ("datasets/_splits.py", "from bilevel import _tree"),
    ("outer/_loop.py", "from bilevel import config"),
    ("runs/console.py", "import omegaconf"),
    ("tasks/svm.py", "def f():\n    from hydra.utils import instantiate"),
    ("runs/_folder.py", "def f():\n    import wandb"),
    ("datasets/_sources.py", "from sklearn import datasets"),
    ("datasets/_sources.py", "try:\n    import sklearn\nexcept ImportError:\n    pass"),
    ("runs/console.py", "import matplotlib.pyplot as plt"),
    ("linear/_cg.py", "def f():\n    import jaxopt"),
    ("linear/_cg.py", "if TYPE_CHECKING:\n    import jaxopt"),
    ("cli/_study.py", "def f():\n    from experiments import steps"),
)
RIGHT = (
    ("inner/second_order/_newton.py", "from bilevel import linear"),
    ("linear/_cg.py", "from bilevel.linear._base import Attempt\nfrom . import _base"),
    ("problem.py", "from bilevel.statements import Parts"),
    ("datasets/_sources.py", "def f():\n    from sklearn import datasets"),
    ("runs/trackers.py", "def f():\n    import wandb"),
    ("run.py", "import hydra"),
    ("hydra_plugins/own_sweeper.py", "import hydra\nfrom omegaconf import DictConfig"),
)


def test_a_wrong_import_is_caught_and_a_right_one_passes():
    assert [(path, source) for path, source in WRONG if len(violations(path, source)) != 1] == []
    assert [(path, source) for path, source in RIGHT if violations(path, source)] == []


def circle(sources, ignored=frozenset()):
    """The modules of a circle of imports, by the sources of the files; empty where there is none.

    Imports inside functions and for type checkers alone count. To import a module is not to import the packages around it.
    """
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    graph = {}
    for module, path in modules.items():
        graph[module] = set()
        package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
        for item in imports(sources[path], package):
            parts = item.name.split(".")
            prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
            imported = next((name for name in prefixes if name in modules), module)
            if imported != module and (module, imported) not in ignored:
                graph[module].add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_files_import_each_other_in_a_circle():
    sources = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
    assert circle(sources) == []


def test_a_circle_is_caught():
    sources = {
        "a/__init__.py": "",
        "a/b.py": "def f():\n    from a import c",
        "a/c.py": "if TYPE_CHECKING:\n    import a.b",
    }
    assert set(circle(sources)) == {"a.b", "a.c"}
    assert circle(sources, {("a.b", "a.c")}) == []
    assert circle(sources | {"a/c.py": "from a import d"}) == []


def test_experiments_use_the_library_not_the_command_line():
    for path in (ROOT / "experiments").rglob("*.py"):
        rooms = {imported_room(item.name) for item in imports(path.read_text(encoding="utf-8"), "")}
        assert rooms <= FOR_EXPERIMENTS | {None}, path


TOOLS = {"hydra", "omegaconf", "wandb", "matplotlib", "sklearn"}


@pytest.mark.parametrize(
    ("code", "needed", "unneeded"),
    [
        ("import bilevel", "bilevel", {"jax", "jaxlib", "numpy", "optax", *TOOLS}),
        ("import bilevel; bilevel.custom_root", "jax", TOOLS),
        ("import bilevel.run", "hydra", {"jax", "jaxlib", "optax", *TOOLS} - {"hydra", "omegaconf"}),
    ],
)
def test_imports_load_what_they_need(code, needed, unneeded):
    script = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert needed in loaded
    assert unneeded & loaded == set()


def test_every_public_name_resolves():
    assert [name for name in bilevel.__all__ if getattr(bilevel, name) is None] == []
    assert len(set(bilevel.__all__)) == len(bilevel.__all__)
    assert set(bilevel.__all__) <= set(dir(bilevel))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        bilevel.no_such_name  # noqa: B018


def test_type_checkers_see_what_is_loaded_lazily():
    """The names under TYPE_CHECKING are those of `__all__`, at the same homes."""
    seen = [item.name for item in imports((ROOT / "bilevel/__init__.py").read_text(), "bilevel") if item.typing_only]
    assert sorted(name.rpartition(".")[2] for name in seen) == sorted(bilevel.__all__)
    for dotted in seen:
        module, _, name = dotted.rpartition(".")
        home = importlib.import_module(module)
        assert getattr(home, name, None) is getattr(bilevel, name)


@pytest.mark.parametrize("room", ["implicit", "inner", "linear", "hypergrad", "optimality", "outer"])
def test_every_public_name_has_an_example_and_explains_its_tolerances(room):
    module = importlib.import_module(f"bilevel.{room}")
    public = {name: getattr(module, name) for name in module.__all__}
    assert [name for name, value in public.items() if ">>>" not in (value.__doc__ or "")] == []
    for name, value in public.items():
        settings = {"rtol", "atol", "max_steps"} & set(getattr(value, "__dataclass_fields__", ()))
        assert [setting for setting in settings if setting not in value.__doc__] == [], name


ONE_NAME = {"Ridge"}  # a task, and the solver of its inner problem


def test_no_two_public_classes_share_a_name():
    """Public: exported by a room, or in a file and folders without an underscore."""
    homes = {}
    for path in FILES:
        room = (
            importlib.import_module(f"bilevel.{room_of(relative(path))}") if room_of(relative(path)) in ROOMS else None
        )
        exported = getattr(room, "__all__", ())
        private = any(part.startswith("_") for part in Path(relative(path)).parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and (node.name in exported if private else node.name[0] != "_"):
                homes.setdefault(node.name, set()).add(relative(path))
    assert {name for name, places in homes.items() if len(places) > 1} == ONE_NAME


def test_no_file_is_longer_than_400_lines():
    assert [relative(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []


def mentions(text, folder):
    """Whether a text holds an absolute path into a folder, and not merely another path that ends alike."""
    return re.search(rf"((?<![\w./~-])|(?<=file://)){re.escape(str(folder))}/", text) is not None


def test_no_tracked_file_holds_a_path_of_this_machine():
    folder = ROOT.parent if ROOT.parent != Path(ROOT.anchor) else ROOT
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name]
    assert "pyproject.toml" in names
    found = []
    for name in names:
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
        if mentions(text, folder):
            found.append(name)
    assert found == []


def test_a_path_of_this_machine_would_be_found():
    assert mentions(f"see '{ROOT.parent}/main'", ROOT.parent)
    assert mentions(f"file://{ROOT}/x", ROOT)
    assert not mentions(f"https://example.org{ROOT}/x", ROOT)
