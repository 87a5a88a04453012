"""Ray Tune's schedulers, built from a sweep file. A scheduler also learns the scores of earlier launches of the sweep."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from segdist.config.sweep import Sweep
from segdist.sweep.ledger import Trial
from segdist.sweep.space import Space, clip


def make_scheduler(sweep: Sweep, num_steps: int, every_steps: int, trials: list[Trial]) -> TrialScheduler:
    """Return the scheduler of a sweep.

    A trial has `num_steps` steps and is evaluated every `every_steps`. `trials` are the ones with scores from earlier
    launches.
    """
    settings, mode = sweep.scheduler, "min" if sweep.metric == "loss" else "max"
    common: dict[str, Any] = {"time_attr": "step", "metric": sweep.metric, "mode": mode}
    if settings.name == "asha":
        grace = min(settings.grace_steps or every_steps, num_steps)
        asha = ASHAScheduler(
            **common,
            max_t=num_steps,
            grace_period=grace,
            reduction_factor=settings.reduction_factor,
            stop_last_trials=False,
        )
        _replay(asha, sweep.metric, trials)
        return asha
    if settings.name == "hyperband":
        return HyperBandScheduler(**common, max_t=num_steps, reduction_factor=settings.reduction_factor)
    if settings.name == "pbt":
        return ResumablePBT(sweep, common, settings.interval_steps or every_steps, trials)
    return FIFOScheduler()


def _replay(asha: ASHAScheduler, metric: str, trials: list[Trial]) -> None:
    """Give ASHA all evaluations of earlier launches in their order, to restore its rungs."""
    scores = [(score.time, trial.id, score) for trial in trials for score in trial.scores]
    for trial in trials:
        asha.on_trial_add(None, SimpleNamespace(trial_id=trial.id))
    for _, id, score in sorted(scores, key=lambda one: one[:2]):
        if getattr(score, metric) is not None:
            asha.on_trial_result(
                None, SimpleNamespace(trial_id=id), {"step": score.step, metric: getattr(score, metric)}
            )


class ResumablePBT(PopulationBasedTraining):
    """Population-based training whose trials keep the scores of earlier launches."""

    def __init__(self, sweep: Sweep, common: dict[str, Any], interval: int, trials: list[Trial]) -> None:
        self._metric_name, self._known = sweep.metric, {trial.id: trial for trial in trials}
        seed = sweep.seed + sum(len(trial.scores) for trial in trials)
        random.seed(seed)  # Tune draws from the global generators
        np.random.seed(seed)
        super().__init__(
            **common,
            perturbation_interval=interval,
            hyperparam_mutations=_mutations(sweep.space),
            quantile_fraction=sweep.scheduler.quantile,
            resample_probability=sweep.scheduler.resample_prob,
            custom_explore_fn=lambda values: {
                key: clip(sweep.space[key], value) if key in sweep.space else value for key, value in values.items()
            },
            log_config=False,
        )

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        known = self._known.get(trial.trial_id)
        if known and known.scores:
            state = self._trial_state[trial]
            value = getattr(known.scores[-1], self._metric_name)
            state.last_perturbation_time = state.last_train_time = known.step
            state.last_score = None if value is None else self._metric_op * value


def _mutations(space: Space) -> dict[str, Any]:
    """Return the space as PBT's `hyperparam_mutations`."""
    from ray import tune

    mutations: dict[str, Any] = {}
    for key, dimension in space.items():
        low, *rest = dimension.values
        if dimension.kind == "choice":
            mutations[key] = list(dimension.values)
        elif dimension.kind == "loguniform":
            mutations[key] = tune.loguniform(low, rest[0])
        elif dimension.kind == "quniform":
            mutations[key] = tune.quniform(low, rest[0], rest[1])
        else:
            mutations[key] = tune.uniform(low, rest[0])
    return mutations
