"""The command line: a run from its command to its files, and what is refused."""

import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from commands import OPTIMIZED, command, environment, error_of, files, here, result, rows, status, timeless
from hydra.errors import HydraException
from test_outer import ROW_KEYS

import bilevel
from bilevel import _explain, config
from bilevel.cli import _jax, listing
from bilevel.datasets import DataError

RESULT_KEYS = {
    "task",
    "outer_loss",
    "start",
    "hparams",
    "metrics",
    "status",
    "steps",
    "best_step",
    "failures",
    "verdicts",
    "seconds",
    "versions",
    "device",
    "seed",
}
RIDGE = ("task=ridge", "steps=5", "precision=float64", "hydra.run.dir=out")


@pytest.fixture(scope="module")
def ridge(tmp_path_factory):
    """A finished run in a process of its own: what the command printed, and its folder."""
    cwd = tmp_path_factory.mktemp("ridge")
    done = command(*RIDGE, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done, cwd / "out"


def test_a_run_leaves_exactly_these_files(ridge):
    _, folder = ridge
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "result.json",
        "solution.npz",
        "log.txt",
        "status.json",
        "checkpoints",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_metrics_rows(ridge):
    found = rows(ridge[1])
    assert [sorted(row) for row in found] == [sorted(ROW_KEYS)] * 5
    assert [row["step"] for row in found] == [0, 1, 2, 3, 4]
    assert {row["status"] for row in found} == {"converged"}
    seconds = [row["seconds"] for row in found]
    assert seconds == sorted(seconds)
    assert found[-1]["outer_loss"] < found[0]["outer_loss"]


def test_result(ridge):
    found, history = result(ridge[1]), rows(ridge[1])
    assert set(found) == RESULT_KEYS
    assert (found["task"], found["status"], found["steps"]) == ("ridge", "completed", 5)
    assert found["seed"] == 0
    assert found["outer_loss"] == history[found["best_step"]]["outer_loss"]
    assert found["outer_loss"] == min(row["outer_loss"] for row in history)
    assert found["seconds"] == history[-1]["seconds"]
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["bilevel"] == bilevel.__version__
    assert len(found["hparams"]["penalty"]) == 10


def test_what_is_printed(ridge):
    done, folder = ridge
    assert done.stderr == ""
    title, sizes, parts, device, *rest = done.stdout.splitlines()
    assert title == f"bilevel {bilevel.__version__} · ridge regression on diabetes, one penalty per feature"
    assert "266 training rows" in sizes
    assert "10 features" in sizes
    assert parts.split(" · ")[-1] == "5 steps"
    assert "inner quadratic" in parts
    assert "implicit (auto)" in parts
    assert "cpu" in device
    assert "float64" in device
    assert "seed 0" in device
    assert rest[-2:] == [f"run folder: {folder}", f"report: python -m bilevel.report {folder}"]
    assert not any(mark in done.stdout for mark in ("\x1b", "\r", "━"))


def test_the_log_holds_what_was_printed(ridge):
    done, folder = ridge
    log = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" INFO ")[2] for line in log] == done.stdout.splitlines()


def test_load_gives_back_the_solution(ridge, x64):
    run = bilevel.load(ridge[1])
    assert run.folder == ridge[1]
    assert run.metrics == rows(ridge[1])
    assert run.result == result(ridge[1])
    assert (run.config["steps"], run.config["precision"]) == (5, "float64")
    assert run.config["hypergrad"]["linear"] == run.config["linear"]
    assert isinstance(run.hparams, np.ndarray)
    assert isinstance(run.params, np.ndarray)
    assert (run.hparams.dtype, run.params.dtype) == (np.float64, np.float64)

    from bilevel.tasks import Ridge

    setup = Ridge().setup(0, "float64")
    again = setup.problem.outer_loss(run.params, run.hparams, setup.data)
    assert float(again) == pytest.approx(run.result["outer_loss"], abs=1e-10)
    np.testing.assert_allclose(np.exp(run.hparams), run.result["hparams"]["penalty"], rtol=1e-12)
    assert setup.metrics(run.hparams, run.params) == pytest.approx(run.result["metrics"], rel=1e-10)
    gradient = jax.grad(setup.problem.parts.inner_loss)(run.params, run.hparams, setup.data)
    assert np.linalg.norm(gradient) < 1e-8


