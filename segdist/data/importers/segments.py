"""Releases of Segments.ai: one JSON file that names every image, and for every label a bitmap of object ids.

A bitmap is an RGBA PNG whose red, green and blue are the low, middle and high byte of an object's id; 0 is unlabelled.
`annotations` give every id its category. Format: docs.segments.ai, and the public SDK, segments-ai 1.33, whose
`get_semantic_bitmap` reads an id without annotation as unlabelled if a larger id has one, and fails if none has.
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
from segdist.data.importers.files import Rules, open_picture, waiting
from segdist.data.importers.layout import SPLIT_NAMES, ImportOptions, ImportPlan, Layout, Pair, Splits, split_off
from segdist.data.labels import Class, Labels, color_of, generated_colors
from segdist.errors import DataError, LabelError

_TASKS = ("segmentation-bitmap", "segmentation-bitmap-highres")
_DONE = ("LABELED", "REVIEWED", "VERIFIED")
_LABELSET = "ground-truth"


def find(source: str, ask: ImportOptions) -> ImportPlan:
    """The labelled samples of a release file; their images and bitmaps are fetched here, those beyond the limit are not."""
    release = _release(source)
    name = storage.redacted(source)
    try:
        data = release["dataset"]
        contract = _contract(data["task_attributes"]["categories"])
        void = _void(data["task_attributes"]["categories"])
        owner = data.get("owner", "")
        owner = owner.get("username", "") if isinstance(owner, dict) else str(owner)
        identity = (owner, str(data["name"]), str(release["name"]), str(release.get("created_at", "")))
        pairs = list(_pairs(data, ask.subset or _LABELSET, fetched.folder_of("segments", *identity), void))
        splits = _splits(pairs, data["samples"], ask)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError | LabelError):
            raise type(error)(f"{name}: {error}") from None
        raise DataError(f"{name}: not understood as a release of Segments.ai ({error!r}); download it again") from None
    splits = {s: some[: ask.limit] for s, some in splits.items()}
    files = [f for some in splits.values() for p in some for f in (p.image, p.mask) if isinstance(f, fetched.Fetched)]
    fetched.fetch(files)
    title = "/".join(part for part in identity[:2] if part)
    return ImportPlan(splits, contract, source=f"Segments.ai {title}, release {release['name']} ({name})")


def _release(source: str) -> dict[str, Any]:
    """The release file. Raises DataError unless it is one of segmentation bitmaps."""
    name = storage.redacted(source)
    if storage.is_local(source) and storage.local_path(source).is_dir():
        raise DataError(f"{name}: a folder; give the release file that Segments.ai's Releases tab lets you download")
    try:
        tree = json.loads(storage.with_retries(lambda: storage.read(source), waiting))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{name}: not JSON ({error}); download the release file again") from None
    data = tree.get("dataset") if isinstance(tree, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("samples"), list):
        raise DataError(f"{name}: no release of Segments.ai (dataset with samples); download it from its Releases tab")
    if data.get("task_type") not in _TASKS:
        raise DataError(
            f"{name}: a release of task {data.get('task_type')!r}; only {' and '.join(_TASKS)} hold masks of pixels"
        )
    return tree


def _void(categories: list[dict[str, Any]]) -> int:
    """The raw value for pixels without a category: 0 as in the bitmap, unless that is a category's id."""
    ids = [int(c["id"]) for c in categories]
    return 0 if 0 not in ids else max(ids) + 1


def _contract(categories: list[dict[str, Any]]) -> Labels:
    """Categories as classes in their colours; the raw values are their ids, and the rest is void."""
    void = _void(categories)
    shades = generated_colors(len(categories))
    classes = [
        Class(str(c["name"]), (int(c["id"]),), color_of(list(c["color"])[:3]) if c.get("color") else shade)
        for c, shade in zip(categories, shades)
    ]
    if len(classes) == 1:
        console.say(f"{classes[0].name!r} is the only category: what is unlabelled is taken for the class 'background'")
        return Labels((Class("background", (void,), (0, 0, 0)), *classes), ())
    return Labels(tuple(classes), (void,))


