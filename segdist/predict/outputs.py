"""The output folder of predictions: which image each mask belongs to, and the tables of all calls that wrote there.

A text chunk in each mask's PNG names its image and settings, and the mask is the last of an image's files to be written. An
interrupted prediction can therefore resume without a journal, and a result is never attributed to another image of the same
name.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segdist import storage
from segdist.data.labels import Labels
from segdist.errors import MissingError, UserError

SHARES, LINES = "shares.csv", "shares.jsonl"
_CHUNK = "segdist"


@dataclass(frozen=True)
class Stamp:
    """The metadata in a mask's PNG. The field names are part of the file format."""

    name: str  # of the image file
    place: str  # digest of the image's URI: the URI may be private, and masks are passed on
    sha256: str  # of the image file
    tag: str | None  # ETag of the image in a listing, if its storage has one
    by: str  # digest of the model and the inference settings
    kinds: tuple[str, ...]  # outputs written from the same prediction


@dataclass(frozen=True)
class Existing:
    """An existing result of an image."""

    shares: list[float]  # of each class
    kinds: tuple[str, ...]


def encode_mask(mask: Image.Image, stamp: Stamp) -> bytes:
    """Encode a mask as PNG with its metadata."""
    info, out = PngInfo(), io.BytesIO()
    info.add_text(_CHUNK, json.dumps(asdict(stamp)))
    mask.save(out, "PNG", pnginfo=info)
    return out.getvalue()


def read_existing(mask_uri: str, uri: str, tag: str | None, settings_digest: str, labels: Labels) -> Existing | None:
    """Return the result in an existing mask if it is up to date for the image `uri`, or None if it must be predicted again.

    The image is read only if its `tag` (see Stamp) does not settle whether it has changed. Raises UserError if the mask belongs
    to another image.
    """
    data = storage.read(mask_uri)
    Image.MAX_IMAGE_PIXELS = None  # the mask is as large as its image, whose size was checked
    try:
        with Image.open(io.BytesIO(data)) as mask:
            text, classes = mask.info.get(_CHUNK, ""), np.array(mask)
    except (OSError, SyntaxError, ValueError):  # truncated
        return None
    try:
        stamp = Stamp(**json.loads(text))
    except (TypeError, ValueError):
        raise UserError(
            f"{mask_uri} does not name the image it belongs to. Choose another --out, or use --overwrite"
        ) from None
    same_uri = stamp.place == uri_digest(uri)
    if same_uri and stamp.by != settings_digest:
        return None
    unchanged = (tag is not None and tag == stamp.tag) or hashlib.sha256(storage.read(uri)).hexdigest() == stamp.sha256
    if not unchanged and not same_uri:
        raise UserError(
            f"{mask_uri} is the result of another image ({stamp.name}), not of {uri}. Choose another --out, or use --overwrite"
        )
    if not unchanged or stamp.by != settings_digest:
        return None
    return Existing(class_shares(classes, labels), tuple(stamp.kinds))


def canonical(uri: str) -> str:
    """Return the same text for all URIs of one file: the resolved path, or the URI without its secrets."""
    return (
        str(Path(uri.removeprefix("file://")).expanduser().resolve())
        if storage.is_local(uri)
        else storage.redacted(uri)
    )


def uri_digest(uri: str) -> str:
    """Return a digest that identifies a URI without revealing it."""
    return hashlib.sha256(canonical(uri).encode()).hexdigest()[:16]


def class_shares(classes: np.ndarray, labels: Labels) -> list[float]:
    """Return each class's share of the pixels."""
    counts = np.bincount(classes.ravel(), minlength=labels.num_classes)[: labels.num_classes]
    return [float(c / classes.size) for c in counts]


def read_rows(out: str, existing_files: set[str], kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of OUT's table by the name of their mask, for masks that still exist. OUT may have been moved.

    Raises UserError if the table is damaged.
    """
    address = storage.join(out, LINES)
    try:
        lines = storage.read(address).splitlines()
    except MissingError:
        return {}
    found = {}
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            parts = row["mask"].split("/")
            names = ["/".join(parts[k:]) for k in range(len(parts))]
            name = next((name for name in names if name in existing_files), None)
            if name is not None:
                before = row["mask"].removesuffix(name)
                moved = {kind: storage.join(out, row[kind].removeprefix(before)) for kind in kinds if kind in row}
                found[name] = {"image": row["image"], **moved, "shares": dict(row["shares"])}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{address}: line {i + 1} is damaged. Delete this file, and predict all images again"
            ) from None
    return found


def write_tables(out: str, rows: Sequence[dict[str, Any]], labels: Labels) -> None:
    """Write the rows as CSV and as JSON lines."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *labels.names])
    writer.writerows([row["image"], *(f"{row['shares'][name]:.6f}" for name in labels.names)] for row in rows)
    storage.write(storage.join(out, SHARES), text.getvalue().encode())
    storage.write(storage.join(out, LINES), "".join(f"{json.dumps(row)}\n" for row in rows).encode())
