"""Releases of Segments.ai: one JSON file that lists every image and, for every label, a bitmap of object IDs.

A bitmap is an RGBA PNG whose red, green and blue are the low, middle and high byte of an object's ID; 0 is unlabelled.
`annotations` map every ID to its category. Format: docs.segments.ai and the public SDK, segments-ai 1.33, whose
`get_semantic_bitmap` treats an ID without annotation as unlabelled if a larger ID has one, and fails otherwise.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segdist import console, storage
from segdist.data.importers import fetched
from segdist.data.importers.files import Rules, open_image, report_retry
from segdist.data.importers.layout import SPLIT_NAMES, ImportOptions, ImportPlan, Layout, Pair, Splits, split_off
from segdist.data.labels import Class, Labels, color_of, generated_colors
from segdist.errors import DataError, LabelError

_TASKS = ("segmentation-bitmap", "segmentation-bitmap-highres")
_FINISHED = ("LABELED", "REVIEWED", "VERIFIED")
_LABELSET = "ground-truth"


def find(source: str, options: ImportOptions) -> ImportPlan:
    """Return the labelled samples of a release file. Fetches their images and bitmaps, up to the limit."""
    release = _release(source)
    name = storage.redacted(source)
    try:
        data = release["dataset"]
        contract = _contract(data["task_attributes"]["categories"])
        void = _void(data["task_attributes"]["categories"])
        owner = data.get("owner", "")
        owner = owner.get("username", "") if isinstance(owner, dict) else str(owner)
        identity = (owner, str(data["name"]), str(release["name"]), str(release.get("created_at", "")))
        pairs = list(_pairs(data, options.subset or _LABELSET, fetched.folder_of("segments", *identity), void))
        splits = _splits(pairs, data["samples"], options)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError | LabelError):
            raise type(error)(f"{name}: {error}") from None
        raise DataError(f"{name}: not a valid release of Segments.ai ({error!r}). Download it again") from None
    splits = {s: some[: options.limit] for s, some in splits.items()}
    files = [f for some in splits.values() for p in some for f in (p.image, p.mask) if isinstance(f, fetched.Fetched)]
    fetched.fetch(files)
    title = "/".join(part for part in identity[:2] if part)
    return ImportPlan(splits, contract, source=f"Segments.ai {title}, release {release['name']} ({name})")


def _release(source: str) -> dict[str, Any]:
    """Read the release file. Raises DataError unless it is a release of segmentation bitmaps."""
    name = storage.redacted(source)
    if storage.is_local(source) and storage.local_path(source).is_dir():
        raise DataError(f"{name}: this is a folder. Give the release file, downloaded from Segments.ai's Releases tab")
    try:
        tree = json.loads(storage.with_retries(lambda: storage.read(source), report_retry))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{name}: not JSON ({error}). Download the release file again") from None
    data = tree.get("dataset") if isinstance(tree, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("samples"), list):
        raise DataError(
            f"{name}: not a release of Segments.ai (dataset with samples). Download it from the Releases tab"
        )
    if data.get("task_type") not in _TASKS:
        raise DataError(
            f"{name}: this is a release of task {data.get('task_type')!r}, but only {' and '.join(_TASKS)} have pixel masks. "
            "Release a dataset of one of these tasks"
        )
    return tree


def _void(categories: list[dict[str, Any]]) -> int:
    """Return the raw value of pixels without a category: 0 as in the bitmap, unless that is a category's ID."""
    ids = [int(c["id"]) for c in categories]
    return 0 if 0 not in ids else max(ids) + 1


def _contract(categories: list[dict[str, Any]]) -> Labels:
    """Return a contract with categories as classes in their colours. Raw values are category IDs; the rest is void."""
    void = _void(categories)
    shades = generated_colors(len(categories))
    classes = [
        Class(str(c["name"]), (int(c["id"]),), color_of(list(c["color"])[:3]) if c.get("color") else shade)
        for c, shade in zip(categories, shades)
    ]
    if len(classes) == 1:
        console.say(f"{classes[0].name!r} is the only category, so unlabelled pixels become the class 'background'")
        return Labels((Class("background", (void,), (0, 0, 0)), *classes), ())
    return Labels(tuple(classes), (void,))


