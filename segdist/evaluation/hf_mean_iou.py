"""`MeanIoU`: a drop-in for `evaluate.load("mean_iou")` that needs no network, with the same keys and bit-identical values.

    metric = segdist.MeanIoU()
    metric.add_batch(predictions=preds, references=masks)
    metric.compute(num_labels=150, ignore_index=255)

The original writes every image to an Arrow file and reads it back. This version only counts how often each pair of values
occurs, which takes a few hundred kB for any number of images. The meaning of the values is given to `compute`. Importing this
module imports `evaluate`, which takes seconds. The docstring of `MeanIoU` lists the errors of the original that this version
corrects or refuses.
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

_MAX_VALUES = 4096  # distinct values in one evaluation; their table would take 128 MB
_LOOKUP_VALUES = 1 << 17  # images with a smaller range of values are indexed by a lookup table, others by sorting
_NAMES = ("predictions", "references")

_INPUTS = """
Args:
    predictions: class-index masks (H, W), one per image. Images may differ in size. Arrays, tensors, PIL images or lists.
    references: the masks, of the same sizes.
    num_labels (int): number of classes.
    ignore_index (int or None): pixels whose reference has this value are ignored, including the predictions there.
    nan_to_num (number, optional): replaces NaN, after the means are taken.
    label_map (dict[int, int], optional): maps old to new reference values, all at once, before anything else.
    reduce_labels (bool): afterwards, references 0 and 255 become 255, and all others decrease by one.
Returns:
    mean_iou, mean_accuracy, overall_accuracy (float64) and per_category_iou, per_category_accuracy (float64 arrays).
"""


@dataclass(frozen=True)
class Options:
    """The validated options of `compute`."""

    num_labels: int
    ignore_index: int | None
    nan_to_num: float | None = None
    label_map: dict[int, int] | None = None
    reduce_labels: bool = False

    def __post_init__(self) -> None:
        if _integer("num_labels", self.num_labels) < 1:
            raise UserError(f"num_labels={self.num_labels}: the number of classes must be at least 1")
        if self.ignore_index is not None:
            _integer("ignore_index", self.ignore_index)
        for old, new in (self.label_map or {}).items():
            _integer("label_map, an old value", old)
            _integer("label_map, a new value", new)
        if self.reduce_labels and self.num_labels > 254:
            raise UserError(
                f"reduce_labels=True with num_labels={self.num_labels}: reduce_labels uses 255 for void, but 255 is the raw "
                "value of the 255th class. Subtract 1 from the masks yourself, with another value for void"
            )


@dataclass(frozen=True)
class Pairs:
    """Counts of pairs of values."""

    values: np.ndarray  # int64 (n,), ascending
    counts: np.ndarray  # int64 (n, n), pixels by [reference, prediction]


_BLOCK_PX = 1 << 15
_BYTES = np.arange(256)  # the values of uint8 images


class MeanIoU(evaluate.Metric):
    """A drop-in for `evaluate.load("mean_iou")`, with add, add_batch, compute and len. `compute` resets the metric.

    Errors of the original (evaluate 0.4.6, its script as of 2026), and what this version does:
    - It casts values beyond 32 bits silently. Refused here, as are fractions and maps of 3 dimensions.
    - reduce_labels loses the 255th class: refused here. It turns a boolean mask into class 0: corrected here.
    - label_map ignores text keys: refused here. Some versions fail on any label_map: corrected here.
    - Different sizes raise an IndexError, and no images at all give NaN. Both are a UserError here.
    Several processes that share a cache folder are not supported. Add segdist's confusion matrices over your processes instead.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.num_process != 1:
            raise UserError(
                f"num_process={self.num_process}: MeanIoU does not gather results over processes. Sum "
                "segdist.evaluation.confusion.confusion_matrix over your ranks (one all-reduce) and pass the sum to "
                "segdist.evaluation.scores.scores"
            )
        self._reset()

    def _reset(self) -> None:
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
        """Return the folder that evaluate would use, without creating it: nothing is ever written."""
        return os.path.join(self._data_dir_root, self.name, self.config_name)

    def __len__(self) -> int:
        return self._num_images

    def add(self, *, prediction: Any = None, reference: Any = None, **others: Any) -> None:
        """Count one image."""
        given = dict(zip(_NAMES, (prediction, reference))) | _checked_names(others)
        if any(given[name] is None for name in _NAMES):
            raise UserError("MeanIoU.add needs prediction= and reference=, one class-index mask (H, W) each")
        self.add_batch(**{name: [given[name]] for name in _NAMES})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **others: Any) -> None:
        """Count several images. If one is refused, none is counted."""
        _checked_names(others)
        small, wide, num_images = _count_pairs(predictions, references)
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
        """Return the scores of all images added, including those passed here, and reset the metric."""
        options = Options(num_labels, ignore_index, nan_to_num, label_map, reduce_labels)  # checked before counting
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self._num_images:
            raise UserError("MeanIoU has no images. Call add or add_batch before compute, or pass images to compute")
        pairs = _merge([Pairs(_BYTES, self._bytes), self._others])
        self._reset()
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
        """Return the scores of these images only and keep the state. Tutorials call this to avoid the original's Arrow file."""
        options = Options(num_labels, ignore_index, nan_to_num, label_map, reduce_labels)
        small, wide, _ = _count_pairs(predictions, references)
        return _scores(_areas(_merge([Pairs(_BYTES, small), *wide]), options), options)


