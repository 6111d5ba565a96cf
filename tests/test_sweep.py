"""Sweeps: a failure does not affect other jobs, and a rerun completes what is missing."""

import contextlib
import csv
import json
import math
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from commands import begin, command, error_of, files, here, result, rows, status

import bilevel
from bilevel import config
from bilevel.cli.job import Job
from bilevel.cli.sweep import supervise
from bilevel.runs import sweeps

HERE = {"PYTHONPATH": str(Path(__file__).parent), "RAY_AUTH_MODE": "disabled"}
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
    "ray": ("hydra/launcher=ray_core", "hydra.launcher.num_cpus=2"),
}
SECONDS = {"basic": 20, "joblib": 20, "submitit": 120, "ray": 30}  # that a job of two steps has
ERRORS = {
    "raising": "is not to be used",
    "killed": "its process was killed by SIGKILL",
    "hanging": "stopped after job_time_limit",
}


def faulty(seeds, *more, **which):
    """The overrides of a sweep over seeds, some of which fail."""
    settings = [f"+task.{name}={json.dumps(found).replace(' ', '')}" for name, found in which.items()]
    what = ("-m", "task=ridge", "task._target_=faulty.Faulty", "allow_targets=[faulty]", *settings)
    return (*what, "steps=2", f"seed=range({seeds})", "hydra.sweep.dir=sweep", *more)


def jobs(folder):
    """The jobs of a sweep by seed, with their status."""
    return {job.overrides["seed"]: job for job in sweeps.read(folder)}


def check(cwd, seeds, failing, limit, launcher):
    """Two invocations, the second after the fix: what failed is named, and it alone runs again."""
    overrides = (*faulty(seeds, **failing), f"job_time_limit={limit}", *LAUNCHERS[launcher])
    bad = {str(seed) for seeds in failing.values() for seed in seeds}
    first = command(*overrides, cwd=cwd, timeout=900, **HERE)
    assert first.returncode == 1, first.stdout + first.stderr
    assert f"{seeds - len(bad)} done, {len(bad)} failed" in first.stdout
    found = jobs(cwd / "sweep")
    assert {seed for seed, job in found.items() if job.state == "failed"} == bad
    assert {seed for seed, job in found.items() if job.state == "done"} == {str(s) for s in range(seeds)} - bad
    for kind, seeds_of_kind in failing.items():
        for seed in map(str, seeds_of_kind):
            assert ERRORS[kind] in found[seed].error
            assert f"failed: seed={seed}: {found[seed].error}" in first.stdout
    with (cwd / "sweep" / "sweep.csv").open() as file:
        table = {row["seed"]: row for row in csv.DictReader(file)}
    assert {seed for seed, row in table.items() if row["state"] == "failed"} == bad
    losses = {seed: float(row["outer_loss"]) for seed, row in table.items() if row["outer_loss"]}
    best = min(losses, key=losses.get)
    assert f"best: seed={best}: outer loss {losses[best]:.6g}" in first.stdout

    before = {seed: files(job.folder) for seed, job in found.items()}
    (cwd / "fixed").touch()
    second = command(*overrides, cwd=cwd, timeout=900, **HERE)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"{seeds} done\n" in second.stdout
    after = jobs(cwd / "sweep")
    assert {seed for seed, job in after.items() if files(job.folder) != before[seed]} == bad


