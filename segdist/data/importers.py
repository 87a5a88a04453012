"""Foreign layouts: which image belongs to which mask, in which split, and what their files hold.

Masks are read as indices with PIL, palette PNGs included (other decoders turn their indices into colours without a word).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segdist.data import labels as contracts
from segdist.data.labels import Class, Labels
from segdist.data.order import key
from segdist.errors import DataError, LabelError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_LOSSY = {"JPEG", "MPO", "WEBP", "JPEG2000"}
_ORIENTATION = 0x0112  # EXIF tag
_SPLITS = {  # what people call them
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Pair:
    """One image with its mask; `sample_id` is unique in its split."""

    sample_id: str
    image: Path
    mask: Path


Splits = dict[str, list[Pair]]


# -- layouts ----------------------------------------------------------------------------------------------------------


def folder(source: Path, val_share: float, seed: int) -> Splits:
    """images/ and masks/ with equal names; per split, or one pair of folders and a seeded split.

    Layouts: SOURCE/{images,masks}/..., SOURCE/SPLIT/{images,masks}/..., SOURCE/{images,masks}/SPLIT/...
    """
    if (source / "images").is_dir():
        splits = sorted(p.name for p in (source / "images").iterdir() if p.is_dir() and p.name in _SPLITS)
        if splits:
            return {_SPLITS[s]: pair_up(source / "images" / s, source / "masks" / s) for s in splits}
        pairs = pair_up(source / "images", source / "masks")
        return split_off(pairs, val_share, seed)
    splits = sorted(p.parent.name for p in source.glob("*/images") if p.is_dir())
    if not splits:
        raise DataError(
            f"{source}: found neither images/ and masks/ nor SPLIT/images and SPLIT/masks there; "
            "put images and masks of equal names into such folders (or say --format camvid)"
        )
    return {_SPLITS.get(s, s): pair_up(source / s / "images", source / s / "masks") for s in splits}


def camvid(source: Path, val_share: float, seed: int) -> Splits:
    """CamVid as SegNet's authors laid it out: train/, trainannot/, val/, valannot/, and test/ if it is there."""
    splits = [s for s in ("train", "val", "test") if (source / s).is_dir()]
    if not splits:
        raise DataError(f"{source}: not CamVid's layout (train/, trainannot/, val/, valannot/)")
    return {s: pair_up(source / s, source / f"{s}annot") for s in splits}


CAMVID = Labels(
    tuple(
        Class(name, (i,), color)
        for i, (name, color) in enumerate(
            [
                ("sky", (128, 128, 128)),
                ("building", (128, 0, 0)),
                ("pole", (192, 192, 128)),
                ("road", (128, 64, 128)),
                ("pavement", (60, 40, 222)),
                ("tree", (128, 128, 0)),
                ("sign symbol", (192, 128, 128)),
                ("fence", (64, 64, 128)),
                ("car", (64, 0, 128)),
                ("pedestrian", (64, 64, 0)),
                ("bicyclist", (0, 128, 192)),
            ]
        )
    ),
    void=(11,),
)


@dataclass(frozen=True)
class Layout:
    """An importer: how it finds pairs, and the contract and licence it knows, if any."""

    find: Callable[[Path, float, int], Splits]
    labels: Labels | None
    licence: str
    about: str


LAYOUTS = {
    "folder": Layout(folder, None, "", "images/ and masks/ with equal names, whole or per split"),
    "camvid": Layout(camvid, CAMVID, "research use (CamVid, Brostow et al. 2009)", "CamVid, 11 classes, 11 = void"),
}


def pair_up(images: Path, masks: Path) -> list[Pair]:
    """Pairs of equal names (without suffix) below two folders, sorted. Raises DataError for what has no partner."""
    found_images, found_masks = _by_stem(images, images), _by_stem(masks, masks)
    lonely = [(found_images[s], masks / s) for s in sorted(set(found_images) - set(found_masks))]
    lonely += [(found_masks[s], images / s) for s in sorted(set(found_masks) - set(found_images))]
    if lonely:
        path, expected = lonely[0]
        kind, other = ("image", "mask") if path.is_relative_to(images) else ("mask", "image")
        more = f" ({len(lonely)} files are unpaired in all)" if len(lonely) > 1 else ""
        raise DataError(
            f"{path}: this {kind} has no {other}; expected {expected}.*. Add it, or remove the {kind}{more}"
        )
    return [Pair(stem, found_images[stem], found_masks[stem]) for stem in sorted(found_images)]


