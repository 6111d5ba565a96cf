"""A catalog of bad days. Each ends in a sentence or two that name the thing and the fix, with an exit code by kind, and leaves
nothing lost or half-written: what was in the folder stays as it was, and what a refused run began is gone."""

import contextlib
import errno
import os
import pickle
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import faulty
import numpy as np
import pytest
from commands import Done, command, error_of, files, here, rows, status

from bilevel import _explain
from bilevel.runs import _files, _rows

DICE = np.random.default_rng(0)
X, Y = DICE.normal(size=(60, 4)), DICE.normal(size=60)
LABELS = np.arange(60) % 3


class Bad(NamedTuple):
    """What is run, with which file beside it, and what must be said."""

    kind: str
    overrides: tuple[str, ...]
    words: tuple[str, ...]
    code: int = 2
    table: dict | None = None
    content: bytes | None = None


def table(kind, *words, task="ridge", more=(), **arrays):
    """A task on `bad.npz`."""
    overrides = (f"task={task}", "task.data=bad.npz", *more)
    return Bad(kind, overrides, ("bad.npz", *words), table={"X": X, "y": Y} | arrays)


def with_value(array, index, value):
    changed = array.astype(float).copy()
    changed[index] = value
    return changed


CATALOG = {
    "a key with a typo": Bad("key", ("stps=3",), ("stps", "did you mean steps?")),
    "a key of a part with a typo": Bad("key", ("inner.rtoll=1",), ("inner.rtoll", "did you mean rtol")),
    "a key that is not there": Bad("key", ("+colour=red",), ("colour", "known: ")),
    "a key of a task with a typo": Bad("key", ("task.dta=x",), ("task.dta", "did you mean data?")),
    "a key of the checkpoints with a typo": Bad(
        "key", ("checkpoint.evry=3",), ("checkpoint.evry", "did you mean every?")
    ),
    "a word for a number": Bad("type", ("steps=many",), ("steps", "a whole number", "'many'")),
    "a fraction for a count": Bad("type", ("steps=2.5",), ("steps", "a whole number", "2.5")),
    "a word for a precision": Bad("type", ("precision=flot32",), ("precision: ", "'flot32'", "did you mean float32")),
    "a list for a number": Bad("type", ("inner.rtol=[1,2]",), ("inner.rtol", "a number")),
    "a number for a table": Bad("type", ("task.data=3",), ("task.data", ".npz")),
    "no steps": Bad("range", ("steps=0",), ("steps", "at least 1")),
    "a checkpoint every no steps": Bad("range", ("checkpoint.every=0",), ("checkpoint.every", "at least 1")),
    "a negative time between checkpoints": Bad("range", ("checkpoint.seconds=-1",), ("checkpoint.seconds", "positive")),
    "a limit of no time": Bad("range", ("time_limit=0",), ("time_limit", "positive")),
    "a negative seed": Bad("range", ("seed=-1",), ("seed", "at least 0")),
    "a group with a typo": Bad("group", ("innr=fista",), ("innr", "did you mean inner")),
    "a word that is no setting": Bad("group", ("foo",), ("foo", "known: ", "steps")),
    "a key of an optimizer with a typo": Bad(
        "optimizer", ("optimizer.learning_rte=1",), ("optimizer.learning_rte", "did you mean learning_rate?")
    ),
    "a word for a rate": Bad(
        "optimizer", ("optimizer.learning_rate=abc",), ("optimizer.learning_rate", "'abc'", "a number")
    ),
    "an unknown table": Bad("choice", ("task.data=digit",), ("task.data", "'digit'", "diabetes")),
    "an unknown choice": Bad("choice", ("task=svn",), ("task=svn", "did you mean svm?")),
    "an unknown tracker among others": Bad("choice", ("tracker=[wandb,trakio]",), ("trakio", "did you mean trackio?")),
    "an unknown optimizer of optax": Bad("choice", ("optimizer=optax", "optimizer.name=adamm"), ("adamm", "adam")),
    "an unknown group": Bad("choice", ("solver=fista",), ("solver", "no such key")),
    "a smooth solver for a constrained task": Bad(
        "combination", ("task=svm", "inner=lbfgs"), ("LBFGS", "projection", "FISTA")
    ),
    "Newton for a prox": Bad("combination", ("task=lasso", "inner=newton"), ("Newton", "prox")),
    "unrolling foreign code": Bad(
        "combination", ("task=ridge", "inner=sklearn_ridge", "hypergrad=unrolled"), ("Unrolled", "SklearnRidge")
    ),
    "a setting that a study does not have": Bad(
        "combination", ("experiment=penalties", "steps=3"), ("steps", "study.*")
    ),
    "resume with -m": Bad("combination", ("-m", "resume=auto", "seed=0,1"), ("resume", "-m")),
    "a target outside the packages": Bad(
        "target",
        ("inner._target_=os.system",),
        ("inner._target_: ", "'os.system'", "bilevel, experiments, optax", "allow_targets=[os]"),
    ),
    "a target that is not there": Bad("target", ("inner._target_=bilevel.inner.Fistaa",), ("bilevel.inner.Fistaa",)),
    "a target through an import": Bad("target", ("task._target_=bilevel.run.os.system",), ("bilevel.run.os.system",)),
    "a target in a part": Bad("target", ("+inner.x._target_=subprocess.run",), ("inner",)),
    "a file that is not there": Bad("file", ("task.data=nowhere.npz",), ("nowhere.npz", "no such file")),
    "a file of noise": Bad("file", ("task.data=bad.npz",), ("bad.npz", "not a readable"), content=bytes(range(256))),
    "a file with a pickle": Bad(
        "file", ("task.data=bad.npz",), ("bad.npz", "plain arrays"), table={"X": np.array([{}, []], object), "y": Y}
    ),
    "a csv with a short row": Bad(
        "file", ("task.data=bad.csv",), ("bad.csv", "row 2 has 1 values"), content=b"a,y\n1,2\n3\n"
    ),
    "a csv without numbers": Bad("file", ("task.data=bad.csv",), ("bad.csv",), content=b"a,y\none,1\ntwo,2\n"),
    "no y": Bad("shape", ("task.data=bad.npz",), ("bad.npz", "needs arrays X", "y"), table={"X": X}),
    "a vector for X": table("shape", "X", X=Y),
    "more y than rows": table("shape", "60", "59", y=Y[:-1]),
    "no rows": table("shape", X=X[:0], y=Y[:0]),
    "a NaN": table("data", "NaN", X=with_value(X, (3, 2), np.nan)),
    "an infinity in y": table("data", "finite", y=with_value(Y, 5, np.inf)),
    "constant columns": table("data", "every column of X is constant", X=np.ones_like(X)),
    "words for numbers": table("data", "numbers", X=X.astype(str)),
    "one class only": table("labels", "one class only", task="logistic", y=np.zeros(60)),
    "a label that is NaN": table("labels", "NaN", task="logistic", y=with_value(LABELS, 7, np.nan)),
    "labels between classes": table("labels", "fractional", task="logistic", y=LABELS + 0.5),
    "a class without training rows": table(
        *("labels", "lack one of the"),
        task="logistic",
        more=("task.validation=0.49", "task.test=0.49"),
        y=np.where(np.arange(60) == 0, 7, LABELS),
    ),
    "an empty part": Bad("split", ("task.validation=0.0001",), ("0 validation", "at least one")),
    "more test rows than rows": Bad("split", ("task.test=100000",), ("cannot be split", "at least one")),
    "no GPU": Bad("device", ("platform=gpu",), ("platform=gpu", "platform=cpu")),
    "a step that does not fit": Bad(
        "machine",
        ("task=svm", "task.data=synthetic", "task.features=1000", "hypergrad=unrolled", "hypergrad.steps=20000000"),
        ("out of memory", "one outer step needs", "GiB are free", "hypergrad.steps"),
        code=3,
    ),
    "an optimizer that diverges": Bad(
        "run",
        ("optimizer=sgd", "optimizer.learning_rate=1e30", "precision=float32"),
        ("not finite", "learning_rate"),
        code=1,
    ),
    "no run to resume": Bad("folder", ("resume=nowhere",), ("nowhere", "no run in it")),
    "an unknown list": Bad("list", ("--list", "taskz"), ("taskz", "did you mean task")),
}


