"""Outlines in annotation files: validation, and drawing of labelme's shapes.

Coordinates come from untrusted files and are passed to drawing code in C, which hangs or takes all memory on NaN or on points
far outside of the image. So all points pass `check_points` first, and all image sizes `check_size`.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import Any

from PIL import ImageDraw

from segdist.errors import DataError

Points = list[tuple[float, float]]  # (x, y); integers are the upper left corners of pixels

LINE_WIDTH_PX = 10  # widths of lines and points in labelme's own export of masks
POINT_RADIUS_PX = 5

NUM_POINTS = {  # (fewest, most) points of each kind of shape; some tools give all four corners of a rectangle
    "polygon": (3, None),
    "rectangle": (2, 4),
    "oriented_rectangle": (4, 4),
    "rotation": (4, 4),
    "circle": (2, 2),
    "line": (2, 2),
    "linestrip": (2, None),
    "point": (1, 1),
    "mask": (2, 2),
}  # fmt: skip


def parse_json(data: bytes, name: str) -> Any:
    """Parse a JSON file. Raises DataError if it is invalid."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested a thousand levels deep
        raise DataError(f"{name}: broken JSON ({error}). Export it again, or remove it") from None


def inside(folder: str, path: str) -> str | None:
    """Return the path, from the source's root, that a file in `folder` refers to; None if it leads out of the source.

    Handles the backslashes and drives that tools on Windows write.
    """
    written = PureWindowsPath(path)
    if written.drive or written.root:
        return None
    found = posixpath.normpath(posixpath.join(folder, written.as_posix()))
    return None if found in (".", "..") or found.startswith("../") else found


def check_size(height: Any, width: Any, name: str, max_pixels: int) -> tuple[int, int]:
    """Return the (height, width) that an annotation file states. Raises DataError if they are invalid or too large."""
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (height, width)):
        raise DataError(f"{name}: height {height!r} and width {width!r} are not an image size. Export the file again")
    if height * width > max_pixels:
        raise DataError(
            f"{name}: {height}x{width} pixels (height x width) exceed --max-megapixels {max_pixels // 10**6}. "
            "Raise --max-megapixels if you trust this file"
        )
    return height, width


def check_points(points: Any, size: tuple[int, int], name: str) -> Points:
    """Return the points of [[x, y], ...] in an image of `size` (height, width). Raises DataError if they cannot be drawn.

    Points outside the image are clipped when drawn, but may not be farther outside than the image's own size.
    """
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise DataError(f"{name}: its points are not a list of [x, y]. Export the file again")
    for x, y in points:
        for value, side in ((x, size[1]), (y, size[0])):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
                raise DataError(f"{name}: the coordinate {value!r} is not a number. Draw this shape again")
            if not -side <= value <= 2 * side:
                raise DataError(
                    f"{name}: the coordinate {str(value)[:20]} is far outside of an image of {size[0]}x{size[1]} pixels "
                    "(height x width). The points may have been made for another image size. Draw this shape again"
                )
    return [(float(x), float(y)) for x, y in points]


def draw(canvas: ImageDraw.ImageDraw, kind: str, points: Points, value: int) -> None:
    """Paint a labelme shape with `value`, as labelme's own export does (its `shape_to_mask`).

    Pixels on the outline belong to the shape, so shapes are half a pixel larger all around. A rectangle is given by two
    corners, a circle by its centre and a point on its rim.
    """
    if kind in ("rectangle", "circle"):
        canvas_draw = canvas.rectangle if kind == "rectangle" else canvas.ellipse
        canvas_draw(_box(kind, points), fill=value, outline=value)
    elif kind in ("line", "linestrip"):
        canvas.line(points, fill=value, width=LINE_WIDTH_PX, joint="curve" if kind == "linestrip" else None)
    elif kind == "point":
        canvas.ellipse(_around(points[0], POINT_RADIUS_PX), fill=value, outline=value)
    else:
        canvas.polygon(points, fill=value, outline=value)


def _box(kind: str, points: Points) -> tuple[float, float, float, float]:
    if kind == "circle":
        return _around(points[0], math.dist(*points))
    x, y = zip(*points)
    return min(x), min(y), max(x), max(y)


def _around(center: Sequence[float], radius: float) -> tuple[float, float, float, float]:
    x, y = center
    return x - radius, y - radius, x + radius, y + radius
