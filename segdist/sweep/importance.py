"""How much each field of a sweep seems to decide the score: PED-ANOVA (Watanabe et al. 2023), and what chance alone would give.

It asks how differently a field's values are distributed among the best trials and among all, and so needs neither a model of
the scores nor values drawn evenly. It sees fields one by one: two that matter only together may look idle.
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

LEAST_TRIALS = 10  # with a score; below, the estimate says nothing
_TOP, _TOP_TRIALS = 0.2, 5  # the best: this share of the trials, and so many at least
_SHUFFLES = 20


class _Other:
    """Other ranks than the trials have."""

    def __init__(self, ranks: list[int]) -> None:
        self._ranks = ranks

    def __call__(self, trial: Any) -> float:
        return self._ranks[trial.number]


class Weight(NamedTuple):
    """A field's share of what all fields explain, and the share that it would reach by chance, once in ten times."""

    share: float
    chance: float


def weights(axes: Mapping[str, Axis], trials: Sequence[Trial], metric: str) -> dict[str, Weight]:
    """Field -> its weight, the largest first; {} where the trials are too few, or all fields look idle.

    Trials count by their rank: one that was stopped stands behind all that went to their end.
    """
    order = ranked([trial for trial in trials if not trial.confirms], metric)
    if len(order) < LEAST_TRIALS or len(axes) < 2:
        return {}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    share = max(_TOP, _TOP_TRIALS / len(order))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        study = optuna.create_study()
        study.add_trials([_told(axes, trial, rank) for rank, trial in enumerate(order)])
        weigh = functools.partial(get_param_importances, study, evaluator=evaluator, normalize=False)
        found = weigh()
        total = sum(found.values())
        if not total > 0:
            return {}
        rng, ranks = random.Random(0), list(range(len(order)))
        chances = []
        for _ in range(_SHUFFLES):
            rng.shuffle(ranks)
            chances.append(weigh(target=_Other(list(ranks))))
    chance = {key: statistics.quantiles([one[key] for one in chances], n=10)[-1] for key in found}
    return {
        key: Weight(value / total, chance[key] / total) for key, value in sorted(found.items(), key=lambda kv: -kv[1])
    }


def _told(axes: Mapping[str, Axis], trial: Trial, rank: int) -> Any:
    """A trial in Optuna's words: where it stands on each field's axis."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    places: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for key, axis in axes.items():
        if key not in trial.values:
            continue
        if axis.choices:
            places[key], kinds[key] = axis.number(trial.values[key]), CategoricalDistribution(range(len(axis.choices)))
        else:
            places[key], kinds[key] = axis.place(trial.values[key]), FloatDistribution(0, 1)
    return optuna.trial.create_trial(value=float(rank), params=places, distributions=kinds)
