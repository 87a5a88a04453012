"""`MeanIoU`: `evaluate.load("mean_iou")` without the network, with the same keys and the same values to the last bit.

    metric = segdist.evaluation.scores.MeanIoU()
    metric.add_batch(predictions=preds, references=masks)
    metric.compute(num_labels=150, ignore_index=255)

The original writes every image into an arrow file and reads it back; this one keeps how often each pair of values was
seen, a few hundred kB however many images, since what the values mean is said at compute only. Importing this module
costs what importing `evaluate` costs: seconds. Where the original is wrong without a word or fails by mistake, this one
says so or is right; the docstring of `MeanIoU` lists where.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from segdist.errors import UserError
from segdist.evaluation.confusion import add_pairs
from segdist.evaluation.scores import class_iou

_MAX_VALUES = 4096  # different values in one evaluation; their table would hold 128 MB
_LOOKUP_VALUES = 1 << 17  # an image whose values span less is indexed by a table, else by sorting
_NAMES = ("predictions", "references")

_INPUTS = """
Args:
    predictions: index maps (H, W), one per image; images may differ in size. Arrays, tensors, PIL images or lists.
    references: the masks, of the same sizes.
    num_labels (int): number of classes.
    ignore_index (int or None): pixels whose reference has this value leave everything, predictions there included.
    nan_to_num (number, optional): written in place of NaN, after the means.
    label_map (dict[int, int], optional): old to new value of references, all at once, before anything else.
    reduce_labels (bool): afterwards, references 0 and 255 become 255 and all others one less.
Returns:
    mean_iou, mean_accuracy, overall_accuracy (float64) and per_category_iou, per_category_accuracy (float64 arrays).
