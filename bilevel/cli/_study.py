"""A study: a measurement over many runs, which starts over if it is interrupted."""

from __future__ import annotations

import time
from typing import Any

from omegaconf import DictConfig

from bilevel import config
from bilevel.cli import _origin
from bilevel.cli._session import Session
from bilevel.cli.job import Ended, Job
from bilevel.runs import console
from bilevel.study import Study


def prepare(cfg: DictConfig) -> Study:
    """Build the study."""
    return config.build(cfg.study, cfg.allow_targets)


def run(job: Job, study: Study, session: Session, past: dict[str, Any]) -> Ended:
    """Measure, row by row."""
    cfg = job.cfg
    session.open()
    session.files.keep_rows(0)
    console.say(f"bilevel {_origin.version()} · {study.title}")
    console.say(_origin.machine(cfg))
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
        result = {
            "study": type(study).__name__,
            "summary": findings.summary,
            "seconds": seconds,
            **_origin.origin(cfg),
        }
        session.files.write_result(result, arrays=findings.arrays)
    session.end(result)
    console.show_findings(findings.summary, seconds, job.folder)
    return Ended(0.0)
