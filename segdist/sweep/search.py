"""Who proposes the next trial: a list that was drawn beforehand, or Optuna's TPE, which learns from the trials before."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

from segdist.config.sweep import Sweep
from segdist.sweep.ledger import FAILED, SUCCEEDED, Trial
from segdist.sweep.space import Point, Space, grid, is_active, name_of, points, quantised

_DEFAULT_TRIALS = 20
_REPEATS = 20  # that TPE may propose before the space is held to be exhausted


def num_trials(sweep: Sweep) -> int:
    """How many trials a sweep has at most."""
    if sweep.budget.num_trials is not None:
        return sweep.budget.num_trials
    only_grids = all(dimension.kind == "grid" for dimension in sweep.space.values())
    return len(grid(sweep.space)) if only_grids else _DEFAULT_TRIALS


def propose(sweep: Sweep, trials: Sequence[Trial]) -> Point | None:
    """What to try after these trials; None when there is nothing more."""
    if len(trials) >= num_trials(sweep):
        return None
    if sweep.searcher == "random":
        return next(itertools.islice(points(sweep.space, sweep.seed), len(trials), None), None)
    return _tpe(sweep, trials)


def known_beforehand(sweep: Sweep, sample: int = 100) -> list[Point]:
    """The points that a sweep will try, or where it learns, points such as it may try: to be checked before the first."""
    num = num_trials(sweep) if sweep.searcher == "random" else sample
    return list(itertools.islice(points(sweep.space, sweep.seed), num))


def _tpe(sweep: Sweep, trials: Sequence[Trial]) -> Point | None:
    """Bergstra et al. 2011, in Optuna. The study is made anew from the trials each time: it has no state to lose."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=sweep.seed + len(trials), constant_liar=True)
        study = optuna.create_study(direction="minimize" if sweep.metric == "loss" else "maximize", sampler=sampler)
        for trial in trials:
            study.add_trial(_told(sweep, trial))
        seen = {name_of(trial.values) for trial in trials}
        for _ in range(_REPEATS):
            point = _ask(study.ask(), sweep.space)
            if name_of(point) not in seen:
                return point
    return None


def _ask(trial: Any, space: Space) -> Point:
    point: Point = {}
    for key, dimension in space.items():
        if not is_active(dimension, point):
            continue
        if dimension.kind == "choice":  # by number, for Optuna takes no lists
            point[key] = dimension.values[trial.suggest_categorical(key, list(range(len(dimension.values))))]
        elif dimension.kind == "quniform":
            least, most, step = dimension.values
            point[key] = quantised(dimension, trial.suggest_float(key, least, most, step=step))
        else:
            point[key] = trial.suggest_float(key, *dimension.values, log=dimension.kind == "loguniform")
    return point


def _told(sweep: Sweep, trial: Trial) -> Any:
    """A trial in Optuna's words: a stopped one counts with what it had reached, a running one as not promising."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import TrialState

    params: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for key, value in trial.values.items():
        dimension = sweep.space[key]
        if dimension.kind == "choice":
            params[key] = list(dimension.values).index(value)
            kinds[key] = CategoricalDistribution(list(range(len(dimension.values))))
        elif dimension.kind == "quniform":
            params[key], (least, most, step) = float(value), dimension.values
            kinds[key] = FloatDistribution(least, most, step=step)
        else:
            params[key], (least, most) = value, dimension.values
            kinds[key] = FloatDistribution(least, most, log=dimension.kind == "loguniform")
    heard = {score.step: value for score in trial.scores if (value := getattr(score, sweep.metric)) is not None}
    state = TrialState.PRUNED if heard else TrialState.FAIL
    if trial.state == SUCCEEDED and heard:
        state = TrialState.COMPLETE
    elif trial.state not in (SUCCEEDED, "STOPPED", FAILED):
        state = TrialState.RUNNING
    value = trial.best(sweep.metric) if state == TrialState.COMPLETE else None
    return optuna.trial.create_trial(
        state=state, value=value, params=params, distributions=kinds, intermediate_values=heard
    )
