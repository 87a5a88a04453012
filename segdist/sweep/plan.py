"""Read a sweep file, and make the config of each trial from it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segdist import config, console, storage
from segdist.config import Config
from segdist.config.reading import read_tree, source_name, validate
from segdist.config.sweep import Sweep
from segdist.data import index as indices
from segdist.data.index import Index
from segdist.errors import ConfigError, MissingError, UserError
from segdist.sweep.ledger import Trial, cost_dollars
from segdist.sweep.search import points_to_check
from segdist.sweep.space import Point, format_values
from segdist.train import setup

_CACHE_GB = 20.0
_PBT_KEEP_LAST = 5  # checkpoints that a PBT trial keeps, because another trial may start from an older one
_MAX_ERRORS = 5  # that one message lists


@dataclass(frozen=True)
class Plan:
    """A sweep and its base config.

    `base` is the config at `config_uri` as a tree. It is not validated, because a field that varies may be missing from it.
    """

    sweep: Sweep
    base: dict[str, Any]
    config_uri: str

    def config(self, values: Point, run_uri: str, seed: int | None = None) -> Config:
        """Return a trial's config. `seed` replaces the config's own; such a confirmation is scored on the whole split.

        Raises ConfigError if the config is invalid with these values.
        """
        tree = _merged(self.base, self.sweep.set)
        tree.pop("hub", None)  # trials are not pushed
        tree["io"] = {"cache_gb": _CACHE_GB, **tree.get("io", {})}  # trials share what one of them has fetched
        if self.sweep.scheduler.name == "pbt":
            checkpoint = tree.setdefault("checkpoint", {})
            checkpoint["keep_last"] = max(checkpoint.get("keep_last", 0), _PBT_KEEP_LAST)
        return self._resolved(
            tree, values, run_uri, {} if seed is None else {"train.seed": seed, "eval.num_samples": None}
        )

    def full(self, values: Point, run_uri: str) -> Config:
        """Return the full-length config of these values: without the shorter lengths that `set` gives to trials."""
        changes = {
            section: {k: v for k, v in fields.items() if not (is_length(k) and k in self.base.get(section, {}))}
            if isinstance(fields, dict)
            else fields
            for section, fields in self.sweep.set.items()
        }
        return self._resolved(_merged(self.base, changes), values, run_uri, {})

    def continued(self, cfg: Config, offset: int, parent: str) -> Config:
        """Return the config of the rest of a trial: a new run that starts after `offset` steps from checkpoint `parent`."""
        tree = config.to_tree(cfg)
        seed = cfg.train.seed + offset  # so that the run does not repeat the trial's first batches
        tree["train"] |= {"num_steps": cfg.train.num_steps - offset, "init_from": parent, "seed": seed}
        tree["optim"] |= {"warmup_steps": 0, "freeze_encoder_steps": 0}
        return config.from_tree(tree, f"{cfg.run.uri} after step {offset}")

    @property
    def num_ranks(self) -> int:
        """Ranks of one trial."""
        return int(_merged(self.base, self.sweep.set).get("scale", {}).get("num_ranks", 1))

    def identity(self) -> dict[str, Any]:
        """Return the settings that all trials share and that decide their weights: section -> field -> value."""
        tree = _merged(self.base, self.sweep.set)
        sections = {
            name: fields for name, fields in tree.items() if name in ("data", "model", "train", "loss", "optim")
        }
        return {name: {k: v for k, v in fields.items() if k != "uri"} for name, fields in sections.items()}

    def _resolved(self, tree: dict[str, Any], values: Point, run_uri: str, more: Point) -> Config:
        for key, value in {**values, **more}.items():
            section, name = key.split(".")
            fields = tree.setdefault(section, {})
            if isinstance(fields, dict):
                fields[name] = value
        if self.num_ranks > 1:  # Ray runs the trials in any case
            tree["scale"].setdefault("launcher", "ray")
        tree["run"] = {"uri": run_uri}
        return config.from_tree(tree, f"{self.sweep.config} with {format_values(values)}")


def read(uri: str, overrides: Sequence[str] = ()) -> Plan:
    """Read a sweep file (path or URI) with overrides such as budget.num_trials=5 or set.train.num_steps=100.

    Raises ConfigError that names the file, the key and the nearest valid key.
    """
    tree = read_tree(_read_text(uri, "sweep file. Examples are in configs/sweeps/"), uri, overrides)
    if "space" not in tree and {"model", "train"} & tree.keys():
        raise ConfigError(
            f"{uri} is the config of a run, not a sweep file. A sweep file refers to such a config in `config`. "
            "Examples are in configs/sweeps/"
        )
    sweep = validate(Sweep, tree, source_name(uri, overrides))
    folder = uri.rpartition("/")[0]
    where = sweep.config
    if folder and "://" not in where and not where.startswith(("/", "~")):
        where = f"{folder}/{where}"  # `config` may start with ../
    plan = Plan(sweep, read_tree(_read_text(where, f"config, which {uri} names"), where), where)
    if sweep.scheduler.name == "pbt" and (plan.base | sweep.set).get("optim", {}).get("schedule") != "constant":
        raise ConfigError(
            f"{uri}: scheduler.name=pbt changes the learning rate itself and needs a constant schedule. "
            "Add set.optim.schedule=constant"
        )
    return plan


def is_length(field: str) -> bool:
    """Return whether this field of a config is a length, which is shorter in trials than in the full run."""
    return field.endswith("_steps") or field in ("num_samples", "num_previews")


def check(plan: Plan) -> Index:
    """Resolve every trial that is known in advance, check it against the data, and return the dataset's index.

    Raises UserError before any trial starts.
    """
    runs = storage.join(plan.sweep.uri, "trials")  # no run is ever here
    errors: dict[str, str] = {}
    first, index, points = None, None, points_to_check(plan.sweep)
    num_failed = 0
    for point in points:
        try:
            cfg = plan.config(point, runs)
            index = index or indices.load(cfg.data.uri)
            setup.check_new_run(cfg, index, cfg.scale.num_ranks)
            plan.full(point, runs)
            first = first or cfg
        except UserError as error:
            if index is None and not isinstance(error, ConfigError):
                raise  # the dataset is missing, which is no fault of the point
            num_failed += 1
            values = format_values(point)
            text = str(error) if values in str(error) else f"{plan.sweep.config} with {values}: {error}"
            errors.setdefault(text.replace(values, ""), text)
    if len(errors) == 1 and num_failed == len(points) > 1:
        raise ConfigError(f"no trial was started because none could run: {next(iter(errors.values()))}")
    if errors:
        listed = "\n".join(list(errors.values())[:_MAX_ERRORS])
        raise ConfigError(
            f"{plan.sweep.uri}: no trial was started because some could not run, for {len(errors)} kind(s) of reasons:\n"
            f"{listed}\nRemove these values from the space, or restrict them with `when`"
        )
    assert first is not None and index is not None
    setup.inspect_run(first, first.scale.num_ranks)
    steps = plan.sweep.scheduler.grace_steps or plan.sweep.scheduler.interval_steps
    if steps and steps % first.eval.every_steps:
        console.say(
            f"warning: the scheduler decides at evaluations only, every {first.eval.every_steps} steps. "
            f"{steps} steps are not a multiple of that"
        )
    return index


def spent_budget(plan: Plan, seconds: float, trials: Sequence[Trial]) -> str | None:
    """Return which limit of the budget the sweep has reached after `seconds`, or None."""
    budget = plan.sweep.budget
    if budget.hours is not None and seconds >= 3600 * budget.hours:
        return f"the budget of {budget.hours:g} hours (budget.hours) is spent"
    dollars = cost_dollars(trials, plan.num_ranks, budget.dollars_per_hour or 0)
    if budget.dollars is not None and dollars >= budget.dollars:
        return f"the budget of {budget.dollars:g} dollars (budget.dollars) is spent"
    return None


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a config tree with `changes` applied, section by section."""
    merged = copy.deepcopy(tree)
    for name, fields in changes.items():
        if isinstance(fields, dict) and isinstance(merged.get(name), dict):
            merged[name] |= copy.deepcopy(fields)
        else:
            merged[name] = copy.deepcopy(fields)
    return merged


def _read_text(uri: str, what: str) -> bytes:
    try:
        return storage.read(uri)
    except MissingError:
        raise ConfigError(f"{uri}: there is no such {what}") from None