"""


@dataclass(frozen=True)
class Options:
    """The options of compute, checked."""

    num_labels: int
    ignore_index: int | None
    nan_to_num: float | None = None
    label_map: dict[int, int] | None = None
    reduce_labels: bool = False

    def __post_init__(self) -> None:
        if _whole("num_labels", self.num_labels) < 1:
            raise UserError(f"num_labels={self.num_labels}: give the number of classes, at least 1")
        if self.ignore_index is not None:
            _whole("ignore_index", self.ignore_index)
        for old, new in (self.label_map or {}).items():
            _whole("label_map, an old value", old)
            _whole("label_map, a new value", new)
        if self.reduce_labels and self.num_labels > 254:
            raise UserError(
                f"reduce_labels=True with num_labels={self.num_labels}: it takes 255 for void, which is the raw value of the "
                "255th class; subtract 1 from the masks yourself, with another value for void, and leave reduce_labels out"
            )


@dataclass(frozen=True)
class Pairs:
    """How often each pair of values was seen."""

    values: np.ndarray  # int64 (n,), ascending
    counts: np.ndarray  # int64 (n, n), pixels by [reference, prediction]


_BLOCK_PX = 1 << 15
_BYTES = np.arange(256)  # the values of uint8 images


class MeanIoU(evaluate.Metric):
    """A drop-in for `evaluate.load("mean_iou")`: add, add_batch, compute, len; compute empties it.

    Where the original (evaluate 0.4.6, its script as of 2026) goes wrong without a word, or fails by mistake:
    - values beyond 32 bits count as what a cast makes of them: refused here, as are fractions, and maps of 3 dimensions;
    - reduce_labels loses the 255th class: refused here; it makes class 0 of a whole boolean mask: right here;
    - label_map takes no notice of keys that are text: refused here; some versions fail on any map: right here;
    - different sizes are an IndexError, no images at all are NaN: plain errors here.
    Several processes that share a cache folder are not supported: count in each, and add segdist's pair tables.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.num_process != 1:
            raise UserError(
                f"num_process={self.num_process}: MeanIoU does not gather over processes by files; sum "
                "segdist.evaluation.confusion.confusion_matrix over your ranks (one all-reduce) and take "
                "segdist.evaluation.scores.scores of it"
            )
        self._empty()

    def _empty(self) -> None:
        self._bytes = np.zeros((256, 256), np.int64)
        self._others = Pairs(_BYTES[:0], self._bytes[:0, :0])
        self._num_images = 0

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Intersection over union of every class, and its mean, over all pixels of all images.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({name: datasets.Image() for name in _NAMES}),
        )

    def _build_data_dir(self) -> str:
        """The folder that evaluate would use; nothing is ever written, so it is not made."""
        return os.path.join(self._data_dir_root, self.name, self.config_name)

    def __len__(self) -> int:
        return self._num_images

    def add(self, *, prediction: Any = None, reference: Any = None, **others: Any) -> None:
        """Count one image."""
        given = dict(zip(_NAMES, (prediction, reference))) | _known(others)
        if any(given[name] is None for name in _NAMES):
            raise UserError("add needs prediction= and reference=, an index map (H, W) each")
        self.add_batch(**{name: [given[name]] for name in _NAMES})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **others: Any) -> None:
        """Count some images; all of them or, when one is refused, none."""
        _known(others)
        small, wide, num_images = _count(predictions, references)
        self._bytes += small
        if wide:
            self._others = _merge([self._others, *wide])
        self._num_images += num_images

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        num_labels: int,
        ignore_index: int | None,
        nan_to_num: float | None = None,
        label_map: dict[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> dict[str, Any]:
        """The scores of everything added, these images included; empties the metric."""
        options = Options(num_labels, ignore_index, nan_to_num, label_map, reduce_labels)  # before anything is counted
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self._num_images:
            raise UserError("MeanIoU has no images: call add or add_batch before compute, or give it some")
        pairs = _merge([Pairs(_BYTES, self._bytes), self._others])
        self._empty()
        return _scores(_areas(pairs, options), options)

    def _compute(
        self,
        predictions: Any,
        references: Any,
        num_labels: int,
        ignore_index: int | None,
        nan_to_num: float | None = None,
        label_map: dict[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> dict[str, Any]:
        """The scores of these images alone; what has been added stays. Tutorials call it to avoid the arrow file."""
        options = Options(num_labels, ignore_index, nan_to_num, label_map, reduce_labels)
        small, wide, _ = _count(predictions, references)
        return _scores(_areas(_merge([Pairs(_BYTES, small), *wide]), options), options)


def _whole(name: str, value: Any) -> int:
    """The integer that a value is. Raises UserError for text, fractions and whatever else is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"{name}: {value!r} is not an integer") from None


def _known(others: dict[str, Any]) -> dict[str, Any]:
    """The inputs by name. Raises UserError for names that are none."""
    if unknown := set(others) - set(_NAMES):
        raise UserError(f"unknown input {sorted(unknown)[0]!r}: MeanIoU takes {' and '.join(_NAMES)}")
    return others


def _count(predictions: Any, references: Any) -> tuple[np.ndarray, list[Pairs], int]:
    """What some images hold: the int64 (256, 256) table of those that fit uint8, the pairs of the others, and how many."""
    if predictions is None or references is None:
        missing = _NAMES[0] if predictions is None else _NAMES[1]
        raise UserError(
            f"{missing} are missing: MeanIoU takes predictions and references, as many of the one as of the other"
        )
    preds, refs = (x.detach().cpu().numpy() if torch.is_tensor(x) else x for x in (predictions, references))
    if not (hasattr(preds, "__len__") and hasattr(refs, "__len__")):
        raise UserError("predictions and references are lists, or arrays, of index maps; a single image goes by add")
    if len(preds) != len(refs):
        raise UserError(f"{len(preds)} predictions, but {len(refs)} references")
    small, wide = np.zeros((256, 256), np.int64), []
    for i, (pred, ref) in enumerate(zip(preds, refs)):
        pred, ref = _index_map(pred, f"prediction {i}"), _index_map(ref, f"reference {i}")
        if pred.shape != ref.shape:
            raise UserError(
                f"image {i}: the prediction is {pred.shape}, the reference {ref.shape}; resize the logits to the mask's "
                "size before the argmax (never the mask)"
            )
        if pred.dtype == ref.dtype == np.uint8:
            add_pairs(small, pred, ref)
        else:
            wide.append(_indexed(pred.astype(np.int64), ref.astype(np.int64), i))
    return small, wide, len(preds)


def _index_map(given: Any, name: str) -> np.ndarray:
    """The map as uint8 where its values allow, else in its own integers. Raises UserError for what is no index map."""
    if isinstance(given, str | bytes | dict | os.PathLike):
        raise UserError(f"{name}: give its pixels, not {type(given).__name__}; MeanIoU opens no files")
    try:
        array = given.detach().cpu().numpy() if torch.is_tensor(given) else np.asarray(given)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: rows of different lengths, or no numbers ({error})") from None
    if array.ndim not in (1, 2):
        raise UserError(
            f"{name} has shape {array.shape}: an index map has (H, W); take the argmax, or the indices of a palette"
        )
    if array.dtype.kind == "f" and (array == np.floor(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "bui":
        raise UserError(f"{name} has values of type {array.dtype} that are not whole numbers; take the argmax first")
    if array.dtype == np.uint8:
        return array
    if (small := _as_bytes(array)) is not None:
        return small
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < -(2**31) or high >= 2**31:
        raise UserError(f"{name} holds {low if low < -(2**31) else high}: values must fit a 32-bit integer")
    return array


def _as_bytes(array: np.ndarray) -> np.ndarray | None:
    """The integers as uint8; None where one does not fit. In blocks, which are in the cache when they are read again."""
    flat = array.ravel()
    small = np.empty(flat.shape, np.uint8)
    signed = flat.dtype.kind == "i"
    # what is negative becomes larger than any other; in the same order of bytes
    unsigned = flat.view(flat.dtype.str.replace("i", "u")) if signed else flat
    most = min(255, np.iinfo(flat.dtype).max) if signed else 255
    for start in range(0, flat.size, _BLOCK_PX):
        block = slice(start, start + _BLOCK_PX)
        if unsigned[block].max() > most:
            return None
        small[block] = flat[block]
    return small.reshape(array.shape)


def _indexed(pred: np.ndarray, ref: np.ndarray, i: int) -> Pairs:
    """The pairs of one image with int64 values of any size. Raises UserError when they are too many to be classes."""
    both = np.stack([ref.ravel(), pred.ravel()])
    low = both.min()
    if both.max() - low < _LOOKUP_VALUES:
        both -= low
        present = np.bincount(both.ravel()) > 0
        values = np.flatnonzero(present)
        at = (np.cumsum(present) - 1)[both]
        values += low
    else:
        values, flat = np.unique(both, return_inverse=True)
        at = flat.reshape(both.shape)
    n = _bounded(len(values), f"image {i}")
    return Pairs(values, np.bincount(at[0] * n + at[1], minlength=n * n).reshape(n, n))


def _merge(parts: Sequence[Pairs]) -> Pairs:
    values = np.unique(np.concatenate([p.values for p in parts]))
    n = _bounded(len(values), "the images together")
    counts = np.zeros((n, n), np.int64)
    for part in parts:
        at = np.searchsorted(values, part.values)
        counts[np.ix_(at, at)] += part.counts
    return Pairs(values, counts)


def _bounded(num_values: int, what: str) -> int:
    if num_values > _MAX_VALUES:
        raise UserError(
            f"{what}: {num_values:,} different values, more than {_MAX_VALUES:,}; are these maps of classes?"
        )
    return num_values


def _areas(pairs: Pairs, options: Options) -> np.ndarray:
    """int64 (3, K): intersection, true and predicted pixels of every class."""
    meaning = pairs.values.copy()
    for old, new in (options.label_map or {}).items():
        meaning[pairs.values == old] = new
    if options.reduce_labels:
        meaning = np.where((meaning == 0) | (meaning == 255), 255, meaning - 1)
    kept = np.full(len(meaning), True) if options.ignore_index is None else meaning != options.ignore_index
    num_classes, counts, areas = options.num_labels, pairs.counts, np.zeros((3, options.num_labels), np.int64)
    classes = (meaning >= 0) & (meaning < num_classes)
    at = np.searchsorted(pairs.values, meaning).clip(max=len(meaning) - 1)  # of the prediction that would be right
    hit = np.flatnonzero(kept & classes & (pairs.values[at] == meaning))
    np.add.at(areas[0], meaning[hit], counts[hit, at[hit]])
    true = kept & classes
    np.add.at(areas[1], meaning[true], counts[true].sum(1))
    predicted = (pairs.values >= 0) & (pairs.values < num_classes)
    areas[2, pairs.values[predicted]] = counts[kept].sum(0)[predicted]
    return areas


def _scores(areas: np.ndarray, options: Options) -> dict[str, Any]:
    """As `evaluate` returns them: float64 scalars and arrays."""
    hit, true, _ = areas.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou, accuracy, overall = class_iou(areas), hit / true, hit.sum() / true.sum()
    result = {
        "mean_iou": _nanmean(iou),
        "mean_accuracy": _nanmean(accuracy),
        "overall_accuracy": overall,
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }
    if options.nan_to_num is None:
        return result
    return {name: np.nan_to_num(value, nan=options.nan_to_num) for name, value in result.items()}


def _nanmean(values: np.ndarray) -> np.float64:
    return np.float64(np.nan) if np.isnan(values).all() else np.nanmean(values)
