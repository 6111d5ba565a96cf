"""A study: a measurement over many runs, which starts over if it is interrupted."""

import time
from typing import Any

from bilevel import __version__, config
from bilevel.cli import _jax
from bilevel.cli._session import Session
from bilevel.cli.job import Job
from bilevel.runs import console
from bilevel.study import Study


def run(job: Job, session: Session) -> None:
    """Build and run the study, and write each row as soon as it is known."""
    cfg = job.cfg
    study: Study = config.build(cfg.study, cfg.allow_targets)
    session.open()
    session.files.rows.keep(0)
    console.say(f"bilevel {__version__} · {study.title}")
    console.say(_jax.header(cfg))
    session.follow()
    begun = time.perf_counter()
    with console.Bar(study.count) as bar:

        def report(row: dict[str, Any]) -> None:
            if session.stop.reason():
                raise KeyboardInterrupt
            row = {**row, "seconds_so_far": time.perf_counter() - begun}
            session.log(row)
            bar.advance(row)

        findings = study.run(cfg.seed, cfg.precision, report)
    seconds = time.perf_counter() - begun
    result = {"study": type(study).__name__, "summary": findings.summary, "seconds": seconds, **_jax.origin(cfg)}
    session.files.write_result(result, arrays=findings.arrays)
    session.files.write_status("done")
    console.show_findings(findings.summary, seconds, job.folder)
