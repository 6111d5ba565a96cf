"""Every command of `docs/running.md`, a section at a time, each in a folder of its own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, going_on, module_here, result, status, wait_for_tracker

from bilevel.runs import sweeps

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
_, *PARTS = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)
SECTIONS = dict(zip(PARTS[::2], PARTS[1::2], strict=True))
COMMANDS = {
    name: [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines() if line]
    for name, text in SECTIONS.items()
}
FEWER = {  # the ready sweeps, of which `test_sweep.py` runs the whole
    "sweep=learning_rates": "optimizer=adam optimizer.learning_rate=0.1 seed=0 steps=3",
    "sweep=black_box": "hydra.sweeper.n_trials=1 hydra/launcher=basic",
}
# What needs no process of its own; one with a launcher or a tracker starts others.
PLAIN = re.compile(r"python -m bilevel\.(run|report) (?!.*(?:launcher|tracker|black_box))(.*)")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def shell(line: str, cwd: Path, PATH: str = PATH, **more: str) -> str:
    """A line of the page, with the variables that lines before it exported."""
    if plain := PLAIN.fullmatch(line):
        done = module_here(plain[1], *shlex.split(plain[2]), cwd=cwd)
    else:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=cwd,
            env=environment(PATH=PATH, HOME=str(cwd), WANDB_MODE="offline", **more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_all(section, cwd):
    """What each command of a section printed."""
    exported, printed = {}, []
    for line in COMMANDS[section]:
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            exported[name] = value
        else:
            fewer = next((more for sweep, more in FEWER.items() if sweep in line), "")
            printed.append(shell(f"{line} {fewer}", cwd, **exported))
    return printed


def test_the_page_has_these_sections_and_commands():
    assert {name: len(lines) for name, lines in COMMANDS.items()} == {
        "Run": 5,
        "Stop and resume": 4,
        "Watch": 5,
        "Sweep": 6,
        "Scale": 4,
    }
    assert PAGE.count("```bash") == 8
    for picture in re.findall(r"\]\((\w+\.png)\)", PAGE):
        assert (ROOT / "docs" / picture).is_file()


def test_run(tmp_path):
    _, page, shown, listed, _ = run_all("Run", tmp_path)
    assert page == "runs/first/report.html\n"
    assert "projected_gradient" in shown
    assert "fista" in listed
    assert "hydra_bash_completion" in (tmp_path / "completion.sh").read_text()
    assert {path.name for path in (tmp_path / "runs" / "first").iterdir()} >= {
        "status.json",
        "report.html",
        "checkpoints",
    }
    query = "COMP_LINE='bilevel task=ri' COMP_POINT=15 bilevel -sc query=bash"
    assert shell(query, tmp_path).split() == ["task=ridge"]


@pytest.mark.slow  # as `test_resume.py`
def test_stop_and_resume(tmp_path):
    _, again, more, auto = run_all("Stop and resume", tmp_path)
    assert "already finished" in again
    assert "resuming after step 40" in more
    assert "60 steps" in auto
    assert result(tmp_path / "runs" / "second")["steps"] == 50


@pytest.mark.slow  # what each command does is tested in `test_trackers.py` and `test_report.py`
def test_watch(tmp_path):
    tracked, *lines, dashboard = COMMANDS["Watch"]
    shell(tracked, tmp_path)
    wait_for_tracker(tmp_path / "runs" / "third", "wandb", 20)  # which may go on after the command
    printed = [shell(line, tmp_path) for line in lines]
    assert "outer_loss" in printed[-1]
    assert dashboard.startswith("python -m bilevel.dashboard")
    with going_on(["bash", "-c", f"exec {dashboard}"], cwd=tmp_path, until="2 runs of", PATH=PATH):
        pass


@pytest.mark.slow  # the launchers of `test_sweep.py` have a slice in the default run
def test_sweep(tmp_path):
    first, again, _, rates, trials, random = run_all("Sweep", tmp_path)
    assert "2 done" in first
    assert "2 done" in again
    assert "1 done" in rates
    assert "1 done" in trials
    assert "1 done" in random
    assert (tmp_path / "runs" / "sweeps" / "mine" / "report.html").is_file()


@pytest.mark.slow
def test_ray(tmp_path):
    run_all("Scale", tmp_path)
    (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert [line.state for line in sweeps.read(folder)] == ["done", "done"]


@pytest.mark.slow
def test_slurm(tmp_path):
    """With stand-ins for SLURM's commands that run the array here."""
    (line,) = re.findall(r"```bash slurm\n(.*)\n```", PAGE)
    shell(line, tmp_path, PATH=os.pathsep.join([str(ROOT / "tests" / "slurm"), PATH]))
    asked = (tmp_path / "sbatch.txt").read_text()
    for option in ("--partition=gpu", "--gpus-per-node=1", "--time=240", "--cpus-per-task=4", "--mem=16GB"):
        assert f"#SBATCH {option}\n" in asked
    assert "#SBATCH --array=0-1%" in asked
    folders = [path.parent for path in tmp_path.glob("runs/sweeps/*/*/status.json")]
    assert [status(folder)["state"] for folder in folders] == ["done", "done"]
