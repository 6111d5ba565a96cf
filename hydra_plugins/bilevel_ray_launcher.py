"""A Hydra launcher on Ray core: `hydra/launcher=ray_core`. It joins the cluster at `address`, or starts one on this machine.

Hydra looks for launchers in the namespace package `hydra_plugins`, which therefore has no `__init__.py`. It executes this file
before the file is in `sys.modules`, so annotations must not be postponed here.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)


class RayLauncher(Launcher):
    """Runs each job as a Ray task in its own worker process, whose death does not affect the other jobs.

    Args:
      address: address of a cluster, or "auto" for the cluster that this machine is part of; None starts one here.
      num_cpus: CPUs of the cluster that is started here; None for all.
      job: resources for each job: `num_cpus`, `num_gpus`, `memory`, and the other options of `ray.remote`.
    """

    def __init__(self, address: str | None, num_cpus: int | None, job: Mapping[str, Any]) -> None:
        self._address, self._num_cpus, self._job = address, num_cpus, dict(job)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes before `launch`."""
        self._context, self._function, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, and return their results in the same order."""
        import ray.exceptions

        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        if not ray.is_initialized():
            here = {} if self._address else {"num_cpus": self._num_cpus, "include_dashboard": False}
            ray.init(address=self._address, configure_logging=False, log_to_driver=False, **here)
        remote = ray.remote(max_retries=0, max_calls=1, **self._job)(_execute)
        state, waiting = Singleton.get_state(), {}
        for index, overrides in enumerate(job_overrides):
            config = self._config_of(list(overrides), initial_job_idx + index)
            waiting[remote.remote(self._context, config, self._function, state, os.getcwd())] = (index, overrides)
        returns: dict[int, JobReturn] = {}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            index, overrides = waiting.pop(done)
            try:
                returns[index] = ray.get(done)
                outcome = "ended"
            except ray.exceptions.RayError as error:
                returns[index] = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
                returns[index].return_value = error
                outcome = f"its worker died: {type(error).__name__}"
            log.info("#%d %s: %s", initial_job_idx + index, " ".join(filter_overrides(overrides)), outcome)
        return [returns[index] for index in range(len(job_overrides))]

    def _config_of(self, overrides: list[str], number: int) -> DictConfig:
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        with open_dict(config):
            config.hydra.job.id = f"ray_{number}"
            config.hydra.job.num = number
        return config


def _execute(context: HydraContext, config: DictConfig, function: TaskFunction, state: Any, folder: str) -> JobReturn:
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    return run_job(
        hydra_context=context,
        task_function=function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


@dataclass
class RayConfig:
    """`hydra.launcher` under `hydra/launcher=ray_core`."""

    _target_: str = "hydra_plugins.bilevel_ray_launcher.RayLauncher"
    address: str | None = None
    num_cpus: int | None = None
    job: dict[str, Any] = field(default_factory=lambda: {"num_cpus": 1})


ConfigStore.instance().store(group="hydra/launcher", name="ray_core", node=RayConfig, provider="bilevel")
