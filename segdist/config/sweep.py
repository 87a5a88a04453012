"""A sweep as strict, frozen classes: which fields of a config vary and how, by which searcher and scheduler, for how long.

As in a run's config, every field is *identity* (it decides which trials there are and how they are judged) or *free*.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segdist.config.fields import Section, free, identity
from segdist.config.reading import nearest, valid_keys
from segdist.config.tree import Config

Value = Any  # plain data that a field of a config takes
KINDS = ("choice", "grid", "uniform", "loguniform", "quniform")


class Dimension(Section):
    """One field that varies. Exactly one of the kinds is given."""

    choice: Annotated[tuple[Value, ...], Field(min_length=1)] | None = identity(None, "One of these values.")
    grid: Annotated[tuple[Value, ...], Field(min_length=1)] | None = identity(None, "Every one of these values.")
    uniform: tuple[float, float] | None = identity(None, "Between [least, most].")
    loguniform: tuple[float, float] | None = identity(None, "Between [least, most], evenly in the logarithm.")
    quniform: tuple[float, float, float] | None = identity(None, "[least, most, step]: least, least + step, ...")
    when: dict[str, tuple[Value, ...]] = identity(
        {}, "Vary it only where another field of the space, one above it, has one of these values."
    )

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}; here {' and '.join(given) or 'none'} is given")
        if self.kind in ("choice", "grid"):
            return self
        least, most = self.values[:2]
        if not (math.isfinite(least) and math.isfinite(most) and least < most):
            raise ValueError(f"{self.kind} {list(self.values)}: give [least, most] with least below most")
        if self.loguniform and least <= 0:
            raise ValueError(f"loguniform {list(self.values)}: least must be above 0")
        if self.quniform and not 0 < self.quniform[2] <= most - least:
            raise ValueError(f"quniform {list(self.values)}: the step must be above 0 and at most the range")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        """What the kind was given."""
        return tuple(getattr(self, self.kind))


class Scheduler(Section):
    name: Literal["none", "asha", "hyperband", "pbt"] = identity(
        "none",
        "none: every trial goes to its end; asha: weak ones stop at rungs (Li et al. 2020); hyperband: in brackets that wait "
        "for each other (Li et al. 2017); pbt: the weak go on from the strong with changed values (Jaderberg et al. 2017).",
    )
    grace_steps: int | None = identity(None, "asha: no trial stops before this step; null: eval.every_steps.", ge=1)
    reduction_factor: float = identity(3.0, "asha, hyperband: one of so many goes on at each rung.", gt=1)
    interval_steps: int | None = identity(
        None, "pbt: the weak may change every so many steps; null: eval.every_steps.", ge=1
    )
    quantile: float = identity(0.25, "pbt: the share that is weak, and the share that is strong.", gt=0, le=0.5)
    resample_prob: float = identity(
        0.25, "pbt: a value is drawn anew with this probability, else moved by a fifth.", ge=0, le=1
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
                raise ValueError(f"scheduler.{field} has no effect with scheduler.name={self.name}; leave it out")
        return self


class Budget(Section):
    num_trials: int | None = free(None, "Trials at most; null: every point of a grid, or 20.", ge=1, le=10_000)
    hours: float | None = free(None, "Hours at most, over all launches; what runs then commits and stops.", gt=0)
    dollars: float | None = free(None, "Dollars at most, by dollars_per_hour; what runs then commits and stops.", gt=0)
    dollars_per_hour: float | None = free(None, "What one rank costs in an hour.", gt=0)

    @model_validator(mode="after")
    def _check(self) -> Budget:
        if self.dollars is not None and self.dollars_per_hour is None:
            raise ValueError("budget.dollars needs budget.dollars_per_hour, the price of one rank")
        return self


class Confirm(Section):
    num_best: int = free(3, "The best so many are trained again before one is named; 0: none.", ge=0)
    num_seeds: int = free(1, "With so many other seeds each.", ge=1)


class Sweep(Section):
    """Everything a sweep is."""

    uri: str = free(help="Folder of this sweep. The same address continues it; a finished sweep is left alone.")
    config: str = free(help="The config whose fields vary: a path, from this file's folder on, or a URI.")
    set: dict[str, Any] = free(
        {}, "Sections of that config as trials have them: shorter, say, than the final training."
    )
    space: dict[str, Dimension] = identity(help="section.field -> how it varies.", min_length=1)
    metric: Literal["miou", "loss"] = identity("miou", "What trials are judged by, on the validation split.")
    searcher: Literal["random", "tpe"] = identity(
        "random", "random: independent draws, and grids; tpe: Optuna's, which learns from the trials before."
    )
    scheduler: Scheduler = Scheduler()
    budget: Budget = Budget()
    confirm: Confirm = Confirm()
    max_concurrent: int | None = free(None, "Trials at a time; null: as many as the cluster has room for.", ge=1)
    seed: int = identity(0, "Of the values that are drawn.", ge=0)

    @model_validator(mode="after")
    def _check(self) -> Sweep:
        known = set(valid_keys(Config))
        for key, dimension in self.space.items():
            if key not in known:
                raise ValueError(f"space: there is no field `{key}`; the nearest is `{nearest(key)}`")
            _check_decides(key)
            self._check_when(key, dimension)
        grids = [key for key, dimension in self.space.items() if dimension.grid is not None]
        if grids and (self.searcher == "tpe" or self.scheduler.name == "pbt"):
            other = "searcher=tpe" if self.searcher == "tpe" else "scheduler.name=pbt"
            raise ValueError(f"space.{grids[0]}: {other} draws values; give `choice` instead of `grid`")
        if self.scheduler.name == "pbt":
            self._check_population()
        if self.scheduler.name == "hyperband" and self.searcher == "tpe":
            raise ValueError(
                "scheduler.name=hyperband begins all trials at once, so searcher=tpe could learn from none; use asha"
            )
        if self.scheduler.name in ("pbt", "hyperband") and self.max_concurrent is not None:
            raise ValueError(
                f"scheduler.name={self.scheduler.name} needs its trials together; leave max_concurrent out"
            )
        return self

    def _check_when(self, key: str, dimension: Dimension) -> None:
        above = list(self.space)[: list(self.space).index(key)]
        for other in dimension.when:
            if other not in above:
                raise ValueError(f"space.{key}: `when` names {other}, which must stand in the space above it")

    def _check_population(self) -> None:
        if self.searcher != "random":
            raise ValueError("scheduler.name=pbt changes values itself; leave searcher out")
        for key, dimension in self.space.items():
            if key.startswith(("model.", "train.", "data.")) or dimension.when:
                raise ValueError(
                    f"space.{key}: scheduler.name=pbt hands weights from one trial to another, so what varies must be a plain "
                    "field of optim or loss; use another scheduler for this one"
                )


def _check_decides(key: str) -> None:
    """Raises ValueError when trials that differ in this field could not be compared."""
    if key in ("train.seed", "train.num_steps", "train.init_from"):
        raise ValueError(f"space.{key}: trials that differ in it do not compare; give it in `set`")
    if key.split(".")[0] not in ("data", "model", "train", "loss", "optim") or key in _SAME:
        raise ValueError(
            f"space.{key}: it does not decide the weights, or changes how they are scored; give it in `set`"
        )


_SAME = ("data.uri", "data.train_split", "data.val_split")
