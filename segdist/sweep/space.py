"""The search space: its points, drawn by number with arithmetic of our own, so that a continued sweep tries the same points.

A point is {field: value}. Fields whose `when` does not hold are left out. Values are plain data, as YAML gives them.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from segdist.config.sweep import Dimension
from segdist.errors import ConfigError

Point = dict[str, Any]
Space = Mapping[str, Dimension]
_MAX_GRID = 10_000
_REDRAWS = 100  # draws that may repeat known points before the space counts as exhausted


def is_active(dimension: Dimension, point: Point) -> bool:
    """Return whether the field's `when` conditions hold, given the fields above it in the space."""
    return all(point.get(other) in list(values) for other, values in dimension.when.items())


def value_at(dimension: Dimension, u: float) -> Any:
    """Return the value at the share `u`, in [0, 1), of the way through a dimension."""
    if dimension.kind in ("choice", "grid"):
        return dimension.values[int(u * len(dimension.values))]
    low, high = dimension.values[:2]
    if dimension.kind == "loguniform":
        return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    if dimension.kind == "quniform":
        return quantised(dimension, low + u * (high - low + dimension.values[2]) - dimension.values[2] / 2)
    return low + u * (high - low)


def quantised(dimension: Dimension, value: float) -> int | float:
    """Return the nearest value of a quniform dimension: an integer if its lower end and step are integers."""
    low, high, step = dimension.values
    last = math.floor((high - low) / step + 1e-9)
    found = low + step * min(max(round((value - low) / step), 0), last)
    return round(found) if float(low).is_integer() and float(step).is_integer() else round(found, 12)


def clip(dimension: Dimension, value: Any) -> Any:
    """Return `value` moved into the dimension's range. Choices are returned unchanged."""
    if dimension.kind in ("choice", "grid"):
        return value
    if dimension.kind == "quniform":
        return quantised(dimension, value)
    return min(max(float(value), dimension.values[0]), dimension.values[1])


def draw(space: Space, rng: random.Random, fixed: Point | None = None) -> Point:
    """Draw a random point. Fields in `fixed` keep the value given there."""
    point: Point = {}
    for key, dimension in space.items():
        u = rng.random()  # drawn even if unused, so that no field's value depends on another field
        if is_active(dimension, point):
            point[key] = fixed[key] if fixed is not None and key in fixed else value_at(dimension, u)
    return point


def grid(space: Space) -> list[Point]:
    """Return every combination of the grid fields once, the last field varying fastest; [{}] without grid fields.

    Raises ConfigError if there are more than 10,000 combinations.
    """
    fields = {key: dimension for key, dimension in space.items() if dimension.kind == "grid"}
    size = math.prod(len(dimension.values) for dimension in fields.values())
    if size > _MAX_GRID:
        raise ConfigError(
            f"space: the grids of {', '.join(fields)} have {size} points, more than the limit of {_MAX_GRID}. "
            "List fewer values, or draw some of these fields with `choice`"
        )
    points: dict[str, Point] = {}
    for values in itertools.product(*(dimension.values for dimension in fields.values())):
        point: Point = {}
        for (key, dimension), value in zip(fields.items(), values):
            if is_active(dimension, point) or not set(dimension.when) <= set(fields):
                point[key] = value
        points.setdefault(point_key(point), point)
    return list(points.values())


def point_key(point: Point) -> str:
    """Return a string that is the same for equal points."""
    return json.dumps(point, sort_keys=True)


def points(space: Space, seed: int) -> Iterator[Point]:
    """Yield the points of a sweep whose searcher does not learn. No point repeats; the iterator ends when none is left.

    Grid combinations are cycled, all other fields are drawn. Point n depends on (space, seed) only.
    """
    combinations, seen = grid(space), set[str]()
    if all(dimension.kind == "grid" for dimension in space.values()):
        yield from combinations
        return
    misses = 0
    for number in itertools.count():
        rng = random.Random(f"{seed}/{number}")
        drawn = (draw(space, rng, combinations[number % len(combinations)]) for _ in range(_REDRAWS))
        point = next((point for point in drawn if point_key(point) not in seen), None)
        misses = misses + 1 if point is None else 0
        if point is not None:
            seen.add(point_key(point))
            yield point
        elif misses == len(combinations):
            return


def format_values(values: Point) -> str:
    """Format a point as `key=value` pairs, as on the command line."""
    return " ".join(f"{key}={format_value(value)}" for key, value in values.items())


def format_value(value: Any) -> str:
    """Format a value as a config would have it, floats with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value).replace(" ", "")