def _integer(name: str, value: Any) -> int:
    """Return the value as int. Raises UserError if it is not an integer."""
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"{name}: {value!r} is not an integer") from None


def _checked_names(others: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs unchanged. Raises UserError for an unknown name."""
    if unknown := set(others) - set(_NAMES):
        raise UserError(f"unknown input {sorted(unknown)[0]!r}. MeanIoU takes {' and '.join(_NAMES)}")
    return others


def _count_pairs(predictions: Any, references: Any) -> tuple[np.ndarray, list[Pairs], int]:
    """Count pairs: an int64 (256, 256) table of the images that fit uint8, the pairs of the others, the number of images."""
    if predictions is None or references is None:
        missing = _NAMES[0] if predictions is None else _NAMES[1]
        raise UserError(f"the {missing} are missing. MeanIoU takes predictions and references, in equal numbers")
    preds, refs = (x.detach().cpu().numpy() if torch.is_tensor(x) else x for x in (predictions, references))
    if not (hasattr(preds, "__len__") and hasattr(refs, "__len__")):
        raise UserError(
            "predictions and references must be lists or arrays of class-index masks. Use add for a single image"
        )
    if len(preds) != len(refs):
        raise UserError(f"got {len(preds)} predictions, but {len(refs)} references")
    small, wide = np.zeros((256, 256), np.int64), []
    for i, (pred, ref) in enumerate(zip(preds, refs)):
        pred, ref = _index_map(pred, f"prediction {i}"), _index_map(ref, f"reference {i}")
        if pred.shape != ref.shape:
            raise UserError(
                f"image {i}: the prediction has shape {pred.shape} and the reference {ref.shape}. Before the argmax, resize "
                "the logits to the mask's size. Never resize the mask"
            )
        if pred.dtype == ref.dtype == np.uint8:
            add_pairs(small, pred, ref)
        else:
            wide.append(_indexed(pred.astype(np.int64), ref.astype(np.int64), i))
    return small, wide, len(preds)


def _index_map(given: Any, name: str) -> np.ndarray:
    """Return a mask as uint8 if its values fit, else as its own integer type. Raises UserError if it is no class-index mask."""
    if isinstance(given, str | bytes | dict | os.PathLike):
        raise UserError(f"{name} is a {type(given).__name__}. Pass pixels: MeanIoU opens no files")
    try:
        array = given.detach().cpu().numpy() if torch.is_tensor(given) else np.asarray(given)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} has rows of different lengths or contains no numbers ({error})") from None
    if array.ndim not in (1, 2):
        raise UserError(
            f"{name} has shape {array.shape}, but a class-index mask is (H, W). Take the argmax of logits, or the indices of a "
            "palette image"
        )
    if array.dtype.kind == "f" and (array == np.floor(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "bui":
        raise UserError(f"{name} has {array.dtype} values that are not whole numbers. Take the argmax first")
    if array.dtype == np.uint8:
        return array
    if (small := _as_bytes(array)) is not None:
        return small
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < -(2**31) or high >= 2**31:
        raise UserError(f"{name} contains {low if low < -(2**31) else high}. Values must fit a 32-bit integer")
    return array


def _as_bytes(array: np.ndarray) -> np.ndarray | None:
    """Return integers as uint8, or None if one does not fit. Works in blocks that stay in the cache between two reads."""
    flat = array.ravel()
    small = np.empty(flat.shape, np.uint8)
    signed = flat.dtype.kind == "i"
    # as unsigned integers, negative values exceed all others; the view keeps the byte order
    unsigned = flat.view(flat.dtype.str.replace("i", "u")) if signed else flat
    most = min(255, np.iinfo(flat.dtype).max) if signed else 255
    for start in range(0, flat.size, _BLOCK_PX):
        block = slice(start, start + _BLOCK_PX)
        if unsigned[block].max() > most:
            return None
        small[block] = flat[block]
    return small.reshape(array.shape)


def _indexed(pred: np.ndarray, ref: np.ndarray, i: int) -> Pairs:
    """Return the pairs of one image with int64 values of any size. Raises UserError if it has too many distinct values."""
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
    n = _checked_size(len(values), f"Image {i}")
    return Pairs(values, np.bincount(at[0] * n + at[1], minlength=n * n).reshape(n, n))


def _merge(parts: Sequence[Pairs]) -> Pairs:
    values = np.unique(np.concatenate([p.values for p in parts]))
    n = _checked_size(len(values), "The set of images")
    counts = np.zeros((n, n), np.int64)
    for part in parts:
        at = np.searchsorted(values, part.values)
        counts[np.ix_(at, at)] += part.counts
    return Pairs(values, counts)


def _checked_size(num_values: int, what: str) -> int:
    if num_values > _MAX_VALUES:
        raise UserError(
            f"{what} has {num_values:,} different values, more than {_MAX_VALUES:,}. Check that these are class-index masks"
        )
    return num_values


def _areas(pairs: Pairs, options: Options) -> np.ndarray:
    """Return int64 (3, K): intersection, true and predicted pixels of every class."""
    meaning = pairs.values.copy()
    for old, new in (options.label_map or {}).items():
        meaning[pairs.values == old] = new
    if options.reduce_labels:
        meaning = np.where((meaning == 0) | (meaning == 255), 255, meaning - 1)
    kept = np.full(len(meaning), True) if options.ignore_index is None else meaning != options.ignore_index
    num_classes, counts, areas = options.num_labels, pairs.counts, np.zeros((3, options.num_labels), np.int64)
    classes = (meaning >= 0) & (meaning < num_classes)
    at = np.searchsorted(pairs.values, meaning).clip(max=len(meaning) - 1)  # index of the correct prediction
    hit = np.flatnonzero(kept & classes & (pairs.values[at] == meaning))
    np.add.at(areas[0], meaning[hit], counts[hit, at[hit]])
    true = kept & classes
    np.add.at(areas[1], meaning[true], counts[true].sum(1))
    predicted = (pairs.values >= 0) & (pairs.values < num_classes)
    areas[2, pairs.values[predicted]] = counts[kept].sum(0)[predicted]
    return areas


def _scores(areas: np.ndarray, options: Options) -> dict[str, Any]:
    """Return the scores as `evaluate` does: float64 scalars and arrays."""
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
