"""The command line: `python -m bilevel.run task=svm`. Compose, check, build, run, save."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bilevel import config

if TYPE_CHECKING:
    from bilevel.io.trackers import Tracker
    from bilevel.outer import Nested, Result
    from bilevel.tasks import Setup

_failure: list[Exception] = []


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 the run failed, 2 the configuration or the data cannot be used."""
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises; what to print is decided here
    try:
        _hydra_main()
        if _failure:
            raise _failure.pop()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except Exception as error:
        if traceback_wanted:
            raise
        from bilevel import _explain

        message, code = _explain.explain(error, sys.argv[1:])
        print(f"error: {message}\n(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
        sys.exit(code)


@hydra.main(version_base="1.3", config_path=str(config.config_dir()), config_name="config")
def _hydra_main(cfg: DictConfig) -> float:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        config.check(cfg)
        return _run(cfg, folder)
    except Exception as error:
        _remove_empty(folder)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _failure.append(error)  # raised from here, Hydra would print a line of its own first
        return float("inf")


def _run(cfg: DictConfig, folder: Path) -> float:
    _configure_jax(cfg)
    return _run_task(cfg, folder) if cfg.study is None else _run_study(cfg, folder)


def _run_study(cfg: DictConfig, folder: Path) -> float:
    from bilevel.io import RunFolder, console

    idle = [key for key in _overridden() if key not in ("experiment", "study", "size", *config.GENERAL, "tracker")]
    if idle:
        raise config.ConfigError(
            f"{idle[0]}: a study has settings of its own, study.*, and this one would change nothing"
        )
    study = config.build(cfg.study)
    used = OmegaConf.masked_copy(cfg, ["study", "size", "tracker", *config.GENERAL])
    with contextlib.closing(RunFolder(folder)) as files, console.logging_to(files.log_file):
        files.write_config(OmegaConf.to_yaml(used, resolve=True))
        console.say(f"bilevel {_version()} · {study.title}")
        _say_machine(cfg)
        begun = time.perf_counter()
        with _trackers(used, folder) as (trackers, finish), console.Bar(study.count) as bar:

            def report(row: dict[str, Any]) -> None:
                row = {**row, "seconds_so_far": time.perf_counter() - begun}
                files.log_row(row)
                bar.advance(row)
                for tracker in trackers:
                    tracker.log(row)

            findings = study.run(cfg.seed, cfg.precision, report)
            seconds = time.perf_counter() - begun
            result = {"study": type(study).__name__, "summary": findings.summary, "seconds": seconds, **_origin(cfg)}
            files.write_result(result, arrays=findings.arrays)
            finish(result)
        console.show_findings(findings.summary, seconds, folder)
    return 0.0


def _overridden() -> list[str]:
    """The top-level keys and groups that the command line sets."""
    return [override.lstrip("+~").partition("=")[0].split(".")[0] for override in HydraConfig.get().overrides.task]


def _run_task(cfg: DictConfig, folder: Path) -> float:
    from bilevel import outer
    from bilevel.io import RunFolder, console

    setup = config.build(cfg.task).setup(cfg.seed, cfg.precision)
    algorithm = _build_algorithm(cfg, setup)
    state = algorithm.init(setup.hparams, setup.params, setup.data)

    with contextlib.closing(RunFolder(folder)) as files, console.logging_to(files.log_file):
        files.write_config(OmegaConf.to_yaml(cfg, resolve=True))
        _show_header(cfg, setup)
        with _trackers(cfg, folder) as (trackers, finish), console.Bar(cfg.steps) as bar:

            def report(row: dict[str, Any], _: Any) -> None:
                files.log_row(row)
                bar.update(row)
                for tracker in trackers:
                    tracker.log(row)

            found = outer.run_loop(
                algorithm,
                state,
                setup.data,
                steps=cfg.steps,
                gtol=cfg.gtol,
                patience=cfg.patience,
                time_limit=cfg.time_limit,
                on_failure=cfg.on_failure,
                callback=report,
            )
            result = _result(cfg, setup, found)
            files.write_result(result, hparams=found.hparams, params=found.params)
            for name, figure in setup.pictures(found.hparams, found.params).items():
                files.write_picture(name, figure)
            finish(result)
        console.show_result(result, found.history[0]["outer_loss"], setup.physical(setup.hparams), folder)
    return found.outer_loss


def _configure_jax(cfg: DictConfig) -> None:
    """Set platform and precision, both explicitly: a sweep runs several configurations in one process."""
    import jax

    jax.config.update("jax_enable_x64", cfg.precision == "float64")
    jax.config.update("jax_platforms", "cuda" if cfg.platform == "gpu" else "cpu")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise config.ConfigError(
            f"platform={cfg.platform}: JAX finds no such device here; install jax[cuda13] on a machine with a GPU, "
            f"or use platform=cpu"
        ) from error


def _build_algorithm(cfg: DictConfig, setup: Setup) -> Nested:
    problem = setup.problem
    if cfg.optimality:
        problem = dataclasses.replace(problem, optimality=config.build(cfg.optimality))
    parts = {name: config.build(cfg[name]) for name in ("inner", "hypergrad", "optimizer")}
    return config.build(cfg.outer)(problem, **parts)


@contextlib.contextmanager
def _trackers(cfg: DictConfig, folder: Path) -> Iterator[tuple[list[Tracker], Any]]:
    """Started trackers, and a function that hands them the result; all are finished, whatever happens."""
    built = [config.build(node) for node in (cfg.tracker or {}).values()]
    begun: list[Tracker] = []
    results: list[dict[str, Any]] = []
    try:
        for tracker in built:
            plain = OmegaConf.to_container(cfg, resolve=True)
            assert isinstance(plain, dict)
            tracker.start(folder, plain)
            begun.append(tracker)
        yield begun, results.append
    finally:
        for tracker in begun:
            tracker.finish(results[-1] if results else None)


def _show_header(cfg: DictConfig, setup: Setup) -> None:
    from bilevel.io.console import say

    choices = HydraConfig.get().runtime.choices
    estimator = f"{choices['hypergrad']} ({choices['linear']})" if "linear" in cfg.hypergrad else choices["hypergrad"]
    say(f"bilevel {_version()} · {setup.title}")
    say("  " + " · ".join(f"{count} {name}" for name, count in setup.sizes.items()))
    say(
        f"  inner {choices['inner']} · hypergradient {estimator} · optimizer {choices['optimizer']} · {cfg.steps} steps"
    )
    _say_machine(cfg)


def _say_machine(cfg: DictConfig) -> None:
    import jax

    from bilevel.io.console import say

    device = jax.devices()[0]
    say(f"  {device.platform} ({device.device_kind}) · {cfg.precision} · jax {jax.__version__} · seed {cfg.seed}")


def _version() -> str:
    from bilevel import __version__

    return __version__


def _result(cfg: DictConfig, setup: Setup, found: Result) -> dict[str, Any]:
    return {
        "task": HydraConfig.get().runtime.choices["task"],
        "outer_loss": found.outer_loss,
        "hparams": setup.physical(found.hparams),
        "metrics": setup.metrics(found.hparams, found.params),
        "status": found.status,
        "steps": found.steps,
        "best_step": found.best_step,
        "seconds": found.history[-1]["seconds"],
        **_origin(cfg),
    }


def _origin(cfg: DictConfig) -> dict[str, Any]:
    """With what a result was computed."""
    import platform
    from importlib.metadata import version

    import jax

    versions = {name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")}
    return {
        "versions": {"python": platform.python_version(), "bilevel": _version(), **versions},
        "device": jax.devices()[0].device_kind,
        "seed": cfg.seed,
    }


def _remove_empty(folder: Path) -> None:
    """Hydra makes the folder before the configuration can be checked: leave none behind that nothing was written to.

    Only below `runs`, the default place; a folder that the user named stays.
    """
    parts = folder.relative_to(Path.cwd()).parts if folder.is_relative_to(Path.cwd()) else ()
    if parts[:1] == ("runs",):
        with contextlib.suppress(OSError):
            for depth in range(len(parts), 0, -1):
                Path(*parts[:depth]).rmdir()


if __name__ == "__main__":
    main()