def _pairs(data: dict[str, Any], labelset: str, folder: Path, void: int) -> Iterator[Pair]:
    """A pair for every finished label; says how many samples have none."""
    labelsets = [str(s["name"]) for s in data.get("labelsets", [])]
    if labelsets and labelset not in labelsets:
        raise DataError(f"no labelset {labelset!r}; it has {', '.join(labelsets)} (choose with --subset)")
    known = {int(c["id"]) for c in data["task_attributes"]["categories"]}
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for sample in data["samples"]:
        name = str(sample["name"])
        label = (sample.get("labels") or {}).get(labelset) or {}
        attributes = label.get("attributes") or {}
        address = (attributes.get("segmentation_bitmap") or {}).get("url")
        if label.get("label_status") not in _DONE or not address:
            status = label.get("label_status", "UNLABELED")
            left_out[f"{status} without a bitmap" if status in _DONE else str(status)] += 1
            continue
        if name in seen:
            raise DataError(f"two samples are called {name!r}; rename one of them in Segments.ai and release anew")
        seen.add(name)
        categories = _annotated(name, attributes.get("annotations") or [], known)
        image = fetched.at(str(sample["attributes"]["image"]["url"]), folder, name)
        decode = partial(_decode, categories=categories, void=void)
        yield Pair(name, image, fetched.at(str(address), folder, name), decode)
    if left_out:
        told = ", ".join(f"{num} {status}" for status, num in sorted(left_out.items()))
        console.say(f"left out, since only {', '.join(_DONE)} count: {told} of {len(data['samples'])} samples")
    if not seen:
        raise DataError(f"no sample has a finished label in labelset {labelset!r}; label some, and release anew")


def _annotated(sample: str, annotations: list[dict[str, Any]], known: set[int]) -> dict[int, int]:
    """Category by object id. Raises LabelError for contradictions and for categories that the data set does not declare."""
    categories: dict[int, int] = {}
    for a in annotations:
        number, category = int(a["id"]), int(a["category_id"])
        if not 0 <= number < 2**24:
            raise LabelError(f"sample {sample}: there is an annotation of object {number}, but a bitmap has 24 bits")
        if category not in known:
            raise LabelError(f"sample {sample}: object {number} is of category {category}, which is not declared")
        if categories.setdefault(number, category) != category:
            raise LabelError(
                f"sample {sample}: object {number} is of two categories, {categories[number]} and {category}"
            )
    return categories


def _splits(pairs: list[Pair], samples: list[dict[str, Any]], ask: ImportOptions) -> Splits:
    """By the metadata `split` of the samples where they have it (a custom of users, not of the format), else seeded."""
    said = {str(s["name"]): (s.get("metadata") or {}).get("split") for s in samples}
    without = [p.sample_id for p in pairs if said[p.sample_id] is None]
    if len(without) == len(pairs):
        return split_off(pairs, ask)
    if without:
        raise DataError(
            f"{len(without)} samples have no metadata `split`, as {without[0]}, others have; give it to all"
        )
    splits: Splits = {}
    for p in pairs:
        split = SPLIT_NAMES.get(str(said[p.sample_id]).lower())
        if split is None:
            raise DataError(
                f"sample {p.sample_id}: its metadata says split {said[p.sample_id]!r}; use train, val or test"
            )
        splits.setdefault(split, []).append(p)
    return splits if "val" in splits else splits | split_off(splits.get("train", []), ask)


def _decode(data: bytes, name: str, rules: Rules, *, categories: dict[int, int], void: int) -> np.ndarray:
    """(H, W) uint8 or uint16 category ids of a bitmap of object ids; `void` where there is no object.

    Raises LabelError when ids are beyond all annotated ones: then bitmap and annotations do not belong together.
    """
    with open_picture(data, name, rules.max_pixels) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise LabelError(
                f"{name}: a bitmap of mode {image.mode}; Segments.ai's are RGBA: release the data set anew"
            )
        bytes_of = np.asarray(image)
    ids = bytes_of[..., 0] | bytes_of[..., 1].astype(np.uint32) << 8 | bytes_of[..., 2].astype(np.uint32) << 16
    annotated = np.array([*categories], np.uint32)
    largest, beyond = int(annotated.max(initial=0)), int(ids.max(initial=0))
    if beyond > largest:
        raise LabelError(
            f"{name}: {int((ids > largest).sum())} pixels bear object ids up to {beyond}, but the annotations end at "
            f"{largest}: the bitmap is not of these annotations. Save this label again in Segments.ai, or reject it, and "
            "release anew"
        )
    values = np.full(largest + 1, void, np.uint16 if max(void, *categories.values(), 0) > 255 else np.uint8)
    values[annotated] = [*categories.values()]
    named = np.zeros(largest + 1, bool)
    named[annotated] = named[0] = True
    if num := int((~named[ids]).sum()):
        text = f"warning: {name}: {num} pixels bear object ids without annotation; they are void"
        console.warn("bitmaps with object ids without annotation", text)
    return values[ids]


SEGMENTS = Layout(
    find,
    "a release of Segments.ai: finished labels of segmentation bitmaps, categories as classes, the unlabelled as void",
    "the release file (path, s3:// or https://); --subset chooses the labelset [ground-truth]; samples may say their split in "
    "the metadata `split`",
    options=("subset",),
)
