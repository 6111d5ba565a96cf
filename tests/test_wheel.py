"""The wheel: it holds the package and its configuration, and runs without the checkout."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def call(*command, cwd, code=0, **environment):
    """Its standard output, or its standard error where it is to fail."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HYDRA_FULL_ERROR")}
    done = subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def source_files():
    """Files that git tracks, or would: no build artifacts."""
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for name in source_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    out = source / "dist"
    call(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(out), str(source), cwd=out.parent)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), str(wheel), cwd=folder)
    return folder


def test_the_wheel_holds_the_package_and_the_configuration(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name: archive.read(name) for name in archive.namelist()}
    tracked = source_files()
    package = {name for name in tracked if name.startswith(("bilevel/", "hydra_plugins/"))}
    configs = {f"bilevel/{name}" for name in tracked if name.startswith("configs/")}
    assert "bilevel/py.typed" in package
    assert "bilevel/configs/config.yaml" in configs
    held = {name for name in names if ".dist-info/" not in name}
    assert held == package | configs
    (license,) = [text for name, text in names.items() if name.endswith("/licenses/LICENSE")]
    assert b"Apache License" in license


def test_the_installed_package_is_its_own(installed, tmp_path):
    code = "import bilevel, bilevel.config as c; print(bilevel.__file__); print(c.config_dir())"
    printed = call(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    package, configs = map(Path, printed.splitlines())
    assert package == installed / "bilevel" / "__init__.py"
    assert configs == installed / "bilevel" / "configs"


def test_the_installed_package_runs_from_another_folder(installed, tmp_path):
    arguments = ("-m", "bilevel.run", "task=ridge", "steps=2", "hydra.run.dir=out")
    printed = call(sys.executable, *arguments, cwd=tmp_path, PYTHONPATH=str(installed))
    assert json.loads((tmp_path / "out" / "result.json").read_text())["steps"] == 2
    assert f"run folder: {tmp_path / 'out'}" in printed.splitlines()


def test_an_experiment_needs_a_checkout(installed, tmp_path):
    hide = f"import sys; sys.path = [path for path in sys.path if path != {str(ROOT)!r}]"
    run = "import runpy; sys.argv[1:] = ['experiment=penalties']; runpy.run_module('bilevel.run', run_name='__main__')"
    told = call(sys.executable, "-c", f"{hide}; {run}", cwd=tmp_path, code=2, PYTHONPATH=str(installed))
    assert "the experiments are in the folder experiments/ of the repository" in told.splitlines()[0]


def test_the_console_script_shows_its_help(installed, tmp_path):
    printed = call(str(installed / "bin" / "bilevel"), "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert re.search(r"^task: .*lasso, logistic", printed, re.MULTILINE)
    assert "steps: 100" in printed
