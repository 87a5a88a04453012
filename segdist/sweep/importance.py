"""Estimate how much each field of a sweep decides the score, by PED-ANOVA (Watanabe et al. 2023).

PED-ANOVA compares the distribution of a field's values among the best trials with that among all trials. It needs neither a
model of the scores nor evenly drawn values. It looks at one field at a time, so two fields that matter only in combination may
seem unimportant.
"""

from __future__ import annotations

import functools
import random
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from segdist.sweep.axes import Axis
from segdist.sweep.ledger import Trial, ranked

MIN_TRIALS = 10  # trials with a score that an estimate needs
_TOP_SHARE, _MIN_TOP_TRIALS = 0.2, 5  # which trials count as the best ones
_SHUFFLES = 20


class _ShuffledRanks:
    """An Optuna target that gives each trial another rank than its own."""

    def __init__(self, ranks: list[int]) -> None:
        self._ranks = ranks

    def __call__(self, trial: Any) -> float:
        return self._ranks[trial.number]


class Importance(NamedTuple):
    """A field's share of the total importance, and the share that chance alone exceeds once in ten times."""

    share: float
    chance: float


def importances(axes: Mapping[str, Axis], trials: Sequence[Trial], metric: str) -> dict[str, Importance]:
    """Return field -> importance, largest first; {} if there are too few trials or fields, or no field matters.

    The target is a trial's rank. Stopped trials rank behind all that finished.
    """
    order = ranked([trial for trial in trials if not trial.confirms], metric)
    if len(order) < MIN_TRIALS or len(axes) < 2:
        return {}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    top_share = max(_TOP_SHARE, _MIN_TOP_TRIALS / len(order))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=top_share)
        study = optuna.create_study()
        study.add_trials([_optuna_trial(axes, trial, rank) for rank, trial in enumerate(order)])
        estimate = functools.partial(get_param_importances, study, evaluator=evaluator, normalize=False)
        found = estimate()
        total = sum(found.values())
        if not total > 0:
            return {}
        rng, ranks = random.Random(0), list(range(len(order)))
        shuffled = []
        for _ in range(_SHUFFLES):
            rng.shuffle(ranks)
            shuffled.append(estimate(target=_ShuffledRanks(list(ranks))))
    chance = {key: statistics.quantiles([one[key] for one in shuffled], n=10)[-1] for key in found}
    return {
        key: Importance(value / total, chance[key] / total)
        for key, value in sorted(found.items(), key=lambda pair: -pair[1])
    }


def _optuna_trial(axes: Mapping[str, Axis], trial: Trial, rank: int) -> Any:
    """Convert a trial. Its parameters are the positions of its values on the axes."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for key, axis in axes.items():
        if key not in trial.values:
            continue
        value = trial.values[key]
        if axis.choices:
            params[key], distributions[key] = axis.index(value), CategoricalDistribution(range(len(axis.choices)))
        else:
            params[key], distributions[key] = axis.position(value), FloatDistribution(0, 1)
    return optuna.trial.create_trial(value=float(rank), params=params, distributions=distributions)
