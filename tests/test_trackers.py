"""Trackers: what they hold is what the run wrote, and none of them can stop or slow it."""

import json
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import faulty
import pytest
from commands import (
    begin,
    command,
    environment,
    error_of,
    here,
    module,
    module_here,
    result,
    rows,
    wait_for_rows,
    wait_for_tracker,
)

from bilevel import config
from bilevel.runs import RunFolder, _files, following, read_rows, sweeps

HERE = {"PYTHONPATH": str(Path(__file__).parent)}
KEY = "0123456789abcdef0123456789abcdef01234567"


def written(folder, *overrides, losses=(1.0,), state=None):
    """A run folder with a row for each loss."""
    files = RunFolder(folder, config.to_yaml(config.compose(overrides)), {})
    for step, loss in enumerate(losses):
        files.rows.append({"step": step, "outer_loss": loss})
    if state is not None:
        files.write_status(state)
    files.close()


def printed_by(module, *arguments, **more):
    """The lines that a tracker's own tool prints."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def wandb_records(folder):
    """What the offline runs of a folder hold."""
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    return [json.loads(line) for run in runs for line in printed_by("wandb", "leet", "inspect", "--json", str(run))]


def history(records):
    """The logged rows."""
    return [record["history"]["item"] for record in records if record["type"] == "history"]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run with all three trackers."""
    cwd = tmp_path_factory.mktemp("tracked")
    done = command(
        *("task=distillation", "steps=8", "hydra.run.dir=out", "tracker=[wandb,trackio,tensorboard]"),
        "tracker.trackio.folder=boards",
        cwd=cwd,
        WANDB_API_KEY=KEY,
        WANDB_MODE="offline",
        HOME=str(cwd),
    )
    assert done.returncode == 0, done.stderr
    for name in ("wandb", "trackio", "tensorboard"):
        wait_for_tracker(cwd / "out", name, 8)
    return done, cwd / "out"


def test_wandb_holds_the_rows_the_configuration_and_the_summary(tracked):
    _, folder = tracked
    records = wandb_records(folder)
    logged = [row for row in history(records) if "outer_loss" in row]
    plain = [{name: value for name, value in row.items() if value is not None} for row in rows(folder)]
    expected = [row | {"_step": row.pop("step")} for row in plain]
    assert [{name: row[name] for name in ours} for row, ours in zip(logged, expected, strict=True)] == expected
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    assert run["config"]["update"]["task"]["_target_"] == "bilevel.tasks.Distillation"
    text = json.dumps([record for record in records if record["type"] == "summary"])
    assert repr(result(folder)["outer_loss"]) in text
    assert "images" in json.dumps(history(records)[-1])


def test_trackio_holds_the_rows(tracked):
    _, folder = tracked
    run = f"{folder.parent.name}-out"
    asked = ["get", "metric", "--project", "bilevel", "--run", run, "--metric", "outer_loss", "--json"]
    lines = printed_by("trackio.cli", *asked, TRACKIO_DIR=str(folder.parent / "boards"))
    values = [point["value"] for point in json.loads("\n".join(lines))["values"]]
    assert values == [row["outer_loss"] for row in rows(folder)]


def events(content):
    """The events of a file: each has its length, a checksum, and another checksum after it."""
    from tensorboardX.proto.event_pb2 import Event

    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_tensorboard_holds_the_rows(tracked):
    _, folder = tracked
    logged = {}
    for path in (folder / "tensorboard").iterdir():
        for event in events(path.read_bytes()):
            for value in event.summary.value:
                logged.setdefault(value.tag, []).append((event.step, value.simple_value))
    losses = [(row["step"], pytest.approx(row["outer_loss"], rel=1e-6)) for row in rows(folder)]
    assert logged["outer_loss"] == losses
    assert "images" in logged


