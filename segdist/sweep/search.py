"""The searcher, which proposes the next trial: seeded random points, or Optuna's TPE, which learns from finished trials."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

from segdist.config.sweep import Sweep
from segdist.sweep.ledger import FAILED, STOPPED, SUCCEEDED, Trial
from segdist.sweep.space import Point, Space, grid, is_active, point_key, points, quantised

_DEFAULT_TRIALS = 20
_REPEATS = 20  # known points that TPE may propose in a row before the space counts as exhausted


def num_trials(sweep: Sweep) -> int:
    """Return the maximum number of trials of a sweep."""
    if sweep.budget.num_trials is not None:
        return sweep.budget.num_trials
    only_grids = all(dimension.kind == "grid" for dimension in sweep.space.values())
    return len(grid(sweep.space)) if only_grids else _DEFAULT_TRIALS


def propose(sweep: Sweep, trials: Sequence[Trial]) -> Point | None:
    """Return the next point to try after `trials`, or None if the budget or the space is exhausted."""
    if len(trials) >= num_trials(sweep):
        return None
    if sweep.searcher == "random":
        return next(itertools.islice(points(sweep.space, sweep.seed), len(trials), None), None)
    return _tpe(sweep, trials)


def points_to_check(sweep: Sweep, sample: int = 100) -> list[Point]:
    """Return all points the sweep will try. For a searcher that learns, return `sample` random points of the space."""
    num = num_trials(sweep) if sweep.searcher == "random" else sample
    return list(itertools.islice(points(sweep.space, sweep.seed), num))


def _tpe(sweep: Sweep, trials: Sequence[Trial]) -> Point | None:
    """Propose a point by TPE (Bergstra et al. 2011). The Optuna study is rebuilt from the trials at each call."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=sweep.seed + len(trials), constant_liar=True)
        study = optuna.create_study(direction="minimize" if sweep.metric == "loss" else "maximize", sampler=sampler)
        for trial in trials:
            study.add_trial(_optuna_trial(sweep, trial))
        seen = {point_key(trial.values) for trial in trials}
        for _ in range(_REPEATS):
            point = _suggest(study.ask(), sweep.space)
            if point_key(point) not in seen:
                return point
    return None


def _suggest(trial: Any, space: Space) -> Point:
    """Draw a point with the suggest methods of an Optuna trial."""
    point: Point = {}
    for key, dimension in space.items():
        if not is_active(dimension, point):
            continue
        if dimension.kind == "choice":  # by index, because Optuna's categories cannot be lists
            point[key] = dimension.values[trial.suggest_categorical(key, list(range(len(dimension.values))))]
        elif dimension.kind == "quniform":
            low, high, step = dimension.values
            point[key] = quantised(dimension, trial.suggest_float(key, low, high, step=step))
        else:
            point[key] = trial.suggest_float(key, *dimension.values, log=dimension.kind == "loguniform")
    return point


def _optuna_trial(sweep: Sweep, trial: Trial) -> Any:
    """Convert a trial. Stopped trials are pruned ones; for running trials TPE assumes a poor score (constant liar)."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import TrialState

    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for key, value in trial.values.items():
        dimension = sweep.space[key]
        if dimension.kind == "choice":
            params[key] = list(dimension.values).index(value)
            distributions[key] = CategoricalDistribution(list(range(len(dimension.values))))
        elif dimension.kind == "quniform":
            params[key], (low, high, step) = float(value), dimension.values
            distributions[key] = FloatDistribution(low, high, step=step)
        else:
            params[key], (low, high) = value, dimension.values
            distributions[key] = FloatDistribution(low, high, log=dimension.kind == "loguniform")
    scores = {score.step: value for score in trial.scores if (value := getattr(score, sweep.metric)) is not None}
    state = TrialState.PRUNED if scores else TrialState.FAIL
    if trial.state == SUCCEEDED and scores:
        state = TrialState.COMPLETE
    elif trial.state not in (SUCCEEDED, STOPPED, FAILED):
        state = TrialState.RUNNING
    value = trial.best(sweep.metric) if state == TrialState.COMPLETE else None
    return optuna.trial.create_trial(
        state=state, value=value, params=params, distributions=distributions, intermediate_values=scores
    )