def test_the_catalog_is_large_and_varied():
    kinds = Counter(bad.kind for bad in CATALOG.values())
    assert len(CATALOG) >= 40
    assert max(kinds.values()) <= 5


def prepare(bad, folder):
    """Write the file that a situation is about."""
    if bad.table is not None:
        np.savez(folder / "bad.npz", **bad.table)
    if bad.content is not None:
        (folder / ("bad.csv" if "task.data=bad.csv" in bad.overrides else "bad.npz")).write_bytes(bad.content)


def check_left(bad, folder, before, message):
    """What was begun says that it failed; otherwise nothing is left."""
    if bad.kind == "run" or bad.code == 3:
        (run,) = (folder / "runs").glob("*/*")
        assert status(run)["state"] == "failed"
        assert status(run)["error"] in message
        assert not list(run.rglob("*.tmp"))
    else:
        assert files(folder) == before
        assert not (folder / "runs").exists()


def check_told(name: str, run: Callable[..., Done], folder: Path) -> None:
    """Run a situation and see that it is told in a sentence, and what it left."""
    bad = CATALOG[name]
    prepare(bad, folder)
    before = files(folder)
    done = run(*bad.overrides, cwd=folder)
    message = error_of(done, bad.code)
    assert bad.code != 2 or done.stdout == ""
    assert [word for word in bad.words if word not in message] == []
    assert message.count(". ") <= 2
    assert len(message) < 420
    check_left(bad, folder, before, message)


