"""The fields of a sweep as axes of a plot: where a value stands between the two ends of its range."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segdist.config.reading import validate
from segdist.config.sweep import Dimension
from segdist.sweep.ledger import Trial


@dataclass(frozen=True)
class Axis:
    """One field, or the score: either `choices`, evenly spaced, or the range from `low` to `high`."""

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False

    def index(self, value: Any) -> int:
        """Return the position of `value` among the choices."""
        return [json.dumps(choice) for choice in self.choices].index(json.dumps(value))

    def position(self, value: Any) -> float:
        """Return where `value` stands, from 0 to 1. Values outside the range are moved to its nearest end."""
        if self.choices:
            return (self.index(value) + 0.5) / len(self.choices)
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        return min(1.0, max(0.0, (value - low) / (high - low)))


def field_axes(facts: dict[str, Any], trials: Sequence[Trial]) -> dict[str, Axis]:
    """Return field -> axis for every field in which the trials differ, in the order of the sweep file."""
    space = facts["identity"]["space"]
    return {key: _axis(key, validate(Dimension, space[key], f"space.{key}")) for key in varying_fields(facts, trials)}


def varying_fields(facts: dict[str, Any], trials: Sequence[Trial]) -> list[str]:
    """Return the fields in which the trials differ. With fewer than two trials, return all fields of the space."""
    fields = list(facts["identity"]["space"])
    if len(trials) < 2:
        return fields
    values = {key: {json.dumps(trial.values.get(key, "not used")) for trial in trials} for key in fields}
    return [key for key in fields if len(values[key]) > 1] or fields


def _axis(key: str, dimension: Dimension) -> Axis:
    if dimension.kind in ("choice", "grid"):
        return Axis(key, tuple(json.loads(json.dumps(dimension.values))))
    low, high = dimension.values[:2]
    return Axis(key, (), low, high, dimension.kind == "loguniform")


def tight_axis(name: str, values: Sequence[float]) -> Axis:
    """Return a linear axis that holds `values` with a small margin at both ends."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 0.1
    return Axis(name, (), low - margin, high + margin)
