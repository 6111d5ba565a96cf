"""The README's Python runs as it stands, top to bottom, and says what it should."""

import inspect
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import command

import bilevel as bl

ROOT = Path(__file__).resolve().parents[1]


def blocks(name, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def test_readme_python(capsys):
    namespace = {}
    for block in blocks("README.md"):
        exec(compile(block, "README.md", "exec"), namespace)
    features, y = namespace["features"], namespace["y"]
    gram = features.T @ features + 10.0 * np.eye(10)
    expected = -np.linalg.solve(gram, np.linalg.solve(gram, features.T @ y))
    jacobian = jax.jacobian(namespace["ridge_solver"], argnums=1)(None, 10.0, features, y)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-4)
    printed = capsys.readouterr().out
    assert len(printed.split()) >= 10
    assert "check_optimality: fine" in printed
    assert "check_hypergradient: fine" in printed
    result = namespace["result"]
    assert result.failures == 0
    assert result.outer_loss < result.history[0]["outer_loss"]
    assert int(namespace["state"].step) == 10


def test_jaxopt_page_names_what_exists(capsys):
    page = (ROOT / "docs" / "from-jaxopt.md").read_text(encoding="utf-8")
    for block in blocks("docs/from-jaxopt.md"):
        exec(block, {})
    printed = [float(number) for number in re.findall(r"-?\d\.\d*", capsys.readouterr().out)]
    np.testing.assert_allclose(printed, [1.75, 2, -0.25, -1], rtol=1e-4)
    names = {name for name in re.findall(r"`bl\.([\w.]+)", page) if "…" not in name}
    assert len(names) > 10
    for name in names:
        value = bl
        for part in filter(None, name.split(".")):
            value = getattr(value, part)


def test_jaxopt_page_has_every_public_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jaxopt announces that it is no longer maintained
        import jaxopt
        from jaxopt import linear_solve
    modules = (jaxopt, jaxopt.implicit_diff, jaxopt.isotonic, jaxopt.loss, jaxopt.objective, linear_solve)
    public = {name for module in modules for name, value in vars(module).items() if not inspect.ismodule(value)}
    page = (ROOT / "docs" / "from-jaxopt.md").read_text(encoding="utf-8")
    assert {name for name in public if not name.startswith("_")} - set(re.findall(r"\w+", page)) == set()


def test_the_page_of_inner_solvers_runs_and_names_what_exists(capsys):
    exec(blocks("docs/inner-solvers.md")[0], {})
    assert "converged" in capsys.readouterr().out
    page = (ROOT / "docs" / "inner-solvers.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2:4] for line in page.splitlines() if line.startswith("| ")][1:]
    choices = {choice for row in rows for choice in re.findall(r"`(\w+)`", row[0])}
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    assert choices <= {path.stem for path in (ROOT / "configs" / "inner").glob("*.yaml")}
    assert named <= set(bl.inner.__all__)
    external = {name for name in bl.inner.__all__ if name.startswith(("Sklearn", "SciPy", "CVXPY", "Python"))}
    solvers = {name for name in bl.inner.__all__ if isinstance(getattr(bl.inner, name), type)}
    assert solvers - {"InnerSolver", "InnerSolution", "SolveProgress"} - external <= named


def test_every_path_and_choice_in_the_readme_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:bilevel|configs|experiments|benchmarks|scripts)/[\w/.]*)`", text):
        if "mine" not in path:
            assert (ROOT / path).exists(), path
    commands = "\n".join(line for line in text.splitlines() if "bilevel.run" in line)
    for group, choice in re.findall(r"\b(task|linear|optimizer|tracker)=(\w+)", commands):
        if choice != "mine":
            assert (ROOT / "configs" / group / f"{choice}.yaml").exists(), f"{group}={choice}"


def test_pages_are_finished():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md", ROOT / "experiments/README.md"]
    assert [page.name for page in pages if "PLACEHOLDER" in page.read_text(encoding="utf-8")] == []


def test_the_page_of_new_tasks_builds_its_example(tmp_path):
    """In a copy of the package: its two files, its command, its check."""
    for name in ("bilevel", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    task, check = blocks("docs/new-task.md")
    (settings,) = blocks("docs/new-task.md", "yaml")
    (tmp_path / "bilevel" / "tasks" / "smoothing.py").write_text(task, encoding="utf-8")
    (tmp_path / "configs" / "task" / "smoothing.yaml").write_text(settings, encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path)}
    done = command("task=smoothing", "hydra.run.dir=out", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"]["error_against_truth"] < 0.03
    assert result["hparams"]["penalty"] == pytest.approx(271, rel=0.05)  # as in double precision
    assert "a solve missed its tolerance in" in done.stdout
    assert (tmp_path / "out" / "signal.png").is_file()
    told = command("task=smoothing", "task.nois=1", cwd=tmp_path, **environment)
    assert told.returncode == 2
    assert "did you mean noise" in told.stderr
    checked = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stderr
    assert "fine" in checked.stdout
