"""A survey of the samples of a split: one pass in threads that collects facts about each sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from segdist.data.codec import decode_mask, open_image, size_of
from segdist.data.index import Index
from segdist.data.labels import Labels, histogram
from segdist.data.order import Permutation, key
from segdist.data.source import Sample, Source
from segdist.data.unknown_values import check
from segdist.errors import DataError, LabelError
from segdist.ops import IGNORE
from segdist.threads import map_ahead

_ORIENTATION = 0x0112  # EXIF tag
_THREADS = 8
_MIN_BITS = 8  # hashes with fewer ones or zeros (flat images) are not compared


@dataclass(frozen=True)
class Facts:
    """Facts about one sample."""

    sample_id: str
    digest: str  # sha256 of the image's bytes
    image_hash: int  # 64-bit difference hash of the image
    size: tuple[int, int]  # (height, width), px
    mode: str  # JPEG RGB, PNG L, ...
    turned: bool  # whether the image has an EXIF rotation that was not applied
    pixels: np.ndarray  # int64 (K + 1,): pixels of each class, void last
    channels: np.ndarray  # float64 (2, 3): sum and sum of squares of R, G, B in 0..1


@dataclass(frozen=True)
class Survey:
    """Facts about samples of a split. `broken` has an error message for each sample or row group that cannot be read."""

    split: str
    num_samples: int  # in the split; the survey may cover fewer
    facts: list[Facts]
    broken: list[str]

    @property
    def is_complete(self) -> bool:
        return len(self.facts) == self.num_samples

    def class_pixels(self) -> np.ndarray:
        """Return the pixels of each class in each sample: int64 (N, K + 1), void last."""
        return np.stack([f.pixels for f in self.facts])

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Return the mean and standard deviation of R, G and B in 0..1, over all pixels surveyed."""
        num_pixels = sum(f.size[0] * f.size[1] for f in self.facts)
        first, second = np.sum([f.channels for f in self.facts], axis=0) / num_pixels
        return first.tolist(), np.sqrt(np.maximum(second - first**2, 0)).tolist()


def survey_split(
    uri: str, index: Index, split: str, sample: int | None, advance: Callable[[int], None] = lambda n: None
) -> Survey:
    """Survey a split, or about `sample` of its samples: a fixed random choice of row groups."""
    source = Source(uri, index, split)
    row_groups = np.arange(len(source.sizes))
    if sample is not None:
        shuffled = Permutation(len(row_groups), key(0, 31))(row_groups)
        enough = int(np.searchsorted(np.cumsum(source.sizes[shuffled]), sample)) + 1
        row_groups = np.sort(shuffled[:enough])
    labels = index.labels

    def read(row_group: int) -> list[Facts | str]:
        try:
            rows = source.fetch(row_group)
        except DataError as error:
            return [str(error)]
        return [sample_facts(rows.sample(i), labels) for i in range(rows.num_rows)]

    survey = Survey(split, index.split(split).num_samples, [], [])
    with ThreadPoolExecutor(_THREADS) as pool:
        for rows in map_ahead(pool, read, row_groups.tolist(), 2 * _THREADS):
            survey.facts.extend(f for f in rows if isinstance(f, Facts))
            survey.broken.extend(f for f in rows if isinstance(f, str))
            advance(len(rows))
    return survey


def sample_facts(sample: Sample, labels: Labels) -> Facts | str:
    """Return the facts about a sample, or an error message if it is broken."""
    data, size = memoryview(sample.image).cast("B"), (sample.height, sample.width)
    try:
        if (own := size_of(data)) != size:
            return (
                f"sample {sample.sample_id!r}: the image is {own[0]}x{own[1]}, but its mask is {size[0]}x{size[1]} "
                "(height x width)"
            )
        raw = decode_mask(sample.mask, sample.mask_codec, *size)
        with open_image(data) as image:
            mode, turned = f"{image.format} {image.mode}", image.getexif().get(_ORIENTATION, 1) != 1
            pixels, image_hash = np.asarray(image.convert("RGB")), difference_hash(image)
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
    return Facts(sample.sample_id, digest, image_hash, size, mode, turned, per_class, _channel_sums(pixels))


def _channel_sums(pixels: np.ndarray) -> np.ndarray:
    """Return sum and sum of squares of each channel in 0..1, from histograms: float64 (2, 3)."""
    counts = np.stack([histogram(pixels[..., c]) for c in range(3)])
    values = np.arange(256) / 255
    return np.stack([counts @ values, counts @ values**2])


def difference_hash(image: Image.Image) -> int:
    """Return the 64-bit difference hash (dHash) of an image: whether each of 8x8 cells is brighter than its left neighbour.

    Resizing or compressing an image changes few bits.
    """
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def near_duplicates(a: list[Facts], b: list[Facts], max_bits: int) -> list[tuple[Facts, Facts]]:
    """Pair each sample of `a` with the first of `b` whose image hash differs in at most `max_bits` bits.

    Identical files do not count, and flat images are left out because their hashes are alike.
    """
    hashes = np.array([f.image_hash for f in b], np.uint64)
    pairs = []
    for facts in a:
        if _MIN_BITS <= facts.image_hash.bit_count() <= 64 - _MIN_BITS:
            near = np.flatnonzero(np.bitwise_count(hashes ^ np.uint64(facts.image_hash)) <= max_bits)
            other = next((b[j] for j in near if b[j].digest != facts.digest), None)
            if other is not None:
                pairs.append((facts, other))
    return pairs
