"""Tune's schedulers, as a sweep file asks for them, with what an earlier launch of the sweep had told them."""

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
from segdist.sweep.space import Space, confined


def judge(sweep: Sweep, num_steps: int, every_steps: int, trials: list[Trial]) -> TrialScheduler:
    """The scheduler of a sweep whose trials have `num_steps`, evaluated every so many; `trials` have been judged before."""
    asked, mode = sweep.scheduler, "min" if sweep.metric == "loss" else "max"
    common: dict[str, Any] = {"time_attr": "step", "metric": sweep.metric, "mode": mode}
    if asked.name == "asha":
        grace = min(asked.grace_steps or every_steps, num_steps)
        asha = ASHAScheduler(
            **common,
            max_t=num_steps,
            grace_period=grace,
            reduction_factor=asked.reduction_factor,
            stop_last_trials=False,
        )
        _remind(asha, sweep.metric, trials)
        return asha
    if asked.name == "hyperband":
        return HyperBandScheduler(**common, max_t=num_steps, reduction_factor=asked.reduction_factor)
    if asked.name == "pbt":
        return Population(sweep, common, asked.interval_steps or every_steps, trials)
    return FIFOScheduler()


def _remind(asha: ASHAScheduler, metric: str, trials: list[Trial]) -> None:
    """Tells ASHA of all evaluations of an earlier launch, in their order, so that its rungs are what they were."""
    told = [(score.time, trial.id, score) for trial in trials for score in trial.scores]
    for trial in trials:
        asha.on_trial_add(None, SimpleNamespace(trial_id=trial.id))
    for _, id, score in sorted(told, key=lambda one: one[:2]):
        if getattr(score, metric) is not None:
            asha.on_trial_result(
                None, SimpleNamespace(trial_id=id), {"step": score.step, metric: getattr(score, metric)}
            )


class Population(PopulationBasedTraining):
    """PBT whose members keep what they had reached when the sweep was launched before."""

    def __init__(self, sweep: Sweep, common: dict[str, Any], interval: int, trials: list[Trial]) -> None:
        self._metric_name, self._known = sweep.metric, {trial.id: trial for trial in trials}
        drawn = sweep.seed + sum(len(trial.scores) for trial in trials)
        random.seed(drawn)  # Tune draws from the global generators
        np.random.seed(drawn)
        super().__init__(
            **common,
            perturbation_interval=interval,
            hyperparam_mutations=_mutations(sweep.space),
            quantile_fraction=sweep.scheduler.quantile,
            resample_probability=sweep.scheduler.resample_prob,
            custom_explore_fn=lambda values: {
                key: confined(sweep.space[key], value) if key in sweep.space else value for key, value in values.items()
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
    from ray import tune

    made: dict[str, Any] = {}
    for key, dimension in space.items():
        least, *most = dimension.values
        if dimension.kind == "choice":
            made[key] = list(dimension.values)
        elif dimension.kind == "loguniform":
            made[key] = tune.loguniform(least, most[0])
        elif dimension.kind == "quniform":
            made[key] = tune.quniform(least, most[0], most[1])
        else:
            made[key] = tune.uniform(least, most[0])
    return made