def _by_stem(root: Path, named: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise DataError(f"{named}: this folder does not exist; images/ and masks/ stand side by side, with equal names")
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file() or path.name.startswith("."):
            continue
        stem = path.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            raise DataError(f"{path}: {found[stem].name} has the same name without suffix; rename one of them")
        found[stem] = path
    return found


def split_off(pairs: list[Pair], val_share: float, seed: int) -> Splits:
    """train and val by the digest of each name alone, so that adding pictures later moves no other picture.

    The share is therefore met on average; each split gets at least one picture where there are two.
    """
    rank = {p.sample_id: int(key(seed, 12, *p.sample_id.encode())) for p in pairs}
    chosen = {sample_id for sample_id, r in rank.items() if r < val_share * 2**64}
    if len(pairs) > 1:
        chosen = chosen or {min(rank, key=rank.__getitem__)}
        chosen = chosen if len(chosen) < len(pairs) else chosen - {max(rank, key=rank.__getitem__)}
    return {
        "train": [p for p in pairs if p.sample_id not in chosen],
        "val": [p for p in pairs if p.sample_id in chosen],
    }


# -- files ------------------------------------------------------------------------------------------------------------


def read_mask(path: Path, max_pixels: int) -> np.ndarray:
    """(H, W) uint8 or uint16 raw values. Raises DataError or LabelError, with the remedy, for anything else."""
    with _open(path, max_pixels) as image:
        if image.format in _LOSSY:
            raise LabelError(
                f"{path}: a mask stored as {image.format} may be lossy, which changes class values; export masks as PNG"
            )
        mode = image.mode
        values = np.asarray(image)
    if mode in ("L", "P", "1"):
        return values.astype(np.uint8)
    if mode.startswith("I") and values.min() >= 0 and values.max() <= 65535:
        return values.astype(np.uint16)
    if mode in ("RGB", "RGBA"):
        raise LabelError(
            f"{path}: this mask is {mode}: its pixels are colours, not class values. Export index masks "
            "(one channel, or a palette PNG), one value per class"
        )
    raise LabelError(
        f"{path}: masks of mode {mode} are not understood; export one channel of 8 or 16 bits, without alpha"
    )


def read_image(path: Path, size: tuple[int, int], max_pixels: int) -> bytes:
    """The image's bytes as they are stored: untouched for RGB or grey JPEG and PNG, else as RGB PNG.

    `size` is its mask's (height, width). An EXIF rotation is applied when the turned picture fits the mask, as viewers and
    labelling tools show it, and left alone when only the unturned one fits. Raises DataError when neither does, or the
    file is broken.
    """
    with _open(path, max_pixels) as image:
        upright = image.size[::-1]
        turned = image.getexif().get(_ORIENTATION, 1) if image.format in ("JPEG", "MPO", "TIFF") else 1
        turned_size = image.size if turned in (5, 6, 7, 8) else upright
        if size not in (upright, turned_size):
            raise DataError(
                f"{path}: the image is {upright[0]}x{upright[1]} but its mask is {size[0]}x{size[1]} (height x width); "
                "they must agree: export the mask at the image's size"
            )
        turn = turned != 1 and turned_size == size
        if image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L") and not turn:
            return path.read_bytes()
        check_range(image, path)
        if turn:
            image = ImageOps.exif_transpose(image)
        out = io.BytesIO()
        image.convert("RGB").save(out, "PNG", compress_level=3)
        return out.getvalue()


def check_range(image: Image.Image, path: Path) -> None:
    """Raises DataError for pictures whose values have no agreed range, which converting would clip without a word."""
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path}: an image of mode {image.mode} has no agreed range; convert it to 8 bits a channel")


def stored_bytes(path: Path) -> int:
    """About how many bytes an image will take at rest: its own, or if it must become a PNG, at most its pixels'."""
    if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
        return path.stat().st_size
    try:
        with Image.open(path) as image:
            return 3 * image.width * image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return path.stat().st_size  # reading it will say what is wrong


def _open(path: Path, max_pixels: int) -> Image.Image:
    """A decoded picture. Raises DataError when it is none, is truncated, or is a bomb."""
    try:
        image = Image.open(path)
        if image.width * image.height > max_pixels:
            image.close()
            raise DataError(
                f"{path}: {image.width}x{image.height} pixels exceed --max-megapixels {max_pixels // 10**6}; "
                "raise it if you trust this file"
            )
        image.load()
        return image
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image that can be read; replace or remove it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: broken image ({error}); replace or remove it") from None


def infer_labels(found: set[int], void: tuple[int, ...]) -> Labels:
    """A contract for masks without names: values 0..most are classes, `void` is void. Raises LabelError when unlikely."""
    values = sorted(found - set(void))
    if values in ([0], []) and 255 in found:
        raise LabelError(
            "the masks hold only 0 and 255, and 255 is void unless declared; did you mean a class? "
            "Say --names background=0,object=255"
        )
    if len(values) < 2:
        raise LabelError(f"the masks hold only the values {sorted(found)}; at least two classes are needed")
    if len(values) < (values[-1] + 1) / 2 or values[-1] >= contracts.MAX_CLASSES:
        shown = ", ".join(map(str, values[:12])) + (", ..." if len(values) > 12 else "")
        raise LabelError(
            f"the masks hold the values {shown}, which are not 0, 1, 2, ...; say what they mean with --names name=value,..."
        )
    raw = [v for v in range(values[-1] + 1) if v not in void]
    return contracts.plain([f"class {v}" for v in raw], void, raw)
