"""A sweep file, read: the sweep, the config whose fields vary, and the config of each trial."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segdist import config, console, storage
from segdist.config import Config
from segdist.config.reading import checked, named, read_tree
from segdist.config.sweep import Sweep
from segdist.data import index as indices
from segdist.data.index import Index
from segdist.errors import ConfigError, MissingError, UserError
from segdist.sweep.ledger import Trial
from segdist.sweep.search import known_beforehand
from segdist.sweep.space import Point
from segdist.train import setup

_CACHE_GB = 20.0
_KEPT = 5  # checkpoints of a member of a population
_MANY = 5  # mistakes that are told at once


@dataclass(frozen=True)
class Plan:
    """`base` is the config at `config_uri` as a tree, not yet checked: a field that varies may be missing from it."""

    sweep: Sweep
    base: dict[str, Any]
    config_uri: str

    def config(self, values: Point, run_uri: str, seed: int | None = None) -> Config:
        """A trial's config. Raises ConfigError. `seed`: in the stead of the config's own, and
        scores are of the whole split."""
        tree = _merged(self.base, self.sweep.set)
        tree.pop("hub", None)  # a sweep has one repository at most, for its best
        tree["io"] = {"cache_gb": _CACHE_GB, **tree.get("io", {})}  # what one trial fetches, the others need not
        if self.sweep.scheduler.name == "pbt":  # another trial may begin with what this one has left behind a while ago
            kept = tree.setdefault("checkpoint", {})
            kept["keep_last"] = max(kept.get("keep_last", 0), _KEPT)
        return self._resolved(
            tree, values, run_uri, {} if seed is None else {"train.seed": seed, "eval.num_samples": None}
        )

    def full(self, values: Point, run_uri: str) -> Config:
        """The config of these values at its own length: without numbers of steps, and of scored samples, that `set` gives."""
        changes = {
            section: {k: v for k, v in fields.items() if not (is_length(k) and k in self.base.get(section, {}))}
            if isinstance(fields, dict)
            else fields
            for section, fields in self.sweep.set.items()
        }
        return self._resolved(_merged(self.base, changes), values, run_uri, {})

    def continued(self, cfg: Config, offset: int, parent: str) -> Config:
        """The rest of a trial as a run of its own, which begins with another trial's weights after `offset` steps."""
        tree = config.to_tree(cfg)
        seed = cfg.train.seed + offset  # so that it does not see the first batches again
        tree["train"] |= {"num_steps": cfg.train.num_steps - offset, "init_from": parent, "seed": seed}
        tree["optim"] |= {"warmup_steps": 0, "freeze_encoder_steps": 0}
        return config.from_tree(tree, f"{cfg.run.uri} after step {offset}")

    @property
    def num_ranks(self) -> int:
        """Of a trial."""
        return int(_merged(self.base, self.sweep.set).get("scale", {}).get("num_ranks", 1))

    def identity(self) -> dict[str, Any]:
        """What all trials have in common and decides their weights, as it is written: section -> field -> value."""
        tree = _merged(self.base, self.sweep.set)
        parts = {name: fields for name, fields in tree.items() if name in ("data", "model", "train", "loss", "optim")}
        return {name: {k: v for k, v in fields.items() if k != "uri"} for name, fields in parts.items()}

    def _resolved(self, tree: dict[str, Any], values: Point, run_uri: str, more: Point) -> Config:
        for key, value in {**values, **more}.items():
            section, name = key.split(".")
            part = tree.setdefault(section, {})
            if isinstance(part, dict):
                part[name] = value
        if self.num_ranks > 1:  # trials are Ray's in any case
            tree["scale"].setdefault("launcher", "ray")
        tree["run"] = {"uri": run_uri}
        return config.from_tree(tree, f"{self.sweep.config} with {shown(values)}")


