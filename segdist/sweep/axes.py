"""The fields of a sweep as axes of a picture: where on it a value stands, and which values to write beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segdist.config.reading import checked
from segdist.config.sweep import Dimension
from segdist.sweep.ledger import Trial

_NUM_NAMES = 12  # of choices, that have room beside an axis


@dataclass(frozen=True)
class Axis:
    """One field, or a score. Either `choices`, evenly spaced, or a range."""

    name: str
    choices: tuple[Any, ...] = ()
    least: float = 0.0
    most: float = 1.0
    is_log: bool = False

    def number(self, value: Any) -> int:
        """Which of the choices it is."""
        return [json.dumps(one) for one in self.choices].index(json.dumps(value))

    def place(self, value: Any) -> float:
        """Where it stands, from 0 to 1; what lies beyond an end, at that end."""
        if self.choices:
            return (self.number(value) + 0.5) / len(self.choices)
        least, most, value = (math.log(x) if self.is_log else x for x in (self.least, self.most, value))
        return min(1.0, max(0.0, (value - least) / (most - least)))

    def ticks(self) -> list[tuple[float, str]]:
        """(place, text) of values worth writing."""
        if self.choices:
            every = math.ceil(len(self.choices) / _NUM_NAMES)
            return [(self.place(value), written(value)) for value in self.choices[::every]]
        values = _powers(self.least, self.most) if self.is_log else _round_values(self.least, self.most)
        return [(self.place(value), written(value)) for value in values]


def axes(facts: dict[str, Any], trials: Sequence[Trial]) -> dict[str, Axis]:
    """Field -> axis, of the fields in which the trials differ, in the order of the sweep file."""
    space = facts["identity"]["space"]
    return {key: _axis(key, checked(Dimension, space[key], f"space.{key}")) for key in varying(facts, trials)}


def varying(facts: dict[str, Any], trials: Sequence[Trial]) -> list[str]:
    """The fields in which the trials differ; all of the space while there are not two to tell."""
    fields = list(facts["identity"]["space"])
    if len(trials) < 2:
        return fields
    values = {key: {json.dumps(trial.values.get(key, "not used")) for trial in trials} for key in fields}
    return [key for key in fields if len(values[key]) > 1] or fields


def _axis(key: str, dimension: Dimension) -> Axis:
    if dimension.kind in ("choice", "grid"):
        return Axis(key, tuple(json.loads(json.dumps(dimension.values))))
    least, most = dimension.values[:2]
    return Axis(key, (), least, most, dimension.kind == "loguniform")


def tight_axis(name: str, values: Sequence[float]) -> Axis:
    """A linear axis that holds these values, with a little room at both ends."""
    least, most = min(values), max(values)
    room = 0.04 * (most - least) or 0.1 * abs(most) or 0.1
    return Axis(name, (), least - room, most + room)


def _round_step(least: float, most: float) -> float:
    """A round number that goes three to six times into a range."""
    power = 10.0 ** math.floor(math.log10((most - least) / 3))
    return max(n * power for n in (1, 2, 5) if n * power <= (most - least) / 3 * (1 + 1e-9))


def _round_values(least: float, most: float) -> list[float]:
    step = _round_step(least, most)
    first, last = math.ceil(least / step - 1e-9), math.floor(most / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _powers(least: float, most: float) -> list[float]:
    """Powers of ten within a range, six at most; where there are fewer than two, their halves and fifths too."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    parts = (1,) if most / least >= 100 else (1, 2, 5)
    found = [n * 10.0**power for power in range(first, last + 1) for n in parts]
    found = [value for value in found if least * (1 - 1e-9) <= value <= most * (1 + 1e-9)]
    return found[:: math.ceil(len(found) / 6)] if len(found) > 1 else [least, most]


def written(value: Any) -> str:
    """A value in a few characters."""
    if isinstance(value, float):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e+")
    text = json.dumps(value).strip('"').replace(", ", ",") if not isinstance(value, str) else value
    return text if len(text) <= 14 else f"{text[:12]}.."
