"""Checkpoints: a run that stopped, however it stopped, resumes with identical results."""

import dataclasses
import json
import os
import random
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_outer
from commands import begin, error_of, files, here, result, rows, status, timeless, wait_for_rows

import bilevel
from bilevel import outer
from bilevel.runs import checkpoints

STEPS = 30
RUNS = [
    ("task=ridge", "precision=float64"),
    ("task=ridge", "inner=fista", "hypergrad=unrolled", "hypergrad.steps=20"),
    ("task=logistic", "task.data=iris"),
    ("task=logistic", "task.data=wine", "inner=newton", "linear=direct", "optimizer=adamw"),
    ("task=svm", "task.data=iris", "linear=cg"),
    ("task=lasso", "optimizer=rprop", "precision=float64"),
    ("task=elastic_net", "inner=block_coordinate_descent"),
    ("task=logistic", "task.data=iris", "inner=sgd", "inner.max_steps=30", "linear=minres"),
    ("task=group_lasso", "linear=gmres", "optimizer=momentum"),
    ("task=distillation", "linear=direct"),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Runs to their end, each done once."""
    done = {}

    def of(overrides):
        if overrides not in done:
            cwd = tmp_path_factory.mktemp("whole")
            ended = here(*overrides, f"steps={STEPS}", "hydra.run.dir=out", cwd=cwd)
            assert ended.returncode == 0, ended.stderr
            done[overrides] = cwd / "out"
        return done[overrides]

    return of


def assert_the_same(folder, reference):
    assert [timeless(row) for row in rows(folder)] == [timeless(row) for row in rows(reference)]
    assert timeless(result(folder)) == timeless(result(reference))
    a, b = np.load(folder / "solution.npz"), np.load(reference / "solution.npz")
    assert a.files == b.files
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name], strict=True)


# Killed at random


@pytest.mark.parametrize("case", range(60))
@pytest.mark.slice(60)
def test_a_killed_run_resumes_to_the_last_bit(case, uninterrupted, tmp_path):
    overrides, dice = RUNS[case % len(RUNS)], random.Random(case)
    out = tmp_path / "out"
    every = f"checkpoint.every={dice.choice((1, 3, 7))}"
    process = begin(*overrides, f"steps={STEPS}", every, "hydra.run.dir=out", cwd=tmp_path)
    wait_for_rows(out, dice.randrange(STEPS - 3), process)
    time.sleep(dice.uniform(0, 0.01))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert status(out)["state"] == "running"

    resumed = here("resume=out", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_the_same(out, uninterrupted(overrides))
    assert status(out)["state"] == "done"
    assert not list(out.rglob("*.tmp"))


# Told to stop


def test_a_signal_ends_a_run_with_a_checkpoint_and_a_code_of_its_own(tmp_path):
    folder = tmp_path / "out"
    process = begin("task=ridge", "steps=100000", "hydra.run.dir=out", cwd=tmp_path)
    wait_for_rows(folder, 20, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert result(folder)["status"] == status(folder)["state"] == "interrupted"
    steps = result(folder)["steps"]
    assert len(rows(folder)) == steps >= 20
    assert (folder / "checkpoints" / f"{steps:08d}.npz").is_file()
    assert bilevel.load(folder).hparams.shape == (10,)


def test_a_run_is_alone_in_its_folder_until_ctrl_c_ends_it(tmp_path):
    process = begin("task=ridge", "steps=100000", "hydra.run.dir=out", cwd=tmp_path)
    wait_for_rows(tmp_path / "out", 3, process)
    message = error_of(here("resume=out", cwd=tmp_path), code=3)
    assert "another process is writing this run" in message
    assert status(tmp_path / "out")["state"] == "running"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    assert f"to resume: python -m bilevel.run resume={tmp_path / 'out'}" in (tmp_path / "printed.txt").read_text()


# Damage


def finished(cwd, *more):
    done = here("task=ridge", "steps=6", "checkpoint.every=2", "hydra.run.dir=out", *more, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "out"


def unfinish(folder, keep_rows):
    """As if the run had been killed after that many rows."""
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:keep_rows]) + lines[0][:17])
    (folder / "result.json").unlink()
    (folder / "solution.npz").unlink()


@pytest.fixture(scope="module")
def ridge(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("ridge"))


@pytest.fixture
def cut(ridge, tmp_path):
    """A run that lacks its end, with checkpoints after steps 4 and 6 and half a row."""
    shutil.copytree(ridge, tmp_path / "out")
    unfinish(tmp_path / "out", 6)
    return tmp_path / "out"


def go_on(folder):
    done = here("resume=out", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def in_manifest(change):
    def damage(folder):
        path = folder / "checkpoints" / "00000006.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return damage


def in_file(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


LAST = "checkpoints/00000006.npz"
WRONG_SUM = ("00000006.npz is not used: its checksum is wrong", "resuming after step 4")
DAMAGES = {
    "half_a_row": (lambda folder: None, ("resuming after step 6",)),
    "a_row_that_a_checkpoint_counts_on": (
        in_file("metrics.jsonl", lambda rows: b"".join(rows.splitlines(keepends=True)[:5])),
        ("only 5 rows", "resuming after step 4"),
    ),
    "truncated": (in_file(LAST, lambda content: content[:-100]), WRONG_SUM),
    "wrong_bit": (in_file(LAST, lambda content: content[:-1] + bytes([content[-1] ^ 1])), WRONG_SUM),
    "of_another_run": (
        in_manifest(lambda read: read["origin"].update(configuration="other")),
        ("another configuration", "resuming after step 4"),
    ),
    "of_another_version": (
        in_manifest(lambda read: read.update(format=99)),
        ("another version", "resuming after step 4"),
    ),
    "of_other_arrays": (
        in_manifest(lambda read: read["arrays"].popitem()),
        ("differ from the arrays of this run", "resuming after step 4"),
    ),
    "emptied": (in_manifest(lambda read: read.clear()), ("another version", "resuming after step 4")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_and_the_last_checkpoint_that_is_whole_used(name, cut, ridge):
    damage, words = DAMAGES[name]
    damage(cut)
    printed = go_on(cut)
    assert [word for word in words if word not in printed] == []
    assert_the_same(cut, ridge)


def test_a_lost_status_costs_nothing(cut, ridge):
    (cut / "status.json").unlink()
    assert "inner Quadratic · hypergradient Implicit (Auto)" in go_on(cut)
    assert result(cut)["outer_loss"] == result(ridge)["outer_loss"]


def test_without_a_usable_checkpoint_the_run_starts_over(cut, ridge):
    for path in (cut / "checkpoints").glob("*.npz"):
        path.write_bytes(b"")
    assert "resuming" not in go_on(cut)
    assert_the_same(cut, ridge)


def test_changed_data_are_refused(tmp_path):
    dice = np.random.default_rng(0)
    X, y = dice.normal(size=(60, 4)), dice.normal(size=60)
    np.savez(tmp_path / "table.npz", X=X, y=y)
    folder = finished(tmp_path, "task.data=table.npz")
    unfinish(folder, 6)
    record = json.loads((folder / "status.json").read_text()) | {"state": "running"}
    (folder / "status.json").write_text(json.dumps(record))
    X[0, 0] += 1e-3
    np.savez(tmp_path / "table.npz", X=X, y=y)
    assert "the data have changed since this run was started" in error_of(here("resume=out", cwd=tmp_path))


# Which run


def test_only_what_alters_no_number_changes_beside_resume(cut):
    before = files(cut)
    for override, *words in (
        ("steps=3", "resume can only increase it"),
        ("optimizer.learning_rate=0.2", "optimizer.learning_rate=0.2", "was started with 0.1", "steps"),
        ("task=svm", "was started with ridge"),
    ):
        message = error_of(here("resume=out", override, cwd=cut.parent))
        assert [word for word in words if word not in message] == []
    assert files(cut) == before


def test_a_finished_run_is_left_as_it_is(ridge):
    before = files(ridge)
    done = here("resume=out", cwd=ridge.parent)
    assert done.returncode == 0
    assert "already finished" in done.stdout
    assert files(ridge) == before


def test_a_finished_run_goes_on_to_more_steps(ridge, tmp_path):
    shutil.copytree(ridge, tmp_path / "out")
    done = here("resume=out", "steps=9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 6" in done.stdout
    whole = here("task=ridge", "steps=9", "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert_the_same(tmp_path / "out", tmp_path / "whole")
    seconds = [row["seconds"] for row in rows(tmp_path / "out")]
    assert seconds == sorted(seconds)
    assert [path.stem for path in sorted((tmp_path / "out" / "checkpoints").glob("*.npz"))] == ["00000008", "00000009"]


def test_auto_finds_the_newest_unfinished_run_of_the_configuration(cut):
    cwd = cut.parent
    runs = cwd / "runs" / "ridge"
    runs.mkdir(parents=True)
    for name, age in (("old", 100), ("new", 50)):
        shutil.copytree(cut, runs / name)
        os.utime(runs / name / "config.yaml", (time.time() - age,) * 2)
    done = here("task=ridge", "steps=6", "resume=auto", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert (runs / "new" / "result.json").is_file()
    assert not (runs / "old" / "result.json").is_file()
    other = here("task=ridge", "steps=6", "seed=5", "resume=auto", cwd=cwd)
    assert other.returncode == 0, other.stderr
    assert len(list(runs.iterdir())) == 3


# As a library


def test_every_kind_of_leaf_comes_back(tmp_path):
    tree = {
        "key": jax.random.key(3),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "none": None,
        "numbers": (1, 0.1, True, np.float64(1 / 3)),
        "scalar": jnp.float32(1 / 3),
        "empty": jnp.zeros((0, 2)),
    }
    store = checkpoints.Checkpoints(tmp_path / "c", 1, None, {"configuration": "x"})
    store.save(5, tree)
    step, back = store.restore(jax.tree.map(lambda leaf: leaf, tree), rows=5)
    assert step == 5
    assert jax.random.key_data(back["key"]).tolist() == jax.random.key_data(tree["key"]).tolist()
    assert back["key"].dtype == tree["key"].dtype
    for name in ("half", "scalar", "empty"):
        assert back[name].dtype == tree[name].dtype
        np.testing.assert_array_equal(back[name], tree[name])
    assert back["numbers"] == tree["numbers"]
    assert [type(number) for number in back["numbers"][:3]] == [int, float, bool]
    assert checkpoints.fingerprint(back) == checkpoints.fingerprint(tree)
    assert checkpoints.fingerprint(back | {"scalar": jnp.float32(0.3)}) != checkpoints.fingerprint(tree)


def test_the_loop_goes_on_from_its_progress(x64):
    data = test_outer.DATA
    algorithm = outer.Nested(test_outer.SHRINK, bilevel.inner.LBFGS(), bilevel.hypergrad.Implicit(), optax.adam(0.1))
    state = algorithm.init(jnp.array(0.0), jnp.zeros(2), data)
    kept = []
    whole = outer.run_loop(algorithm, state, data, steps=9, keep=lambda progress, _: kept.append(progress))
    half = outer.run_loop(algorithm, state, data, steps=9, keep=lambda p, _: "enough" if p.steps == 4 else None)
    assert (half.status, half.steps) == ("enough", 4)
    again = outer.run_loop(algorithm, None, data, steps=9, progress=kept[3])
    assert [timeless(row) for row in again.history] == [timeless(row) for row in whole.history]
    assert (again.outer_loss, again.best_step, again.status) == (whole.outer_loss, whole.best_step, "completed")
    late = outer.run_loop(algorithm, None, data, steps=9, progress=dataclasses.replace(kept[3], seconds=1e3))
    assert late.history[-1]["seconds"] > 1e3
    done = outer.run_loop(algorithm, None, data, steps=9, progress=kept[-1])
    assert (done.status, done.steps) == ("completed", 9)
