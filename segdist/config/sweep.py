"""The config of a sweep: which fields of a run's config vary and how, the searcher, the scheduler and the budget.

Every field is *identity* (it decides which trials exist and how they are compared) or *free*.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segdist.config.fields import Section, free, identity
from segdist.config.reading import nearest, valid_keys
from segdist.config.tree import Config

Value = Any  # JSON-able value of a config field
KINDS = ("choice", "grid", "uniform", "loguniform", "quniform")
_FIXED = ("data.uri", "data.train_split", "data.val_split")  # decide how trials are scored


class Dimension(Section):
    """The values of one field. Exactly one of the kinds must be set."""

    choice: Annotated[tuple[Value, ...], Field(min_length=1)] | None = identity(None, "One of these values.")
    grid: Annotated[tuple[Value, ...], Field(min_length=1)] | None = identity(None, "Every one of these values.")
    uniform: tuple[float, float] | None = identity(None, "Uniform in [min, max].")
    loguniform: tuple[float, float] | None = identity(None, "Log-uniform in [min, max].")
    quniform: tuple[float, float, float] | None = identity(None, "[min, max, step]: one of min, min + step, ...")
    when: dict[str, tuple[Value, ...]] = identity(
        {}, "Vary this field only if another field, listed above it in the space, has one of these values."
    )

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"set exactly one of {', '.join(KINDS)}; here {' and '.join(given) or 'none'} is set")
        if self.kind in ("choice", "grid"):
            return self
        low, high = self.values[:2]
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{self.kind} {list(self.values)}: give [min, max] with min below max")
        if self.loguniform and low <= 0:
            raise ValueError(f"loguniform {list(self.values)}: min must be above 0")
        if self.quniform and not 0 < self.quniform[2] <= high - low:
            raise ValueError(f"quniform {list(self.values)}: the step must be above 0 and at most the range")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        """The parameters of the kind."""
        return tuple(getattr(self, self.kind))


class Scheduler(Section):
    name: Literal["none", "asha", "hyperband", "pbt"] = identity(
        "none",
        "none: train every trial to the end; asha: stop weak trials at rungs (Li et al. 2020); hyperband: stop them in "
        "brackets, synchronously (Li et al. 2017); pbt: weak trials continue from strong ones with changed values (Jaderberg "
        "et al. 2017).",
    )
    grace_steps: int | None = identity(None, "asha: stop no trial before this step. null: eval.every_steps.", ge=1)
    reduction_factor: float = identity(3.0, "asha, hyperband: one of this many trials continues at each rung.", gt=1)
    interval_steps: int | None = identity(
        None, "pbt: number of steps between changes of weak trials. null: eval.every_steps.", ge=1
    )
    quantile: float = identity(0.25, "pbt: fraction of trials that is weak, and fraction that is strong.", gt=0, le=0.5)
    resample_prob: float = identity(
        0.25, "pbt: probability of a new random value; otherwise the value changes by a fifth.", ge=0, le=1
    )

    @model_validator(mode="after")
    def _check(self) -> Scheduler:
        through = {
            "grace_steps": ("asha",),
            "reduction_factor": ("asha", "hyperband"),
            "interval_steps": ("pbt",),
            "quantile": ("pbt",),
            "resample_prob": ("pbt",),
        }
        for field, names in through.items():
            if getattr(self, field) != type(self).model_fields[field].default and self.name not in names:
                raise ValueError(f"scheduler.{field} has no effect with scheduler.name={self.name}. Remove it")
        return self


class Budget(Section):
    num_trials: int | None = free(
        None, "Maximum number of trials. null: every point of a grid, or 20.", ge=1, le=10_000
    )
    hours: float | None = free(
        None, "Maximum hours over all launches; running trials then commit a checkpoint and stop. null: no limit.", gt=0
    )
    dollars: float | None = free(
        None,
        "Maximum dollars, at dollars_per_hour; running trials then commit a checkpoint and stop. null: no limit.",
        gt=0,
    )
    dollars_per_hour: float | None = free(None, "Price of one rank per hour, dollars. null: unknown.", gt=0)

    @model_validator(mode="after")
    def _check(self) -> Budget:
        if self.dollars is not None and self.dollars_per_hour is None:
            raise ValueError("budget.dollars needs budget.dollars_per_hour, the price of one rank per hour")
        return self


class Confirm(Section):
    num_best: int = free(3, "Best trials to train again with other seeds before the winner is chosen; 0: none.", ge=0)
    num_seeds: int = free(1, "Additional seeds per trial.", ge=1)


class Sweep(Section):
    """The config of a sweep."""

    uri: str = free(
        help="Folder of this sweep, a path or URI. The same URI continues the sweep; a finished sweep is left alone."
    )
    config: str = free(help="Config of the runs: a path relative to this file's folder, or a URI.")
    set: dict[str, Any] = free(
        {}, "Changes to that config for all trials, such as fewer steps than the final training."
    )
    space: dict[str, Dimension] = identity(help="section.field -> its values.", min_length=1)
    metric: Literal["miou", "loss"] = identity("miou", "Metric on the validation split that compares trials.")
    searcher: Literal["random", "tpe"] = identity(
        "random", "random: independent random values, and grids; tpe: Optuna's TPE, which learns from earlier trials."
    )
    scheduler: Scheduler = Scheduler()
    budget: Budget = Budget()
    confirm: Confirm = Confirm()
    max_concurrent: int | None = free(
        None, "Maximum number of concurrent trials. null: as many as fit into the cluster.", ge=1
    )
    seed: int = identity(0, "Seed of the random values.", ge=0)

    @model_validator(mode="after")
    def _check(self) -> Sweep:
        known = set(valid_keys(Config))
        for key, dimension in self.space.items():
            if key not in known:
                raise ValueError(f"space: unknown field `{key}`; the nearest is `{nearest(key)}`")
            _check_comparable(key)
            self._check_condition(key, dimension)
        grids = [key for key, dimension in self.space.items() if dimension.grid is not None]
        if grids and (self.searcher == "tpe" or self.scheduler.name == "pbt"):
            other = "searcher=tpe" if self.searcher == "tpe" else "scheduler.name=pbt"
            raise ValueError(f"space.{grids[0]}: {other} draws random values. Use `choice` instead of `grid`")
        if self.scheduler.name == "pbt":
            self._check_population()
        if self.scheduler.name == "hyperband" and self.searcher == "tpe":
            raise ValueError(
                "scheduler.name=hyperband starts all trials at once, so searcher=tpe cannot learn from earlier ones. Use asha"
            )
        if self.scheduler.name in ("pbt", "hyperband") and self.max_concurrent is not None:
            raise ValueError(
                f"scheduler.name={self.scheduler.name} runs all trials concurrently. Remove max_concurrent"
            )
        return self

    def _check_condition(self, key: str, dimension: Dimension) -> None:
        above = list(self.space)[: list(self.space).index(key)]
        for other in dimension.when:
            if other not in above:
                raise ValueError(f"space.{key}: `when` names {other}, which must be listed in the space above it")

    def _check_population(self) -> None:
        if self.searcher != "random":
            raise ValueError("scheduler.name=pbt changes values itself. Remove searcher")
        for key, dimension in self.space.items():
            if key.startswith(("model.", "train.", "data.")) or dimension.when:
                raise ValueError(
                    f"space.{key}: scheduler.name=pbt copies weights between trials, so only optim and loss may vary, without "
                    "`when`. Use another scheduler for this field"
                )


def _check_comparable(key: str) -> None:
    """Raises ValueError if trials that differ in this field are not comparable."""
    if key in ("train.seed", "train.num_steps", "train.init_from"):
        raise ValueError(f"space.{key}: trials that differ in it are not comparable. Set it in `set`")
    if key.split(".")[0] not in ("data", "model", "train", "loss", "optim") or key in _FIXED:
        raise ValueError(
            f"space.{key}: it does not decide the weights, or changes how they are scored. Set it in `set`"
        )