def read(uri: str, overrides: Sequence[str] = ()) -> Plan:
    """The plan in a YAML file (path or URI), with overrides such as budget.num_trials=5 or set.train.num_steps=100.

    Raises ConfigError, naming file, key and nearest valid key.
    """
    tree = read_tree(_text(uri, "sweep file; examples are in configs/sweeps/"), uri, overrides)
    if "space" not in tree and {"model", "train"} & tree.keys():
        raise ConfigError(f"{uri} is a run's config; a sweep file names it as its `config`, see configs/sweeps/")
    sweep = checked(Sweep, tree, named(uri, overrides))
    folder = uri.rpartition("/")[0]
    where = sweep.config
    if folder and "://" not in where and not where.startswith(("/", "~")):
        where = f"{folder}/{where}"  # which may begin with ../
    plan = Plan(sweep, read_tree(_text(where, f"config, which {uri} names"), where), where)
    if sweep.scheduler.name == "pbt" and (plan.base | sweep.set).get("optim", {}).get("schedule") != "constant":
        raise ConfigError(f"{uri}: scheduler.name=pbt makes the schedule itself; give set.optim.schedule=constant")
    return plan


def is_length(field: str) -> bool:
    """Whether trials have another value of this field for being shorter."""
    return field.endswith("_steps") or field in ("num_samples", "num_previews")


def check(plan: Plan) -> Index:
    """Resolves every trial that is known beforehand, and holds it against the data, whose index it gives.

    Raises UserError before any trial starts.
    """
    runs = storage.join(plan.sweep.uri, "trials")  # where no run is, nor will be
    mistakes: dict[str, str] = {}
    first, index, points = None, None, known_beforehand(plan.sweep)
    failed = 0
    for point in points:
        try:
            cfg = plan.config(point, runs)
            index = index or indices.load(cfg.data.uri)
            setup.check_recipe(cfg, index, cfg.scale.num_ranks)
            plan.full(point, runs)
            first = first or cfg
        except UserError as error:
            if index is None and not isinstance(error, ConfigError):
                raise  # there is no such data set, which no point is to blame for
            failed += 1
            text = str(error) if shown(point) in str(error) else f"{plan.sweep.config} with {shown(point)}: {error}"
            mistakes.setdefault(text.replace(shown(point), ""), text)
    if len(mistakes) == 1 and failed == len(points) > 1:
        raise ConfigError(f"no trial could run, so none was started: {next(iter(mistakes.values()))}")
    if mistakes:
        told = "\n".join(list(mistakes.values())[:_MANY])
        raise ConfigError(
            f"{plan.sweep.uri}: {len(mistakes)} kind(s) of trials could not run, so none was started:\n{told}\n"
            "Take these values out of the space, or tie them to others by `when`"
        )
    assert first is not None and index is not None
    setup.look(first, first.scale.num_ranks)
    steps = plan.sweep.scheduler.grace_steps or plan.sweep.scheduler.interval_steps
    if steps and steps % first.eval.every_steps:
        console.say(
            f"warning: the scheduler hears of evaluations only, every {first.eval.every_steps} steps, not of step {steps}"
        )
    return index


def budget_spent(plan: Plan, seconds: float, trials: Sequence[Trial]) -> str | None:
    """Which part of the budget a sweep of so many seconds has used up; None while there is more."""
    budget = plan.sweep.budget
    if budget.hours is not None and seconds >= 3600 * budget.hours:
        return f"budget.hours {budget.hours:g} are over"
    if budget.dollars is not None and dollars(plan, trials) >= budget.dollars:
        return f"budget.dollars {budget.dollars:g} are spent"
    return None


def dollars(plan: Plan, trials: Sequence[Trial]) -> float:
    """What trials have cost."""
    hours = sum(trial.seconds for trial in trials) / 3600
    return hours * plan.num_ranks * (plan.sweep.budget.dollars_per_hour or 0)


def shown(values: Point) -> str:
    """A point for people."""
    return " ".join(f"{key}={_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "")


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(tree)
    for name, fields in changes.items():
        if isinstance(fields, dict) and isinstance(merged.get(name), dict):
            merged[name] |= copy.deepcopy(fields)
        else:
            merged[name] = copy.deepcopy(fields)
    return merged


def _text(uri: str, what: str) -> bytes:
    try:
        return storage.read(uri)
    except MissingError:
        raise ConfigError(f"{uri}: there is no such {what}") from None
