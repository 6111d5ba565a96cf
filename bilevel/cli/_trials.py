"""Optuna sweeps that go on where they stopped."""

from __future__ import annotations

import logging
import math

from omegaconf import DictConfig, open_dict


def go_on(sweeper: DictConfig) -> None:
    """Lower the number of trials of an Optuna sweeper by the successful ones that its storage holds, and move its seed on.

    Hydra's sweeper otherwise asks for all of them again, with the seed that made the first ones.
    """
    if not sweeper.get("storage"):
        return
    import optuna

    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage)
    except KeyError:
        return
    completed = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    done = sum(trial.value is not None and math.isfinite(trial.value) for trial in completed)
    with open_dict(sweeper):
        sweeper.n_trials = max(0, sweeper.n_trials - done)
        if sweeper.sampler.get("seed") is not None:
            sweeper.sampler.seed += done