def test_nobody_writes_a_key(tracked):
    done, folder = tracked
    assert KEY not in done.stdout + done.stderr
    for path in folder.parent.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def names_looked_up(*arguments, cwd, **more):
    """By `python -m bilevel.track`, where the only name server tells what it is asked for."""
    alone = ["unshare", "--map-root-user", "--mount", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no network of its own for a process: unshare is missing, or not allowed")
    server = [sys.executable, str(Path(__file__).with_name("name_server.py"))]
    done = subprocess.run(
        [*alone, *server, sys.executable, "-m", "bilevel.track", *arguments],
        cwd=cwd,
        env=environment(HOME=str(cwd), **more),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "asked for:" in done.stdout, done.stderr
    return done.returncode, done.stdout.partition("asked for:")[2].split()


@pytest.mark.parametrize("online", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["offline", "online"])
def test_wandb_looks_up_no_name_unless_logged_in(online, tmp_path):
    written(tmp_path / "out", "tracker=wandb", state="done")
    login = {"WANDB_API_KEY": KEY, "WANDB_INIT_TIMEOUT": "15"} if online else {}
    code, names = names_looked_up("out", "wandb", cwd=tmp_path, **login)
    assert (code != 0, names != []) == (online, online)
    assert len(list((tmp_path / "out" / "wandb").glob("offline-run-*"))) == (0 if online else 1)


@pytest.mark.slow
def test_a_killed_run_is_sent_and_once_resumed_has_one_name_and_no_row_twice(tmp_path):
    """And nobody is asked to log in."""
    overrides = ("task=ridge", "steps=100000", "checkpoint.every=10", "hydra.run.dir=out", "tracker=wandb")
    process = begin(*overrides, cwd=tmp_path, HOME=str(tmp_path))
    folder = tmp_path / "out"
    wait_for_rows(folder, 50, process)
    process.kill()
    process.wait()
    steps = len(read_rows(folder / "metrics.jsonl"))
    wait_for_tracker(folder, "wandb", steps)
    config = (folder / "config.yaml").read_text().replace("steps: 100000", f"steps: {steps + 5}")
    (folder / "config.yaml").write_text(config)
    done = command("resume=out", cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stdout
    printed = ((tmp_path / "printed.txt").read_text() + done.stdout + done.stderr).lower()
    assert not any(word in printed for word in ("enter your choice", "api key", "wandb login"))
    wait_for_tracker(folder, "wandb", steps + 5)
    records = wandb_records(folder)
    assert len({record["run"]["run_id"] for record in records if record["type"] == "run"}) == 1
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 2
    losses = [row["outer_loss"] for row in history(records) if "outer_loss" in row]
    assert losses == [row["outer_loss"] for row in rows(folder)]
    assert len(losses) == steps + 5


@pytest.mark.slow
def test_a_job_of_a_sweep_is_sent_later_once_in_the_group_of_the_sweep(tmp_path):
    folder = tmp_path / "mine" / "job"
    written(folder, losses=[3.0, 2.0, 1.0])
    sweeps.mark(folder.parent, [])
    for _ in range(2):  # the second time there is nothing left to send
        done = module("track", "mine/job", "wandb", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    records = wandb_records(folder)
    assert {record["run"]["run_group"] for record in records if record["type"] == "run"} == {"mine"}
    assert [row["outer_loss"] for row in history(records) if "outer_loss" in row] == [3.0, 2.0, 1.0]


BAD = ("+tracker.bad._target_=faulty.Tracker", "allow_targets=[faulty]")


def test_a_failing_tracker_is_told_of_once_and_stops_nothing(tmp_path):
    overrides = ("task=ridge", "steps=2000", "hydra.run.dir=out", "+tracker.bad.raises=true")
    done = here(*BAD, *overrides, cwd=tmp_path, **HERE)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "out")) == 2000
    printed = " ".join((done.stdout + done.stderr).split())
    for words in ("tracker bad failed, the run continues", "the server is gone"):
        assert printed.count(words) == 1
    assert "python -m bilevel.track" in printed


def test_a_tracker_that_is_not_there_is_refused(tmp_path):
    assert "tracker.bad._target_" in error_of(here(*BAD, "tracker.bad._target_=faulty.Missing", cwd=tmp_path))


def test_a_tracker_that_blocks_is_left_behind(tmp_path, monkeypatch, caplog):
    for name, value in HERE.items():
        monkeypatch.setenv(name, value)
    written(tmp_path / "out", *BAD, "+tracker.bad.seconds=3600", state="done")
    begun = time.monotonic()
    followers = following.Followers(tmp_path / "out", ["bad"], patience=1)
    with followers:
        pass
    assert 1 <= time.monotonic() - begun < 10
    assert "tracker bad is still sending, and continues on its own for at most 10 minutes" in caplog.text
    (left,) = followers.left
    assert left.poll() is None
    left.kill()
    left.wait()


def test_a_run_is_sent_by_one_process_at_a_time(tmp_path):
    written(tmp_path)
    (tmp_path / "trackers").mkdir()
    tracker, sent = faulty.Tracker(), []
    tracker.log = sent.append
    with (tmp_path / "trackers" / "list.lock").open("wb") as lock:
        assert _files.lock(lock.fileno())
        over = threading.Event()
        over.set()
        second = threading.Thread(target=following.follow, args=(tracker, "list", tmp_path, over))
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert sent == []
    second.join(60)
    assert sent == [{"step": 0, "outer_loss": 1.0}]


def test_a_tracker_that_does_not_end_stops_itself():
    code = "import threading, time; from bilevel import track;"
    code += "threading.Thread(target=track._wait_for_end, args=(threading.Event(), 0.001), daemon=True).start(); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "stopped: still sending 0.001 minutes after the run ended" in done.stderr


@pytest.mark.parametrize(
    ("folder", "tracker", "words"), [("out", "wandbb", "did you mean wandb"), ("no", "wandb", "no run")]
)
def test_what_cannot_be_sent_is_refused(folder, tracker, words, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("steps: 3\n")
    done = module_here("track", folder, tracker, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