@pytest.mark.parametrize("name", CATALOG)
@pytest.mark.slice(2)
def test_it_is_told_in_a_sentence_and_leaves_nothing(name, tmp_path):
    check_told(name, here, tmp_path)


def test_it_is_told_so_in_a_process_of_its_own(tmp_path):
    check_told("no GPU", command, tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    trap = np.empty(1, object)
    trap[0] = Trap()
    np.savez(tmp_path / "bad.npz", X=trap, y=Y)
    (tmp_path / "bad2.npz").write_bytes(pickle.dumps(Trap()))
    for name in ("bad.npz", "bad2.npz"):
        assert "not a readable .npz" in error_of(here(f"task.data={name}", cwd=tmp_path))
    assert not (tmp_path / "sprung").exists()


def test_a_target_outside_is_refused_before_it_is_imported(tmp_path):
    (tmp_path / "mine.py").write_text("open('imported', 'w').close()\ndef solver(): ...\n")
    assert "allow_targets=[mine]" in error_of(here("inner._target_=mine.solver", cwd=tmp_path))
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("place", ["constructor", "setup", "loss"])
def test_a_bug_in_a_task_keeps_its_traceback(place, tmp_path):
    with pytest.raises(TypeError, match=r"shapes|subscriptable") as caught:
        here(*buggy(place), cwd=tmp_path)
    assert Path(faulty.__file__) in [entry.path for entry in caught.traceback]
    assert not files(tmp_path)


def test_a_bug_in_a_task_has_its_traceback_and_code_in_a_process_of_its_own(tmp_path):
    done = command(*buggy("loss"), cwd=tmp_path, PYTHONPATH=str(Path(__file__).parent))
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last)")
    assert 'faulty.py", line' in done.stderr


def test_a_value_that_a_task_checks_is_refused(tmp_path):
    assert error_of(here(*buggy("none"), cwd=tmp_path)) == "Buggy: task.bug must not be none"


