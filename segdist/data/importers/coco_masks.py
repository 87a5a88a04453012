"""COCO's three kinds of mask to raw values: outlines, runs of pixels (RLE), and images of segment numbers (panoptic).

Raw values are category ids. Objects of COCO overlap, and its files do not say which lies in front: the smaller one is
drawn over the larger, since small things in front of large ones are the rule. (torchvision's reference makes every overlap
void instead, and leaves crowds to the background.) A crowd is void where no single object lies.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segdist.data.importers.files import File, Rules, open_picture
from segdist.data.importers.outlines import check_points, check_size
from segdist.errors import DataError, LabelError

_RUN_BITS = 60  # a longer number in an RLE is no count of pixels


@dataclass(frozen=True)
class Values:
    """Raw values that are no category."""

    outside: int  # of pixels that no annotation covers
    void: int
    wide: bool  # whether any raw value takes 16 bits

    @property
    def dtype(self) -> type:
        return np.uint16 if self.wide else np.uint8


@dataclass(frozen=True)
class Segments:
    """A panoptic image together with what its annotation says of the segments: both are its content."""

    file: File
    info: bytes = field(repr=False)  # JSON: [[segment id, category id, is it a crowd], ...]

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
    """(H, W) raw values of one image's annotations, JSON {"size": [H, W], "objects": [[id, category, crowd, outline], ...]}.

    Raises DataError for an outline that cannot be drawn, naming the annotation.
    """
    tree = json.loads(data)
    height, width = tree["size"]
    size = check_size(height, width, name, rules.max_pixels)
    drawn = []
    for number, category, crowd, outline in tree["objects"]:
        runs = _runs_of(outline, size, f"{name}: annotation {number}")
        drawn.append((not crowd, -int(runs[1::2].sum()), values.void if crowd else category, runs))
    columns = np.full(height * width, values.outside, values.dtype)  # RLE runs down the columns
    for *_, value, runs in sorted(drawn, key=lambda d: d[:2]):  # stable: of equal ones the later lies above
        ends = np.cumsum(runs)
        for start, end in zip(ends[0::2], ends[1::2]):
            columns[start:end] = value
    return np.ascontiguousarray(columns.reshape(width, height).T)


def _runs_of(outline: Any, size: tuple[int, int], who: str) -> np.ndarray:
    """int64 lengths of the runs of an outline, column by column, outside and inside in turn."""
    if isinstance(outline, dict):
        return _stored_runs(outline, size, who)
    if not isinstance(outline, list) or not outline:
        raise DataError(f"{who} has no outline; draw one, or remove it")
    return _polygon_runs(outline, size, who)


def _polygon_runs(polygons: list[Any], size: tuple[int, int], who: str) -> np.ndarray:
    """Of polygons [[x, y, x, y, ...], ...], all parts of one object, by COCO's own drawing."""
    from pycocotools import mask

    for flat in polygons:
        if not isinstance(flat, list) or len(flat) % 2:
            raise DataError(f"{who}: its outline is not [[x, y, x, y, ...], ...]; export the file again")
        if len(flat) < 6:  # pycocotools would read four numbers as a box
            raise DataError(f"{who}: a polygon of {len(flat) // 2} points has no area; remove it, or draw it again")
        check_points([flat[i : i + 2] for i in range(0, len(flat), 2)], size, who)
    merged = mask.merge(mask.frPyObjects(polygons, *size))
    return np.array(_uncompressed(merged["counts"].decode()))


def _stored_runs(rle: dict[str, Any], size: tuple[int, int], who: str) -> np.ndarray:
    """Of an RLE {"size": [H, W], "counts": ...}, compressed or a list. Raises DataError unless it fills the image."""
    if rle.get("size") != list(size):
        raise DataError(
            f"{who}: its RLE is of size {rle.get('size')}, but the image of {list(size)} (height, width); export it again"
        )
    counts = rle.get("counts")
    try:
        runs = _uncompressed(counts) if isinstance(counts, str) else [int(c) for c in counts]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise DataError(f"{who}: its RLE cannot be read; export it again") from None
    if min(runs, default=-1) < 0 or sum(runs) != size[0] * size[1]:
        raise DataError(f"{who}: its RLE does not fill the image of {size[0] * size[1]} pixels; export it again")
    return np.array(runs, np.int64)


def _uncompressed(text: str) -> list[int]:
    """The counts of a compressed RLE: six bits a character, the sixth says that more follow; from the fourth number on,
    the difference to the number two before (pycocotools' maskApi). Raises ValueError when it is none.

    Ours, since what a wrong string makes of memory in C is not known for every version.
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
    """(H, W) raw values of a panoptic image: its colours are segment ids, R + 256 G + 65536 B; 0 and crowds are void.

    Raises LabelError for ids that the annotation does not describe.
    """
    with open_picture(data, name, rules.max_pixels) as image:
        if image.mode not in ("RGB", "RGBA") or image.format != "PNG":
            raise LabelError(
                f"{name}: this {image.format} of mode {image.mode} is no panoptic mask; those are RGB PNG, whose "
                "colours number the segments"
            )
        red, green, blue = (np.asarray(image.getchannel(c)).astype(np.int64) for c in "RGB")
    meaning = {0: values.void} | {
        number: values.void if crowd else category for number, category, crowd in json.loads(info)
    }
    found, where, counts = np.unique(red + 256 * green + 65536 * blue, return_inverse=True, return_counts=True)
    strange = [(int(v), int(n)) for v, n in zip(found, counts) if int(v) not in meaning]
    if strange:
        raise LabelError(
            f"{name}: segment {strange[0][0]} ({strange[0][1]} pixels; {len(strange)} such in all) is not in the annotation's "
            "segments_info; the image and the JSON belong to different data sets, or the image was resized or recoloured"
        )
    table: np.ndarray = np.array([meaning[int(v)] for v in found], values.dtype)
    return table[where].reshape(red.shape)