def test_the_same_command_gives_the_same_numbers(ridge, tmp_path):
    done = here(*RIDGE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = ridge[1], tmp_path / "out"
    assert [timeless(row) for row in rows(second)] == [timeless(row) for row in rows(first)]
    assert timeless(result(second)) == timeless(result(first))
    assert (second / "config.yaml").read_text() == (first / "config.yaml").read_text()
    a, b = bilevel.load(first), bilevel.load(second)
    np.testing.assert_array_equal(a.hparams, b.hparams)
    np.testing.assert_array_equal(a.params, b.params)


def test_a_support_vector_machine_in_the_default_folder(tmp_path):
    done = here("task=svm", "task.data=iris", "steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / "svm").iterdir()
    found = result(folder)
    assert set(found) == RESULT_KEYS
    assert (found["task"], found["steps"]) == ("svm", 3)
    assert set(found["hparams"]) == {"theta", "C"}
    assert found["hparams"]["theta"] * found["hparams"]["C"] == pytest.approx(1)
    params = bilevel.load(folder).params
    assert params.shape == (90, 3)
    np.testing.assert_allclose(params.sum(1), 1, atol=1e-5)
    assert f"run folder: {folder}" in done.stdout
    assert "inner fista" in done.stdout


def test_a_folder_that_holds_another_run_is_refused(ridge):
    _, folder = ridge
    before = files(folder)
    message = error_of(here(*RIDGE, "seed=1", "task.validation=0.3", cwd=folder.parent))
    assert f"{folder} already holds a run of another configuration (seed is 0 there and 1 here" in message
    assert files(folder) == before


def test_the_same_run_in_its_folder_is_left_as_it_is(ridge):
    _, folder = ridge
    before = files(folder)
    done = here(*RIDGE, cwd=folder.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("already finished with outer loss 0.453")
    assert files(folder) == before


def test_typos_help_and_lists_are_answered_without_jax(tmp_path):
    """All in one process."""
    code = """
import sys
from bilevel.run import main

for arguments in (["inner.rtol=abc"], ["--help"], ["--list", "tasks"]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as ended:
        print("ended with", ended.code)
print([name for name in sys.modules if "jax" in name])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("ended with")] == ["ended with 2", "ended with 0", "ended with 0"]
    assert lines[-1] == "[]"
    assert done.stderr.startswith("error: inner.rtol: ")
    assert "jax" not in done.stderr
    assert "steps: 100" in lines
    assert "ridge                 Ridge regression" in done.stdout


def test_help_lists_the_groups(tmp_path):
    done = here("--help", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for group, choices in config.groups().items():
        for choice in choices:
            folder, _, name = f"{group}/{choice}".rpartition("/")
            shown = next(line for line in lines if line.startswith(f"{folder}: "))
            assert name in shown.partition(": ")[2].split(", ")
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_is_shown_on_demand(tmp_path):
    with pytest.raises(HydraException, match="stps"):
        here("stps=3", cwd=tmp_path, HYDRA_FULL_ERROR="1")


def test_a_refused_run_removes_no_folder_that_was_there(tmp_path):
    out = tmp_path / "mine" / "empty"
    out.mkdir(parents=True)
    assert "steps" in error_of(here("steps=0", f"hydra.run.dir={out}", cwd=out.parent))
    assert out.is_dir()
    runs = tmp_path / "runs"
    runs.mkdir()
    assert "steps" in error_of(here("steps=0", cwd=runs))
    assert list(runs.iterdir()) == []


def test_a_solve_that_fails_ends_a_strict_run(tmp_path):
    overrides = ("task=svm", "task.data=iris", "inner.max_steps=1", "steps=2", "on_failure=raise")
    done = here(*overrides, "hydra.run.dir=out", cwd=tmp_path)
    message = error_of(done, code=1)
    assert "outer step 0: the inner solve did not converge" in message
    assert "raise max_steps" in message
    assert status(tmp_path / "out")["state"] == "failed"
    assert status(tmp_path / "out")["error"] in message
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "log.txt",
        "status.json",
    }
    assert "multiclass SVM on iris" in (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    run = bilevel.load(tmp_path / "out")
    assert (run.result, run.hparams, run.params) == (None, None, None)
    assert [row["status"] for row in run.metrics] == ["inner max_steps"]


def test_explain_other_errors():
    for error, *told in (
        (config.ConfigError("steps: wrong"), "steps: wrong", 2),
        (FileExistsError("out already holds a run"), "out already holds a run", 2),
        (DataError("table.npz: no such file"), "table.npz: no such file", 2),
        (DataError("\n  first line\nsecond line"), "first line", 2),
        (DataError(), "DataError", 2),
        (TypeError("a bug"), "TypeError: a bug", 1),
        (OSError("disk full"), "disk full", 3),
        (RuntimeError("first\nsecond"), "RuntimeError: first", 1),
        (bilevel.outer.SolveError("outer step 0"), "SolveError: outer step 0", 1),
    ):
        assert list(_explain.explain(error, ["stps=3"])) == told


def test_explain_overrides():
    for arguments, *words in (
        (["task=svm", "task.fetures=3"], "task.fetures: ", "did you mean features?"),
        (["task=ridge", "task.features=3"], "task.features: ", "known: ", "penalty"),
        (["steps=3", "inner.linear.rtl=1"], "inner.linear.rtl: "),
        (["steps.more=3"], "steps.more: "),
        (["-m", "stps=1,2"], "stps: ", "did you mean steps?"),
        (["-m", "task=svm,ridg"], "task=ridg: ", "did you mean ridge?"),
        (["tracker=[wandbb]"], "tracker=wandbb: ", "did you mean wandb?"),
        (["task"], "task", ", distillation, elastic_net, "),
        (["steps"], "steps: ", "write steps="),
        (["steps = 3"], "'steps = 3'", "key=value"),
        (["inner=null"], "inner"),
        (["hypergrad.linear.rtol=1"],),
        (["outer.foo.bar=1"],),
        (["inner.linear.rtol=1"],),
    ):
        message, code = _explain.explain(HydraException("what Hydra says"), arguments)
        assert code == 2
        assert [word for word in words if word not in message] == [], arguments
        assert not message.rstrip().endswith("known:"), arguments
    assert _explain.explain(HydraException("one\ntwo"), ["hydra.run.dirr=x", "+foo=1"]) == ("one", 2)


def test_every_choice_has_a_line(tmp_path):
    """Of the groups that hold parts, and those that hold whole settings."""
    for group, choices in config.groups().items():
        lines = listing.of([group]).splitlines()
        assert [line.split()[0] for line in lines] == choices
        for line in lines:
            assert len(line.split()) > 1 or line.split()[0] in ("none", "auto")


def test_a_list_of_nothing_names_the_groups():
    assert set(listing.of([]).split()) >= set(config.groups())


def test_the_help_shows_the_keys_of_what_is_chosen():
    shown = listing.help_for(["--help", "task=svm", "optimizer=lbfgs"])
    assert "_target_: bilevel.tasks.SVM" in shown
    assert "_target_: optax.lbfgs" in shown


def test_compiled_programs_are_kept_in_the_cache_folder_of_the_user(tmp_path):
    keep = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": None, **OPTIMIZED}
    for folder in ("out", "again"):
        done = command("task=ridge", "steps=1", f"hydra.run.dir={folder}", cwd=tmp_path, **keep)
        assert (done.returncode, done.stderr) == (0, "")
        kept = sorted((tmp_path / "cache" / "bilevel" / "compiled").glob("*-cache"))
        kept[0].write_bytes(kept[0].read_bytes()[:50])  # as if killed while it was written


@pytest.mark.parametrize("variable", ["JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"])
def test_the_user_may_choose_another_cache_or_none(variable, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(variable, "0")
    jax_config: Any = jax.config
    before = jax_config.jax_compilation_cache_dir
    _jax.keep_compiled_programs()
    assert jax_config.jax_compilation_cache_dir == before
    assert list(tmp_path.iterdir()) == []