def _pairs(data: dict[str, Any], labelset: str, folder: Path, void: int) -> Iterator[Pair]:
    """Yield a pair for every finished label, and report how many samples have none."""
    labelsets = [str(s["name"]) for s in data.get("labelsets", [])]
    if labelsets and labelset not in labelsets:
        raise DataError(f"no labelset {labelset!r}. It has {', '.join(labelsets)}. Choose one with --subset")
    known = {int(c["id"]) for c in data["task_attributes"]["categories"]}
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for sample in data["samples"]:
        name = str(sample["name"])
        label = (sample.get("labels") or {}).get(labelset) or {}
        attributes = label.get("attributes") or {}
        address = (attributes.get("segmentation_bitmap") or {}).get("url")
        if label.get("label_status") not in _FINISHED or not address:
            status = label.get("label_status", "UNLABELED")
            left_out[f"{status} without a bitmap" if status in _FINISHED else str(status)] += 1
            continue
        if name in seen:
            raise DataError(
                f"two samples are named {name!r}. Rename one of them in Segments.ai and create a new release"
            )
        seen.add(name)
        categories = _annotated(name, attributes.get("annotations") or [], known)
        image = fetched.locate(str(sample["attributes"]["image"]["url"]), folder, name)
        decode = partial(_decode, categories=categories, void=void)
        yield Pair(name, image, fetched.locate(str(address), folder, name), decode)
    if left_out:
        counts = ", ".join(f"{num} {status}" for status, num in sorted(left_out.items()))
        console.say(f"left out of {len(data['samples'])} samples: {counts} (only {', '.join(_FINISHED)} are used)")
    if not seen:
        raise DataError(
            f"no sample has a finished label in labelset {labelset!r}. Label some, and create a new release"
        )


def _annotated(sample: str, annotations: list[dict[str, Any]], known: set[int]) -> dict[int, int]:
    """Return category by object ID. Raises LabelError for contradictions and for undeclared categories."""
    categories: dict[int, int] = {}
    for a in annotations:
        number, category = int(a["id"]), int(a["category_id"])
        if not 0 <= number < 2**24:
            raise LabelError(
                f"sample {sample}: object {number} has an annotation, but a bitmap has 24 bits and cannot hold this ID. "
                "Create a new release"
            )
        if category not in known:
            raise LabelError(
                f"sample {sample}: object {number} has category {category}, which is not declared. Declare it"
            )
        if categories.setdefault(number, category) != category:
            raise LabelError(
                f"sample {sample}: object {number} has two categories, {categories[number]} and {category}. Correct this label"
            )
    return categories


def _splits(pairs: list[Pair], samples: list[dict[str, Any]], options: ImportOptions) -> Splits:
    """Split by the samples' metadata `split` if they have it (a users' convention, not part of the format), else by seed."""
    stated = {str(s["name"]): (s.get("metadata") or {}).get("split") for s in samples}
    without = [p.sample_id for p in pairs if stated[p.sample_id] is None]
    if len(without) == len(pairs):
        return split_off(pairs, options)
    if without:
        raise DataError(
            f"{len(without)} samples have no metadata `split`, such as {without[0]}, but others have it. Set it for all samples"
        )
    splits: Splits = {}
    for p in pairs:
        split = SPLIT_NAMES.get(str(stated[p.sample_id]).lower())
        if split is None:
            raise DataError(
                f"sample {p.sample_id}: metadata `split` is {stated[p.sample_id]!r}. It must be train, val or test"
            )
        splits.setdefault(split, []).append(p)
    return splits if "val" in splits else splits | split_off(splits.get("train", []), options)


def _decode(data: bytes, name: str, rules: Rules, *, categories: dict[int, int], void: int) -> np.ndarray:
    """Return (H, W) uint8 or uint16 category IDs from a bitmap of object IDs; `void` where there is no object.

    Raises LabelError if IDs exceed all annotated ones, because then the bitmap and its annotations do not belong together.
    """
    with open_image(data, name, rules.max_pixels) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise LabelError(
                f"{name}: this is a bitmap of mode {image.mode}, but Segments.ai writes RGBA. Create a new release"
            )
        channels = np.asarray(image)
    ids = channels[..., 0] | channels[..., 1].astype(np.uint32) << 8 | channels[..., 2].astype(np.uint32) << 16
    annotated = np.array([*categories], np.uint32)
    largest, beyond = int(annotated.max(initial=0)), int(ids.max(initial=0))
    if beyond > largest:
        raise LabelError(
            f"{name}: {int((ids > largest).sum())} pixels have object IDs up to {beyond}, but the annotations end at "
            f"{largest}, so the bitmap does not belong to these annotations. Save this label again in Segments.ai, or reject "
            "it, and create a new release"
        )
    values = np.full(largest + 1, void, np.uint16 if max(void, *categories.values(), 0) > 255 else np.uint8)
    values[annotated] = [*categories.values()]
    named = np.zeros(largest + 1, bool)
    named[annotated] = named[0] = True
    if num := int((~named[ids]).sum()):
        text = f"warning: {name}: {num} pixels have object IDs without annotation; they are void"
        console.warn("bitmaps with object IDs without annotation", text)
    return values[ids]


SEGMENTS = Layout(
    find,
    "a release of Segments.ai: finished labels of segmentation bitmaps, categories as classes, unlabelled pixels as void",
    "the release file (path, s3:// or https://); --subset chooses the labelset [ground-truth]; samples may name their split in "
    "the metadata `split`",
    options=("subset",),
)