@pytest.mark.parametrize(
    "launcher", ["basic", *(pytest.param(name, marks=pytest.mark.slow) for name in list(LAUNCHERS)[1:])]
)
def test_a_killed_and_a_hanging_job_cost_themselves_alone(launcher, tmp_path):
    check(tmp_path, 3, {"killed": [1], "hanging": [0]}, SECONDS[launcher], launcher)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_of_24_jobs(launcher, tmp_path):
    check(tmp_path, 24, {"raising": [3, 8, 15], "killed": [11], "hanging": [19]}, 2 * SECONDS[launcher], launcher)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A small sweep, half of whose jobs have a wrong setting, and what it printed."""
    cwd = tmp_path_factory.mktemp("sweep")
    done = here("-m", "task=ridge", "seed=0,1", "steps=2,many", "task.data=diabetes", "checkpoint.every=1", cwd=cwd)
    assert done.returncode == 1, done.stdout + done.stderr
    (folder,) = (cwd / "runs" / "sweeps").iterdir()
    return done, folder


def test_a_sweep_writes_one_folder_per_job(sweep):
    done, folder = sweep
    found = sweeps.read(folder)
    jobs = [("0", "2", "done"), ("0", "many", "failed"), ("1", "2", "done"), ("1", "many", "failed")]
    assert [(job.overrides["seed"], job.overrides["steps"], job.state) for job in found] == jobs
    for job in found[::2]:
        assert result(job.folder)["seed"] == int(job.overrides["seed"])
        assert len(rows(job.folder)) == 2
        assert bilevel.load(job.folder).hparams.shape == (10,)
    assert sweeps.swept(found) == ["seed", "steps"]
    assert "2 done, 2 failed" in done.stdout
    assert "failed: seed=0 steps=many: steps: expected a whole number" in done.stdout


def test_a_job_is_what_the_command_alone_gives(sweep, tmp_path):
    _, folder = sweep
    done = here("task=ridge", "seed=1", "steps=2", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    there = next(job.folder for job in sweeps.read(folder) if (job.overrides["seed"], job.state) == ("1", "done"))
    assert result(there)["outer_loss"] == result(tmp_path / "out")["outer_loss"]


def test_the_end_of_a_sweep_names_the_best(sweep):
    done, folder = sweep
    best = sweeps.best(sweeps.read(folder))
    name = f"seed={best.overrides['seed']} steps=2"
    assert f"best: {name}: outer loss {best.results['outer_loss']:.6g}, in " in done.stdout
    assert (folder / "best.yaml").read_text() == (best.folder / "config.yaml").read_text()
    assert done.stdout.splitlines()[-2].endswith(f"python -m bilevel.report {folder.relative_to(folder.parents[2])}")


def test_other_checkpoints_or_trackers_do_not_make_another_sweep(sweep):
    _, folder = sweep
    finished = [job.folder for job in sweeps.read(folder) if job.state == "done"]
    before = [files(job) for job in finished]
    done = here(
        *("-m", "seed=0,1", "task=ridge", "steps=2,many", "task.data=diabetes", "job_time_limit=100"),
        cwd=folder.parents[2],
    )
    assert "2 done, 2 failed" in done.stdout
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert len(sweeps.read(folder)) == 4
    assert [files(job) for job in finished] == before


def test_folders_are_named_by_a_hash_of_the_overrides():
    for overrides, others in (
        (["task=a/b", "inner.x=[1,2]"], ["task=a", "inner.x=[1,2]"]),
        (["seed=1", "steps=2"], ["seed=2", "steps=1"]),
        ([], ["seed=1"]),
    ):
        name = config.overrides_hash(overrides)
        assert name == config.overrides_hash([*reversed(overrides), "tracker=wandb", "checkpoint.every=3"])
        assert name != config.overrides_hash(others)
        assert name.isalnum()


def test_another_sweeper_makes_another_sweep_and_another_launcher_does_not():
    task, random = ["sweep=black_box"], ["hydra/sweeper/sampler=random"]
    names = {config.sweep_hash(task, more) for more in ([], ["hydra/launcher=local"], ["hydra.sweeper.n_trials=9"])}
    assert len(names) == 1
    assert config.sweep_hash(task, random) not in names
    assert config.sweep_hash(task, [*random, "hydra.launcher.n_jobs=2"]) == config.sweep_hash(task, random)


def test_an_unknown_group_is_refused_before_anything_runs(tmp_path):
    assert "did you mean svm?" in error_of(here("-m", "task=svn,ridge", cwd=tmp_path))


def test_a_job_that_diverges_has_no_objective(tmp_path):
    overrides = ["task=ridge", "steps=5", "optimizer=sgd", "optimizer.learning_rate=1e30", "precision=float32"]
    cfg = config.compose(overrides, with_hydra=True)
    job = Job(config.compose(overrides), tmp_path / "job", config.choices(cfg.hydra), overrides)
    assert supervise(job) == math.inf
    assert status(job.folder)["state"] == "failed"
    assert math.isfinite(result(job.folder)["outer_loss"])  # of its best step, which is not how it ended


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_an_interrupted_sweep_goes_on(launcher, tmp_path):
    overrides = ("-m", "task=ridge", "seed=0,1", "steps=4000", "hydra.sweep.dir=sweep", *LAUNCHERS[launcher])
    process = begin(*overrides, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not [path for path in tmp_path.glob("sweep/*/metrics.jsonl") if path.stat().st_size > 2000]:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    folder = next(path.parent for path in tmp_path.glob("sweep/*/metrics.jsonl"))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    assert status(folder)["state"] == "interrupted"
    done = len(rows(folder))
    again = command(*overrides, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resuming after step {done}" in (folder / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_optuna_goes_on_with_the_trials_of_its_storage(sampler, tmp_path):
    def search(trials):
        done = command(
            *("sweep=black_box", f"hydra/sweeper/sampler={sampler}", "hydra/launcher=basic", "hydra.sweeper.n_jobs=1"),
            *(f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.sampler.seed=0", "hydra.sweep.dir=sweep"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return {job.overrides["task.penalty"]: job for job in sweeps.read(tmp_path / "sweep")}

    first = search(1)
    second = search(2)
    assert len(first) == 1
    assert len(second) == 2
    assert set(first) < set(second)
    assert all(job.state == "done" for job in second.values())
    with contextlib.closing(sqlite3.connect(tmp_path / "sweep" / "optuna.db")) as database:
        stored = {value for (value,) in database.execute("select value from trial_values")}
    assert stored == {job.results["outer_loss"] for job in second.values()}


def test_the_examples_compose_to_sweeps():
    for name in config.groups()["sweep"]:
        hydra = config.compose([f"sweep={name}"], with_hydra=True).hydra
        assert hydra.mode.name == "MULTIRUN"
        assert hydra.sweeper.params


@pytest.mark.slow
@pytest.mark.parametrize("name", config.groups()["sweep"])
def test_an_example_finishes_in_minutes(name, tmp_path):
    begun = time.monotonic()
    done = command(f"sweep={name}", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - begun < 600


def test_slurm_is_configured():
    launcher = config.compose(["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], with_hydra=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.gpus_per_node, launcher.timeout_min) == ("gpu", 0, 240)