def buggy(place: str) -> tuple[str, ...]:
    """The overrides of a run of a task with a bug."""
    return ("task._target_=faulty.Buggy", f"+task.bug={place}", "allow_targets=[faulty]", "hydra.run.dir=out")


def test_a_configuration_cut_short(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("task: {data: [")
    before = files(tmp_path)
    assert "config.yaml: not readable" in error_of(here("resume=out", cwd=tmp_path))
    assert "out holds another run" in error_of(here("task=ridge", "hydra.run.dir=out", cwd=tmp_path))
    assert files(tmp_path) == before


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "out").write_text("mine")
    message = error_of(here("task=ridge", "steps=2", "hydra.run.dir=out", cwd=tmp_path))
    assert "out" in message
    assert (tmp_path / "out").read_text() == "mine"


@contextlib.contextmanager
def mounted(folder, options):
    """A small file system of its own in a folder."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    with mounted(tmp_path / "out", "ro"):
        message = error_of(here("task=ridge", "steps=2", "hydra.run.dir=out/run", cwd=tmp_path), code=3)
        assert "no permission to write there" in message
        assert "hydra.run.dir=FOLDER" in message


def test_a_full_disk(tmp_path):
    with mounted(tmp_path / "out", "size=64k") as out:
        overrides = ("task=ridge", "steps=2000", "hydra.run.dir=out/run", "checkpoint.seconds=1000")
        message = error_of(here(*overrides, cwd=tmp_path), code=3)
        assert "the disk is full" in message
        assert "resume=FOLDER" in message
        written = (out / "run" / "metrics.jsonl").read_bytes()
        assert written.endswith(b"\n")
        assert len(rows(out / "run")) > 50
        assert not list(out.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(out)], check=True)
        done = here("resume=out/run", "steps=2000", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(rows(out / "run")) == 2000


def test_a_checkpoint_for_which_there_is_no_room_does_not_end_the_run(tmp_path):
    with mounted(tmp_path / "out", "size=40k") as out:
        overrides = ("task=svm", "task.data=wine", "steps=12", "hydra.run.dir=out/run", "checkpoint.every=1")
        done = here(*overrides, cwd=tmp_path)
        printed = " ".join((done.stdout + done.stderr).split())
        assert "could not be written" in printed
        assert len(rows(out / "run")) == 12


def test_no_half_row_and_no_half_file_where_there_is_no_room(tmp_path, monkeypatch):
    store = _rows.Rows(tmp_path / "metrics.jsonl")
    store.append({"step": 0})
    real = os.write

    def short(file, content):
        return real(file, content[:5])

    monkeypatch.setattr(_rows.os, "write", short)
    with pytest.raises(OSError, match="no space left"):
        store.append({"step": 1})
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n'
    store.append({"step": 1})
    store.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'

    (tmp_path / "result.json").write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, "no space left on the device")

    with pytest.raises(OSError, match="no space left"):
        _files.replace(tmp_path / "result.json", full)
    assert {path.name: path.read_text() for path in tmp_path.glob("result*")} == {"result.json": "old"}


def test_the_machine_has_a_code_of_its_own():
    for error, words, code in (
        (OSError(errno.ENOSPC, "full", "x/metrics.jsonl"), "x/metrics.jsonl: the disk is full", 3),
        (OSError(errno.EDQUOT, "quota", "x"), "x: the disk is full or a quota is used up", 3),
        (OSError(errno.EROFS, "read-only", "x"), "x: no permission to write there", 3),
        (PermissionError(errno.EACCES, "no", "x"), "x: no permission to write there", 3),
        (MemoryError("one outer step needs 3 GiB"), "out of memory: one outer step needs 3 GiB", 3),
        (RuntimeError("RESOURCE_EXHAUSTED: no room"), "out of memory: RESOURCE_EXHAUSTED", 3),
        (KeyboardInterrupt(), "interrupted", 75),
    ):
        message, found = _explain.explain(error)
        assert message.startswith(words)
        assert found == code
