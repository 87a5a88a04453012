"""Data sets of the Hugging Face Hub, or of a folder that `datasets` reads: two columns of images, of which one is masks."""

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
from segdist.data.importers.layout import FEW, SPLIT_NAMES, ImportOptions, ImportPlan, Layout, Pair, Splits, split_off
from segdist.data.labels import Labels
from segdist.errors import DataError, LabelError

_IMAGES = ("image", "images", "img", "pixel_values", "picture", "photo", "rgb")
_MASKS = (
    "mask", "masks", "label", "labels", "annotation", "annotations", "semantic_mask", "segmentation_mask", "segmentation",
    "semantic_segmentation", "seg_map", "seg", "semantic", "label_mask", "gt", "ground_truth", "target",
)  # fmt: skip
_IDS = ("sample_id", "image_id", "id", "file_name", "filename", "image_name", "name")


def find(source: str, ask: ImportOptions) -> ImportPlan:
    """The rows of a data set. With a limit only the beginning of each split is fetched, else the whole of it."""
    rows = open_rows(source, ask.revision, ask.subset, stream=ask.limit is not None)
    image, mask = _columns(rows, ask)
    known = [c for c in _IDS if c in rows.features and c not in (image, mask)]
    splits: Splits = {}
    kept = _kept(rows, ask)
    for split, name in kept.items():
        if name in splits:
            raise DataError(f"{rows.place.name}: the splits {', '.join(rows.splits)} leave open which one is {name!r}")
        table = rows.take(split, [image, mask], known, _num_rows(ask, "val" in kept.values()))
        pairs = _pairs(table, image, mask, _ids(table, known, split), rows.place, split)
        if pairs:
            splits[name] = pairs
    if "val" not in splits and "train" in splits:
        splits |= split_off(splits["train"], ask)
    return ImportPlan(splits, _labels(rows.place), _licence(rows.place), _source(rows.place))


def _pairs(table: pa.Table, image: str, mask: str, ids: list[str], place: Place, split: str) -> list[Pair]:
    """A pair for every row that holds both; says how many do not, as test splits whose masks are kept secret."""
    whole = [i for i in range(len(ids)) if _has(table[image], i) and _has(table[mask], i)]
    if len(whole) < len(ids):
        console.say(
            f"{place.name}: {len(ids) - len(whole)} of {len(ids)} rows of {split!r} hold no image or no mask: left out"
        )
    images, masks = f"{split}, column {image}", f"{split}, column {mask}"
    return [Pair(ids[i], Cell(table[image], i, place, images), Cell(table[mask], i, place, masks)) for i in whole]


def _has(column: Any, row: int) -> bool:
    """Whether there is an image, without copying it."""
    cell = column[row]
    return cell.is_valid and (cell["bytes"].is_valid or cell["path"].is_valid)


def _kept(rows: Rows, ask: ImportOptions) -> dict[str, str]:
    """What each split is called here. An only split is divided, whatever its name."""
    found = {split: SPLIT_NAMES.get(split, split) for split in rows.splits}
    if len(found) == 1 and (only := next(iter(found))) != "train":
        console.say(f"{rows.place.name}: its only split {only!r} is divided into train and val")
        return {only: "train"}
    return found


def _num_rows(ask: ImportOptions, has_val: bool) -> int | None:
    """How many rows of a split to take: the limit; or where train is still to be divided, nearly surely enough for both.

    Never so few that `split_off` would count them, as it may not have counted the whole.
    """
    if ask.limit is None or has_val:
        return ask.limit
    return max(FEW, math.ceil(2 * ask.limit / min(ask.val_share, 1 - ask.val_share)) + 16)


def _columns(rows: Rows, ask: ImportOptions) -> tuple[str, str]:
    """The columns of images and masks: as asked, else by type and usual names. Raises DataError where that leaves a choice."""
    columns = [c for c, feature in rows.features.items() if _is_image(feature)]
    told = f"{rows.place.name}: its columns are {', '.join(rows.features)}; those of images: {', '.join(columns) or 'none'}"
    for column, option in ((ask.image_column, "--image-column"), (ask.mask_column, "--mask-column")):
        if column is not None and column not in columns:
            raise DataError(f"{told}. {option} {column!r} is none of these")
    if len(columns) < 2:
        raise DataError(f"{told}. An image and a mask are needed, both stored as images")
    mask = ask.mask_column or _only([c for c in columns if c.lower() in _MASKS and c != ask.image_column])
    others = [c for c in columns if c != mask]
    image = ask.image_column or _only(others) or _only([c for c in others if c.lower() in _IMAGES])
    if image and not mask and ask.image_column:
        mask = _only([c for c in columns if c != image])
    if not image or not mask or image == mask:
        raise DataError(f"{told}. Say which ones to take with --image-column and --mask-column")
    console.say(f"{rows.place.name}: images from column {image!r}, masks from {mask!r}")
    return image, mask


def _only(candidates: list[str]) -> str | None:
    return candidates[0] if len(candidates) == 1 else None


def _is_image(feature: Any) -> bool:
    """Whether `datasets` calls it an Image, or it is laid out as one."""
    if isinstance(feature, dict):
        return "bytes" in feature and set(feature) <= {"bytes", "path"}
    return type(feature).__name__ == "Image" or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _ids(table: pa.Table, known: list[str], split: str) -> list[str]:
    """The first column of usual name whose values are texts or whole numbers, all different; else the rows' numbers."""
    for column in known:
        values = table[column]
        plain = (
            pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_integer(values.type)
        )
        if plain and not values.null_count and pc.count_distinct(values).as_py() == len(values):
            return [str(v) for v in values.to_pylist()]
    return [f"{split}-{i:08d}" for i in range(table.num_rows)]  # the same for a part as for the whole


def _labels(place: Place) -> Labels | None:
    """The contract of an id2label.json beside the data, if there is one."""
    if read_beside(place, "id2label.json") is None:
        return None
    uri = storage.join(place.uri, "id2label.json")
    try:
        return names.parse_names(uri)
    except LabelError as error:
        console.say(f"{uri} is not taken as the contract: {error}")
        return None


def _licence(place: Place) -> str:
    """What the card in README.md says."""
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
    "a data set of the Hugging Face Hub with images and masks; id2label.json is its contract, if there is one",
    "OWNER/NAME, or a folder that `datasets` reads (Parquet, images with metadata, save_to_disk); --revision, --subset, "
    "--image-column, --mask-column",
    "as its card says",
    options=("revision", "subset", "image_column", "mask_column"),
)
