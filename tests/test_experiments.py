"""Every figure in its small size, by the command of its README, drawn and held against what is expected of it."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import OPTIMIZED, command, here

import bilevel as bl
from bilevel import datasets
from experiments.implicit_diff_2021.distillation import DistilledAccuracy
from experiments.implicit_diff_2021.molecular_dynamics import Sensitivities, _settled_by
from experiments.implicit_diff_2021.svm_runtime import SVMRuntime
from experiments.penalties.study import Penalties

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "experiments" / "implicit_diff_2021"
FIGURES = sorted(path.stem for path in (ROOT / "configs" / "experiment" / "implicit_diff_2021").glob("*.yaml"))


def plot(folder):
    command = [sys.executable, str(PAPER / "plot.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)


LONG = (
    "svm_runtime",
    "dictionary_learning",
    "distillation",
    "molecular_dynamics",
)  # other tests run their studies on less


@pytest.mark.parametrize(
    "figure", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in FIGURES]
)
def test_small_sizes_give_what_is_expected_and_are_drawn(figure, tmp_path, monkeypatch, capsys):
    overrides = (f"experiment=implicit_diff_2021/{figure}", "size=small", "hydra.run.dir=out")
    done = command(*overrides, cwd=tmp_path, **OPTIMIZED)
    assert done.returncode == 0, done.stderr
    drawn = plot(tmp_path / "out")
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    lines = drawn.stdout.splitlines()
    wanted = json.loads((PAPER / "expected.json").read_text(encoding="utf-8"))[figure]
    assert len(lines) == 1 + len(wanted.get("both", {})) + len(wanted.get("small", {}))
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert (tmp_path / "out" / f"{figure}.svg").stat().st_size > 0
    assert (tmp_path / "out" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    if figure == "molecular_dynamics":
        run = bl.load(tmp_path / "out")
        assert run.arrays["sensitivity"]["implicit"].shape == (3, 16)
        assert 0 <= run.result["summary"]["share_settled"]["implicit"]["800"] <= 1
        _a_wrong_number_is_told(tmp_path / "out", monkeypatch, capsys)


def _a_wrong_number_is_told(folder, monkeypatch, capsys):
    """The run of the packing held against numbers that it does not have."""
    wrong = {
        "largest force at the last step": {"value": 1.0, "rtol": 0.1, "source": "nowhere"},
        "share settled early, implicit less unrolled": {"at_most": -2, "source": "nowhere"},
        "no such number": {"at_least": 0, "source": "nowhere"},
    }
    (folder / "expected.json").write_text(json.dumps({"molecular_dynamics": {"both": wrong}}), encoding="utf-8")
    monkeypatch.syspath_prepend(PAPER)
    plot = importlib.import_module("plot")
    monkeypatch.setattr(plot, "EXPECTED", folder / "expected.json")
    assert plot.main([str(folder)]) == 1
    told = capsys.readouterr().out
    assert [name for name in wrong if f"WRONG molecular_dynamics: {name}" not in told] == []


def test_every_figure_has_expectations_that_name_their_source():
    wanted = json.loads((PAPER / "expected.json").read_text(encoding="utf-8"))
    assert sorted(wanted) == FIGURES
    rules = [rule for figure in wanted.values() for size in figure.values() for rule in size.values()]
    assert len(rules) > 30
    for rule in rules:
        assert rule["source"]
        assert len({"value", "at_least", "at_most"} & set(rule)) == 1


def test_every_figure_has_its_row_and_its_picture():
    page = (PAPER / "README.md").read_text(encoding="utf-8")
    for figure in FIGURES:
        assert f"experiment=implicit_diff_2021/{figure}" in page
        assert f"({figure}.png)" in page
        assert (PAPER / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("readings", "step"), [([1.5, 1.2, 1.004], 30), ([1.0, 1.0, 1.0], 10), ([1, 1, np.nan], None), ([1, 1.1, 1], 30)]
)
def test_a_way_has_settled_once_all_further_readings_are_right(readings, step):
    assert _settled_by(np.array([10, 20, 30]), np.array(readings), 1.0, 0.01) == step


def test_readings_off_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"study\.steps must be a multiple of study\.every, got 100 and 30"):
        Sensitivities(steps=100, every=30)


def test_unrolled_and_implicit_sensitivities_agree_at_rest(x64):
    rows = []
    study = Sensitivities(particles=24, starts=1, steps=1000, every=100)
    findings = study.run(0, "float64", rows.append)
    reference = rows[0]["reference"]
    for way in ("implicit", "unrolled_constant_steering"):
        assert findings.arrays["sensitivity"][way][0, -1] == pytest.approx(reference, rel=1e-6)
    assert findings.arrays["sensitivity"]["unrolled"][0, -1] == pytest.approx(reference, rel=1e-2)
    assert findings.arrays["sensitivity"]["unrolled"][0, 0] != pytest.approx(reference, rel=1e-2)


def test_distillation_takes_its_rows_in_file_order(tmp_path):
    table = datasets.make_images(40, 4, 3, 0)
    np.savez(tmp_path / "images.npz", X=table.features, y=table.targets)
    study = DistilledAccuracy(data=str(tmp_path / "images.npz"), train=25, validation=5, test=10)
    train, test = study._load(0)
    scale = np.abs(table.features[:25]).max()
    np.testing.assert_allclose(train.features, table.features[:25] / scale, rtol=1e-6)
    np.testing.assert_allclose(test.features, table.features[-10:] / scale, rtol=1e-6)
    with pytest.raises(datasets.DataError, match=r"at most its 40 rows, got 35 \+ 10"):
        DistilledAccuracy(data=str(tmp_path / "images.npz"), train=35, test=10)._load(0)


def test_runtimes_of_the_svm_are_of_solves_that_agree(x64):
    rows = []
    study = SVMRuntime(
        features=[60],
        samples=30,
        validation_samples=15,
        kinds=["plain", "conditional"],
        unrolled_steps={"projected_gradient": 100},
        outer_steps=5,
        unrolled_outer_steps=2,
        repeats=1,
    )
    findings = study.run(0, "float64", rows.append)
    assert len(rows) == study.count
    losses = [row["final_loss"] for row in rows if row["differentiation"] == "implicit"]
    assert max(losses) - min(losses) < 1e-3 * min(losses)
    assert all(row["failures"] == 0 for row in rows)
    assert findings.summary["loss_spread"]


@pytest.mark.slow
def test_penalties_by_gradient_are_those_of_grids_and_one_per_feature_beats_one_for_all(tmp_path):
    done = here("experiment=penalties", "size=small", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = bl.load(tmp_path / "out")
    summary = run.result["summary"]
    assert summary["lasso"]["score_off"] < 1e-3
    for name in ("ridge", "logistic"):
        found = summary[name]
        assert found["validation_loss"] < found["single_validation_loss"]
        assert found["test_score_low"] < found["test_score"] < found["test_score_high"]
    assert all(row.get("failures", 0) == 0 for row in run.metrics)


@pytest.mark.slice(5)
@pytest.mark.parametrize("seed", [1, 0, 2, 3, 4])
def test_the_lasso_of_gravier_gets_the_penalty_and_the_score_of_lasso_cv(x64, seed):
    path = ROOT.parent / "shared" / "data" / "gravier.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    row = Penalties(data=str(path))._lasso(seed, "float64", lambda row: None)
    assert row["failures"] == 0
    assert row["penalty"] == pytest.approx(row["fine_penalty"], rel=0.01)
    for grid in ("grid", "fine"):
        assert row["score"] == pytest.approx(row[f"{grid}_score"], rel=0.01)
