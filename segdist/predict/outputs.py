"""A folder of predictions: which image each mask in it is of, and the tables of all calls that wrote there.

A mask says so itself, in a text chunk of its PNG, and is the last of an image's files to be written. So what an interrupted
prediction has left needs no journal, and the name of a file never makes one image's result another's.
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
    """What a mask says of itself."""

    name: str  # of the image's file
    place: str  # digest of its URI, which may be private, and masks are handed on
    sha256: str  # of the image's file
    tag: str | None  # of the image in a listing, where its store tells
    by: str  # digest of the model and how it looked
    kinds: tuple[str, ...]  # what was written of the same prediction


@dataclass(frozen=True)
class Known:
    """A result that is there already."""

    shares: list[float]  # of each class
    kinds: tuple[str, ...]


def stamped(mask: Image.Image, stamp: Stamp) -> bytes:
    """The mask as a PNG file's bytes."""
    info, out = PngInfo(), io.BytesIO()
    info.add_text(_CHUNK, json.dumps(asdict(stamp)))
    mask.save(out, "PNG", pnginfo=info)
    return out.getvalue()


def known(address: str, uri: str, tag: str | None, by: str, labels: Labels) -> Known | None:
    """What the mask at an address holds, if it is of the image `uri` as that is now; None where it must be made anew.

    The image is read only where its `tag` (see Stamp) does not tell. Raises UserError when the mask is not of this image.
    """
    data = storage.read(address)
    Image.MAX_IMAGE_PIXELS = None  # it is as large as its image was allowed to be
    try:
        with Image.open(io.BytesIO(data)) as mask:
            said, classes = mask.info.get(_CHUNK, ""), np.array(mask)
    except (OSError, SyntaxError, ValueError):  # cut off
        return None
    try:
        stamp = Stamp(**json.loads(said))
    except (TypeError, ValueError):
        raise UserError(f"{address} does not say which image it is of; give another --out, or --overwrite") from None
    is_here = stamp.place == digest(uri)
    if is_here and stamp.by != by:
        return None
    is_same = (tag is not None and tag == stamp.tag) or hashlib.sha256(storage.read(uri)).hexdigest() == stamp.sha256
    if not is_same and not is_here:
        raise UserError(
            f"{address} is the result for another image ({stamp.name}) than {uri}; give another --out, or --overwrite"
        )
    return Known(shares(classes, labels), tuple(stamp.kinds)) if is_same and stamp.by == by else None


def place(uri: str) -> str:
    """What two URIs of one file have in common."""
    return (
        str(Path(uri.removeprefix("file://")).expanduser().resolve())
        if storage.is_local(uri)
        else storage.redacted(uri)
    )


def digest(uri: str) -> str:
    """Tells a place from others without naming it."""
    return hashlib.sha256(place(uri).encode()).hexdigest()[:16]


def shares(classes: np.ndarray, labels: Labels) -> list[float]:
    """The share of each class."""
    counts = np.bincount(classes.ravel(), minlength=labels.num_classes)[: labels.num_classes]
    return [float(c / classes.size) for c in counts]


def rows(out: str, there: set[str], kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of OUT's table by the name of their mask, of masks that are `there`; OUT may have been moved since.

    Raises UserError when the table is damaged.
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
            name = next((name for name in names if name in there), None)
            if name is not None:
                before = row["mask"].removesuffix(name)
                moved = {kind: storage.join(out, row[kind].removeprefix(before)) for kind in kinds if kind in row}
                found[name] = {"image": row["image"], **moved, "shares": dict(row["shares"])}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{address}: line {i + 1} is damaged; delete this file, and call again for all images that are to be in it"
            ) from None
    return found


def put_tables(out: str, rows: Sequence[dict[str, Any]], labels: Labels) -> None:
    """Writes the rows as CSV, and as JSON, one object per line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *labels.names])
    writer.writerows([row["image"], *(f"{row['shares'][name]:.6f}" for name in labels.names)] for row in rows)
    storage.write(storage.join(out, SHARES), text.getvalue().encode())
    storage.write(storage.join(out, LINES), "".join(f"{json.dumps(row)}\n" for row in rows).encode())
