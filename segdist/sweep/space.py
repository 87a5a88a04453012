"""A search space as arithmetic: its points by number, drawn by our own formulas, so that a sweep goes on as it began.

A point is {field: value}, without the fields whose `when` does not hold. Values are plain data, as YAML gives them.
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
_REDRAWS = 100  # before a space is held to be exhausted


def is_active(dimension: Dimension, point: Point) -> bool:
    """Whether the conditions of a field hold, given the fields above it."""
    return all(point.get(other) in list(values) for other, values in dimension.when.items())


def value_at(dimension: Dimension, u: float) -> Any:
    """The value at the share `u`, in [0, 1), of the way through a dimension."""
    if dimension.kind in ("choice", "grid"):
        return dimension.values[int(u * len(dimension.values))]
    least, most = dimension.values[:2]
    if dimension.kind == "loguniform":
        return math.exp(math.log(least) + u * (math.log(most) - math.log(least)))
    if dimension.kind == "quniform":
        return quantised(dimension, least + u * (most - least + dimension.values[2]) - dimension.values[2] / 2)
    return least + u * (most - least)


def quantised(dimension: Dimension, value: float) -> int | float:
    """The nearest value of a quniform dimension; an integer where least and step are."""
    least, most, step = dimension.values
    last = math.floor((most - least) / step + 1e-9)
    found = least + step * min(max(round((value - least) / step), 0), last)
    return round(found) if float(least).is_integer() and float(step).is_integer() else round(found, 12)


def confined(dimension: Dimension, value: Any) -> Any:
    """A value of a range, moved back into it where it has left it."""
    if dimension.kind in ("choice", "grid"):
        return value
    if dimension.kind == "quniform":
        return quantised(dimension, value)
    return min(max(float(value), dimension.values[0]), dimension.values[1])


def draw(space: Space, rng: random.Random, fixed: Point | None = None) -> Point:
    """A random point; fields in `fixed` are taken from there."""
    point: Point = {}
    for key, dimension in space.items():
        u = rng.random()  # also where it is not needed, so that no field's value hangs on another's
        if is_active(dimension, point):
            point[key] = fixed[key] if fixed is not None and key in fixed else value_at(dimension, u)
    return point


def grid(space: Space) -> list[Point]:
    """Every combination of the fields that are grids, once, the last field fastest; [{}] where there is none."""
    fields = {key: dimension for key, dimension in space.items() if dimension.kind == "grid"}
    size = math.prod(len(dimension.values) for dimension in fields.values())
    if size > _MAX_GRID:
        raise ConfigError(
            f"space: the grids of {', '.join(fields)} have {size} points; {_MAX_GRID} are too many already"
        )
    points: dict[str, Point] = {}
    for values in itertools.product(*(dimension.values for dimension in fields.values())):
        point: Point = {}
        for (key, dimension), value in zip(fields.items(), values):
            if is_active(dimension, point) or not set(dimension.when) <= set(fields):
                point[key] = value
        points.setdefault(name_of(point), point)
    return list(points.values())


def name_of(point: Point) -> str:
    """Equal for equal points."""
    return json.dumps(point, sort_keys=True)


def points(space: Space, seed: int) -> Iterator[Point]:
    """The points of a sweep without a learning searcher: no two are equal, and it ends when there are no more.

    The grids are gone through again and again, and all else is drawn. Point n hangs on (space, seed) alone.
    """
    corners, seen = grid(space), set[str]()
    if all(dimension.kind == "grid" for dimension in space.values()):
        yield from corners
        return
    misses = 0
    for number in itertools.count():
        rng = random.Random(f"{seed}/{number}")
        drawn = (draw(space, rng, corners[number % len(corners)]) for _ in range(_REDRAWS))
        point = next((point for point in drawn if name_of(point) not in seen), None)
        misses = misses + 1 if point is None else 0
        if point is not None:
            seen.add(name_of(point))
            yield point
        elif misses == len(corners):
            return
