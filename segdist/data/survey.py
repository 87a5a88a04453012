"""What the samples of a split are like: read once, in threads, into one row of facts each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from segdist.data.causes import check
from segdist.data.codec import decode_mask, opened, size_of
from segdist.data.index import Index
from segdist.data.labels import Labels, histogram
from segdist.data.order import Permutation, key
from segdist.data.source import Sample, Source
from segdist.errors import DataError, LabelError
from segdist.ops import IGNORE
from segdist.threads import ahead

_ORIENTATION = 0x0112  # EXIF tag
_THREADS = 8
_LEAST_BITS = 8  # a hash with fewer ones, or zeros, says little


@dataclass(frozen=True)
class Facts:
    """What one sample is like."""

    sample_id: str
    digest: str  # sha256 of the image's bytes
    image_hash: int  # 64-bit difference hash of the image
    size: tuple[int, int]  # (height, width), px
    mode: str  # JPEG RGB, PNG L, ...
    turned: bool  # whether an EXIF rotation is left in the image
    pixels: np.ndarray  # int64 (K + 1,): of each class, and void last
    channels: np.ndarray  # float64 (2, 3): sum and sum of squares of R, G, B in 0..1


@dataclass(frozen=True)
class Survey:
    """Facts of some samples of a split; `broken` holds what could not be read, in words."""

    split: str
    num_samples: int  # of the split; fewer may have been looked at
    facts: list[Facts]
    broken: list[str]

    @property
    def is_complete(self) -> bool:
        return len(self.facts) == self.num_samples

    def class_pixels(self) -> np.ndarray:
        """int64 (N, K + 1), void last."""
        return np.stack([f.pixels for f in self.facts])

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of R, G and B in 0..1, over all pixels that were looked at."""
        num_pixels = sum(f.size[0] * f.size[1] for f in self.facts)
        first, second = np.sum([f.channels for f in self.facts], axis=0) / num_pixels
        return first.tolist(), np.sqrt(np.maximum(second - first**2, 0)).tolist()


def of_split(
    uri: str, index: Index, split: str, most: int | None, advance: Callable[[int], None] = lambda n: None
) -> Survey:
    """The facts of a split's samples, or of about `most`, in whole row groups that are the same ones every time."""
    source = Source(uri, index, split)
    groups = np.arange(len(source.sizes))
    if most is not None:
        shuffled = Permutation(len(groups), key(0, 31))(groups)
        enough = int(np.searchsorted(np.cumsum(source.sizes[shuffled]), most)) + 1
        groups = np.sort(shuffled[:enough])
    labels = index.labels

    def read(group: int) -> list[Facts | str]:
        try:
            rows = source.fetch(group)
        except DataError as error:
            return [str(error)]
        return [facts_of(rows.sample(i), labels) for i in range(rows.num_rows)]

    survey = Survey(split, index.split(split).num_samples, [], [])
    with ThreadPoolExecutor(_THREADS) as pool:
        for rows in ahead(pool, read, groups.tolist(), 2 * _THREADS):
            survey.facts.extend(f for f in rows if isinstance(f, Facts))
            survey.broken.extend(f for f in rows if isinstance(f, str))
            advance(len(rows))
    return survey


def facts_of(sample: Sample, labels: Labels) -> Facts | str:
    """A sample's facts, or what is wrong with it."""
    data, size = memoryview(sample.image).cast("B"), (sample.height, sample.width)
    try:
        if (own := size_of(data)) != size:
            return f"sample {sample.sample_id!r}: its image is {own[0]}x{own[1]}, its mask {size[0]}x{size[1]}"
        raw = decode_mask(sample.mask, sample.mask_codec, *size)
        with opened(data) as image:
            mode, turned = f"{image.format} {image.mode}", image.getexif().get(_ORIENTATION, 1) != 1
            pixels, seen = np.asarray(image.convert("RGB")), difference_hash(image)
    except (DataError, OSError, ValueError, SyntaxError) as error:
        return f"sample {sample.sample_id!r}: {error}"
    counts = histogram(raw)
    try:
        check(counts, labels, f"sample {sample.sample_id!r}")
    except LabelError as error:
        return str(error)
    classes = np.bincount(labels.table(raw.dtype), counts, minlength=256).astype(np.int64)
    per_class = np.append(classes[: labels.num_classes], classes[IGNORE])
    digest = hashlib.sha256(data).hexdigest()
    return Facts(sample.sample_id, digest, seen, size, mode, turned, per_class, _channel_sums(pixels))


def _channel_sums(pixels: np.ndarray) -> np.ndarray:
    """float64 (2, 3): sum and sum of squares of each channel in 0..1, exactly, by the histogram of each."""
    counts = np.stack([histogram(pixels[..., c]) for c in range(3)])
    values = np.arange(256) / 255
    return np.stack([counts @ values, counts @ values**2])


def difference_hash(image: Image.Image) -> int:
    """64 bits that change little when an image is resized or compressed: is each cell of 8x8 brighter than its left one?"""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def likenesses(a: list[Facts], b: list[Facts], most_bits: int) -> list[tuple[Facts, Facts]]:
    """Each of `a` whose image's hash differs in at most so many bits from another one of `b`, with the first such one.

    Copies, byte by byte, are another matter, and flat images, which all look alike, are left out.
    """
    hashes = np.array([f.image_hash for f in b], np.uint64)
    found = []
    for facts in a:
        if _LEAST_BITS <= facts.image_hash.bit_count() <= 64 - _LEAST_BITS:
            near = np.flatnonzero(np.bitwise_count(hashes ^ np.uint64(facts.image_hash)) <= most_bits)
            other = next((b[j] for j in near if b[j].digest != facts.digest), None)
            if other is not None:
                found.append((facts, other))
    return found
