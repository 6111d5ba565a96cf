"""The pages that people look at: the report of a run, of a sweep, and the dashboard, in a real browser."""

import html
import json
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
from commands import going_on, here, module_here, rows

from bilevel.pages import _html, page_of
from bilevel.runs import sweeps

CHROMIUM = shutil.which("chromium")
browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
HOSTILE = "<script>alert('$x$')</script>&\"x\""


def seen(address):
    """The text of a page as Chromium makes it."""
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom")
    done = subprocess.run([CHROMIUM, *options, address], capture_output=True, text=True, timeout=120)
    body = re.sub(r"<(script|style).*?</\1>", "", done.stdout[done.stdout.index("<body") :], flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a picture."""
    cwd = tmp_path_factory.mktemp("run")
    done = here("task=distillation", "steps=4", "hydra.run.dir=out", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "out"


@pytest.fixture
def hostile(run, tmp_path):
    """A run whose texts are markup."""
    folder = tmp_path / "a<b>"
    shutil.copytree(run, folder)
    found = json.loads((folder / "result.json").read_text())
    found["metrics"][HOSTILE] = 1.0
    found["hparams"] = {HOSTILE: [1.0, 2.0]}
    found["start"] = {HOSTILE: [1.0, 1.0]}
    (folder / "result.json").write_text(json.dumps(found))
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"error": HOSTILE, "state": "failed"}))
    for name in ("config.yaml", "log.txt"):
        with (folder / name).open("a") as file:
            file.write(f"\n# {HOSTILE}\n")
    return folder


def test_the_report_is_one_file_that_loads_nothing(run):
    done = module_here("report", "out", cwd=run.parent)
    assert (done.returncode, done.stdout) == (0, "out/report.html\n")
    page = (run / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "default-src 'none'" in page
    assert page.count("data:image/svg+xml;base64,") == 2  # progress, and the pixels
    assert page.count("data:image/png;base64,") == 1


@browser
def test_the_report_shows_the_last_loss(run):
    (run / "report.html").write_text(page_of(run))
    text = seen((run / "report.html").as_uri())
    assert f"last outer loss {rows(run)[-1]['outer_loss']:.6g}" in text
    for words in ("done", "all steps are done", "solves 4 converged", "Hessian-vector products", "_target_", "jax"):
        assert words in text


def test_everything_is_escaped(hostile):
    page = page_of(hostile)
    assert "<script>alert" not in page
    assert page.count(html.escape(HOSTILE)) >= 6
    assert "a&lt;b&gt;" in page


@browser
def test_markup_in_a_run_is_shown_as_text(hostile):
    (hostile / "report.html").write_text(page_of(hostile))
    assert seen((hostile / "report.html").as_uri()).count(HOSTILE) >= 5


def test_a_run_at_its_first_step_has_a_page(run, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder)
    assert "running" in page_of(folder)
    (folder / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0])
    assert "first outer loss" in page_of(folder)


def test_an_error_bound_and_its_verdict_are_shown_where_a_run_has_them(run, tmp_path):
    shutil.copytree(run, tmp_path / "out")
    found = json.loads((run / "result.json").read_text()) | {"error_bound": 0.25, "verdict": "trustworthy"}
    (tmp_path / "out" / "result.json").write_text(json.dumps(found))
    page = page_of(tmp_path / "out")
    assert "error bound" in page
    assert "trustworthy" in page
    assert "error bound" not in page_of(run)


def test_a_folder_without_a_run_is_refused(tmp_path):
    for page, argument, words in (
        ("report", ".", "config.yaml is missing"),
        ("report", "nowhere", "nowhere holds no run"),
        ("dashboard", "--no-open", "no run in it"),
    ):
        done = module_here(page, argument, cwd=tmp_path)
        assert done.returncode == 3
        assert done.stderr.startswith("error: ")
        assert words in done.stderr


@pytest.fixture(scope="module")
def swept(tmp_path_factory, run):
    """The folder of a sweep, made of copies of one run and of one job that failed."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    sweeps.mark(folder, ["task=distillation"])
    found = json.loads((run / "result.json").read_text())
    status = json.loads((run / "status.json").read_text())
    for number, (rate, kind) in enumerate([("0.1", "sgd"), ("1", "sgd"), ("10", "adam"), ("100", "adam")]):
        job = folder / f"job{number}"
        shutil.copytree(run, job)
        (job / "result.json").write_text(json.dumps(found | {"outer_loss": 1.5 - number / 10}))
        record = status | {"overrides": [f"rate={rate}", f"optimizer={kind}", "steps=4"]}
        failed = {"state": "failed", "error": f"it failed {HOSTILE}"} if number == 3 else {}
        (job / "status.json").write_text(json.dumps(record | failed))
    return folder


def test_a_sweep_has_a_table_curves_and_a_response_for_each_key(swept):
    page = page_of(swept)
    assert page.count("data:image/svg+xml;base64,") == 3  # curves, rate, optimizer
    assert "<script>alert" not in page
    for words in ("3 done, 1 failed", "rate=10 optimizer=adam", "best outer loss", "1.3"):
        assert words in page


@browser
def test_a_click_sorts_the_table(swept):
    click = "for (const h of document.querySelectorAll('.sortable th')) if (h.textContent === 'outer_loss') h.click();"
    page = page_of(swept)
    hashed = re.search(r"script-src '(sha256-[^']+)'", page).group(1)
    allowed = page.replace(f"'{hashed}'", "'unsafe-inline'").replace("</body>", f"<script>{click}</script></body>")
    (swept / "clicked.html").write_text(allowed)
    text = seen((swept / "clicked.html").as_uri())
    places = [text.index(f"job{number} ") for number in (2, 1, 0)]
    assert places == sorted(places)


def test_texts_are_escaped_by_construction():
    assert _html.element("p", HOSTILE, class_=HOSTILE).count(html.escape(HOSTILE)) == 2
    assert _html.element("p", _html.element("b", "x")) == "<p><b>x</b></p>"


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def dashboard(run):
    """A dashboard over the folder that holds the run: its address, and what it printed."""
    port = free_port()
    command = [sys.executable, "-m", "bilevel.dashboard", ".", "--no-open", "--port", str(port)]
    with going_on(command, cwd=run.parent, until="Ctrl-C ends") as printed:
        yield f"http://127.0.0.1:{port}", printed


@browser
def test_the_dashboard_shows_the_last_loss(dashboard, run):
    address, printed = dashboard
    text = seen(f"{address}/media")
    assert f"outer_loss {json.loads((run / 'result.json').read_text())['outer_loss']:.6g}" in text
    assert "1 runs" in printed.read_text()
    assert "token" not in printed.read_text()


@browser
def test_the_dashboard_follows_what_is_written(dashboard, run):
    address, _ = dashboard
    shutil.copytree(run, run.parent / "later")
    deadline = time.monotonic() + 60
    while "later" not in seen(f"{address}/runs"):
        assert time.monotonic() < deadline
