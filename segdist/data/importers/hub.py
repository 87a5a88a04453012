"""Datasets on the Hugging Face Hub, or in a folder that `datasets` reads: one column of images and one of masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from segdist import console, storage
from segdist.data import names
from segdist.data.importers.hub_rows import Cell, Place, Rows, open_rows, read_beside
from segdist.data.importers.layout import SMALL, SPLIT_NAMES, ImportOptions, ImportPlan, Layout, Pair, Splits, split_off
from segdist.data.labels import Labels
from segdist.errors import DataError, LabelError

_IMAGES = ("image", "images", "img", "pixel_values", "picture", "photo", "rgb")
_MASKS = (
    "mask", "masks", "label", "labels", "annotation", "annotations", "semantic_mask", "segmentation_mask", "segmentation",
    "semantic_segmentation", "seg_map", "seg", "semantic", "label_mask", "gt", "ground_truth", "target",
)  # fmt: skip
_IDS = ("sample_id", "image_id", "id", "file_name", "filename", "image_name", "name")


def find(source: str, options: ImportOptions) -> ImportPlan:
    """Return the rows of a dataset. With a limit, only the beginning of each split is fetched; otherwise all of it."""
    rows = open_rows(source, options.revision, options.subset, stream=options.limit is not None)
    image, mask = _columns(rows, options)
    known = [c for c in _IDS if c in rows.features and c not in (image, mask)]
    splits: Splits = {}
    split_names = _split_names(rows)
    for split, name in split_names.items():
        if name in splits:
            raise DataError(
                f"{rows.place.name}: more than one of the splits {', '.join(rows.splits)} is {name!r}. Rename or remove one"
            )
        table = rows.take(split, [image, mask], known, _num_rows(options, "val" in split_names.values()))
        pairs = _pairs(table, image, mask, _ids(table, known, split), rows.place, split)
        if pairs:
            splits[name] = pairs
    if "val" not in splits and "train" in splits:
        splits |= split_off(splits["train"], options)
    return ImportPlan(splits, _labels(rows.place), _licence(rows.place), _source(rows.place))


def _pairs(table: pa.Table, image: str, mask: str, ids: list[str], place: Place, split: str) -> list[Pair]:
    """Return a pair for every row that holds both, and report how many rows do not, as in test splits with secret masks."""
    whole = [i for i in range(len(ids)) if _has(table[image], i) and _has(table[mask], i)]
    if len(whole) < len(ids):
        console.say(
            f"{place.name}: leaving out {len(ids) - len(whole)} of {len(ids)} rows of {split!r}, which hold no image or no mask"
        )
    images, masks = f"{split}, column {image}", f"{split}, column {mask}"
    return [Pair(ids[i], Cell(table[image], i, place, images), Cell(table[mask], i, place, masks)) for i in whole]


def _has(column: Any, row: int) -> bool:
    """Return whether the cell holds an image, without copying it."""
    cell = column[row]
    return cell.is_valid and (cell["bytes"].is_valid or cell["path"].is_valid)


def _split_names(rows: Rows) -> dict[str, str]:
    """Return our name for each split of the dataset. A single split becomes train, whatever its name, and is divided later."""
    found = {split: SPLIT_NAMES.get(split, split) for split in rows.splits}
    if len(found) == 1 and (only := next(iter(found))) != "train":
        console.say(f"{rows.place.name}: dividing its only split {only!r} into train and val")
        return {only: "train"}
    return found


def _num_rows(options: ImportOptions, has_val: bool) -> int | None:
    """Return how many rows of a split to take: the limit, or if train is still to be divided, almost surely enough for both.

    It is never so few that `split_off` would treat the rows as a small dataset, unlike the whole.
    """
    if options.limit is None or has_val:
        return options.limit
    return max(SMALL, math.ceil(2 * options.limit / min(options.val_share, 1 - options.val_share)) + 16)


def _columns(rows: Rows, options: ImportOptions) -> tuple[str, str]:
    """Return the columns of images and masks: those requested, else by type and usual names. Raises DataError if ambiguous."""
    columns = [c for c, feature in rows.features.items() if _is_image(feature)]
    found = f"{rows.place.name}: the columns are {', '.join(rows.features)}; those of images: {', '.join(columns) or 'none'}"
    for column, option in ((options.image_column, "--image-column"), (options.mask_column, "--mask-column")):
        if column is not None and column not in columns:
            raise DataError(f"{found}. {option} {column!r} is not a column of images")
    if len(columns) < 2:
        raise DataError(f"{found}. An image column and a mask column are needed, both stored as images")
    mask = options.mask_column or _only([c for c in columns if c.lower() in _MASKS and c != options.image_column])
    others = [c for c in columns if c != mask]
    image = options.image_column or _only(others) or _only([c for c in others if c.lower() in _IMAGES])
    if image and not mask and options.image_column:
        mask = _only([c for c in columns if c != image])
    if not image or not mask or image == mask:
        raise DataError(f"{found}. Choose them with --image-column and --mask-column")
    console.say(f"{rows.place.name}: images are in column {image!r}, masks in {mask!r}")
    return image, mask


def _only(candidates: list[str]) -> str | None:
    return candidates[0] if len(candidates) == 1 else None


def _is_image(feature: Any) -> bool:
    """Return whether `datasets` declares an Image, or the column has the layout of one."""
    if isinstance(feature, dict):
        return "bytes" in feature and set(feature) <= {"bytes", "path"}
    return type(feature).__name__ == "Image" or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _ids(table: pa.Table, known: list[str], split: str) -> list[str]:
    """Return sample IDs: the first column with a usual name and unique strings or integers, or else row numbers."""
    for column in known:
        values = table[column]
        plain = (
            pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_integer(values.type)
        )
        if plain and not values.null_count and pc.count_distinct(values).as_py() == len(values):
            return [str(v) for v in values.to_pylist()]
    return [f"{split}-{i:08d}" for i in range(table.num_rows)]  # the same whether a part or the whole is read


def _labels(place: Place) -> Labels | None:
    """Return the contract of an id2label.json beside the data, or None."""
    if read_beside(place, "id2label.json") is None:
        return None
    uri = storage.join(place.uri, "id2label.json")
    try:
        return names.parse_names(uri)
    except LabelError as error:
        console.say(f"{uri} cannot be used as the label contract: {error}")
        return None


def _licence(place: Place) -> str:
    """Return the licence on the dataset card in README.md, or ""."""
    card = (read_beside(place, "README.md") or b"").decode(errors="replace")
    head = card.removeprefix("---\n").partition("\n---")[0] if card.startswith("---\n") else ""
    try:
        tree = yaml.safe_load(head)
    except yaml.YAMLError:
        return ""
    licence = tree.get("license", "") if isinstance(tree, dict) else ""
    return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence or "")


def _source(place: Place) -> str:
    if place.folder:
        return f"datasets: {Path(place.folder).name}"
    config = f", configuration {place.config}" if place.config not in ("", "default") else ""
    converted = " of refs/convert/parquet" if place.converted else ""
    return f"Hugging Face Hub {place.name}@{place.commit or '(commit unknown)'}{converted}{config}"


HUB = Layout(
    find,
    "a dataset on the Hugging Face Hub with images and masks; id2label.json is its label contract, if there is one",
    "OWNER/NAME, or a folder that `datasets` reads (Parquet, images with metadata, save_to_disk); --revision, --subset, "
    "--image-column, --mask-column",
    "as stated on its card",
    options=("revision", "subset", "image_column", "mask_column"),
)
