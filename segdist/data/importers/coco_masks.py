"""Decoders of COCO's three kinds of mask: outlines, run-length encoding (RLE), and images of segment IDs (panoptic).

Raw values are category IDs. COCO's objects overlap, and its files do not say which one is in front. Smaller objects are drawn
over larger ones, because small things are usually in front of large ones. (torchvision's reference makes every overlap void
and leaves crowds to the background.) A crowd is void where no single object covers it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segdist.data.importers.files import File, Rules, open_image
from segdist.data.importers.outlines import check_points, check_size
from segdist.errors import DataError, LabelError

_RUN_BITS = 60  # a longer number in an RLE is not a plausible run length


@dataclass(frozen=True)
class Values:
    """Raw values that are not categories."""

    outside: int  # of pixels that no annotation covers
    void: int
    wide: bool  # whether a raw value needs 16 bits

    @property
    def dtype(self) -> type:
        return np.uint16 if self.wide else np.uint8


@dataclass(frozen=True)
class Segments:
    """A panoptic image with its annotation's segments. Both belong to its content."""

    file: File
    info: bytes = field(repr=False)  # JSON: [[segment ID, category ID, is crowd], ...]

    @property
    def name(self) -> str:
        return self.file.uri

    @property
    def num_bytes(self) -> int:
        return self.file.num_bytes

    def read(self) -> bytes:
        return self.file.read()

    def digest(self) -> str:
        return hashlib.sha256(self.file.digest().encode() + self.info).hexdigest()


def decode_objects(data: bytes, name: str, rules: Rules, *, values: Values) -> np.ndarray:
    """Return (H, W) raw values drawn from JSON {"size": [H, W], "objects": [[ID, category, crowd, outline], ...]}.

    Raises DataError, naming the annotation, if an outline cannot be drawn.
    """
    tree = json.loads(data)
    height, width = tree["size"]
    size = check_size(height, width, name, rules.max_pixels)
    drawn = []
    for number, category, crowd, outline in tree["objects"]:
        runs = _runs_of(outline, size, f"{name}: annotation {number}")
        drawn.append((not crowd, -int(runs[1::2].sum()), values.void if crowd else category, runs))
    columns = np.full(height * width, values.outside, values.dtype)  # RLE is column-major
    for *_, value, runs in sorted(drawn, key=lambda d: d[:2]):  # stable: of equal areas the later one is on top
        ends = np.cumsum(runs)
        for start, end in zip(ends[0::2], ends[1::2]):
            columns[start:end] = value
    return np.ascontiguousarray(columns.reshape(width, height).T)


def _runs_of(outline: Any, size: tuple[int, int], who: str) -> np.ndarray:
    """Return int64 run lengths of an outline in column-major order, alternately outside and inside."""
    if isinstance(outline, dict):
        return _stored_runs(outline, size, who)
    if not isinstance(outline, list) or not outline:
        raise DataError(f"{who} has no segmentation. Draw its outline, or remove the annotation")
    return _polygon_runs(outline, size, who)


def _polygon_runs(polygons: list[Any], size: tuple[int, int], who: str) -> np.ndarray:
    """Return the runs of polygons [[x, y, x, y, ...], ...], all parts of one object, as COCO's own code draws them."""
    from pycocotools import mask

    for flat in polygons:
        if not isinstance(flat, list) or len(flat) % 2:
            raise DataError(f"{who}: its segmentation is not [[x, y, x, y, ...], ...]. Export the file again")
        if len(flat) < 6:  # pycocotools would interpret four numbers as a box
            raise DataError(f"{who}: a polygon of {len(flat) // 2} points has no area. Remove it, or draw it again")
        check_points([flat[i : i + 2] for i in range(0, len(flat), 2)], size, who)
    merged = mask.merge(mask.frPyObjects(polygons, *size))
    return np.array(_uncompressed(merged["counts"].decode()))


def _stored_runs(rle: dict[str, Any], size: tuple[int, int], who: str) -> np.ndarray:
    """Return the runs of an RLE {"size": [H, W], "counts": ...}. Raises DataError unless it fills the image exactly."""
    if rle.get("size") != list(size):
        raise DataError(
            f"{who}: its RLE has size {rle.get('size')}, but the image has {list(size)} (height, width). Export it again"
        )
    counts = rle.get("counts")
    try:
        runs = _uncompressed(counts) if isinstance(counts, str) else [int(c) for c in counts]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise DataError(f"{who}: its RLE cannot be read. Export it again") from None
    if min(runs, default=-1) < 0 or sum(runs) != size[0] * size[1]:
        raise DataError(f"{who}: its RLE does not fill the image of {size[0] * size[1]} pixels. Export it again")
    return np.array(runs, np.int64)


def _uncompressed(text: str) -> list[int]:
    """Decode the counts of a compressed RLE. Raises ValueError if the text is invalid.

    Each character holds six bits, the sixth meaning that more follow. From the fourth number on, numbers are differences to
    the number two before (pycocotools' maskApi). Implemented here because pycocotools' C code is not known to be safe on
    invalid strings in every version.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        bits = character - 48
        if not 0 <= bits < 64 or shift > _RUN_BITS:
            raise ValueError(text)
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError(text)
    return runs


def decode_segments(data: bytes, name: str, rules: Rules, *, info: bytes, values: Values) -> np.ndarray:
    """Return (H, W) raw values of a panoptic image. Colours are segment IDs, R + 256 G + 65536 B; 0 and crowds are void.

    Raises LabelError if the annotation does not describe an ID.
    """
    with open_image(data, name, rules.max_pixels) as image:
        if image.mode not in ("RGB", "RGBA") or image.format != "PNG":
            raise LabelError(
                f"{name}: this {image.format} of mode {image.mode} is not a panoptic mask. Panoptic masks are RGB PNG files "
                "whose colours are segment IDs"
            )
        red, green, blue = (np.asarray(image.getchannel(c)).astype(np.int64) for c in "RGB")
    meaning = {0: values.void} | {
        number: values.void if crowd else category for number, category, crowd in json.loads(info)
    }
    found, where, counts = np.unique(red + 256 * green + 65536 * blue, return_inverse=True, return_counts=True)
    strange = [(int(v), int(n)) for v, n in zip(found, counts) if int(v) not in meaning]
    if strange:
        raise LabelError(
            f"{name}: segment {strange[0][0]} ({strange[0][1]} pixels; {len(strange)} such segments in all) is not in the "
            "annotation's segments_info. Either the image and the JSON belong to different datasets, or the image was resized "
            "or recoloured. Unpack both again"
        )
    table: np.ndarray = np.array([meaning[int(v)] for v in found], values.dtype)
    return table[where].reshape(red.shape)
