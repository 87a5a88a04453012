"""Foreign layouts: which image belongs to which mask, in which split, and what their files hold.

Masks are read as indices with PIL, palette PNGs included (other decoders turn their indices into colours without a word).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segdist import log, storage
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
class File:
    """A picture of the source; `tag` changes with its content, where the store tells."""

    uri: str
    num_bytes: int
    tag: str | None


@dataclass(frozen=True)
class Pair:
    """One image with its mask; `sample_id` is unique in its split."""

    sample_id: str
    image: File
    mask: File


Splits = dict[str, list[Pair]]


class Listing:
    """The pictures below a source, by one listing."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._files = {
            e.name: File(storage.join(source, e.name), e.num_bytes, e.tag)
            for e in storage.patiently(lambda: storage.walk(source), log.say)
            if PurePosixPath(e.name).suffix.lower() in IMAGE_SUFFIXES and not PurePosixPath(e.name).name.startswith(".")
        }

    def below(self, folder: str) -> dict[str, File]:
        """The pictures of a folder, by their path in it."""
        return {n.removeprefix(f"{folder}/"): f for n, f in self._files.items() if n.startswith(f"{folder}/")}

    def names(self, folder: str = "") -> list[str]:
        """Names directly in a folder, or in the source itself; what holds nothing is among them."""
        found = storage.names(storage.join(self.source, folder) if folder else self.source)
        return [name for name in found if PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES]


# -- layouts ----------------------------------------------------------------------------------------------------------


def folder(source: Listing, val_share: float, seed: int) -> Splits:
    """images/ and masks/ with equal names; per split, or one pair of folders and a seeded split.

    Layouts: SOURCE/{images,masks}/..., SOURCE/SPLIT/{images,masks}/..., SOURCE/{images,masks}/SPLIT/...
    """
    tops = source.names()
    if "images" in tops:
        splits = [s for s in source.names("images") if s in _SPLITS]
        if splits:
            return {_SPLITS[s]: pair_up(source, f"images/{s}", f"masks/{s}") for s in splits}
        return split_off(pair_up(source, "images", "masks"), val_share, seed)
    splits = [s for s in tops if "images" in source.names(s)]
    if not splits:
        raise DataError(
            f"{source.source}: found neither images/ and masks/ nor SPLIT/images and SPLIT/masks there; "
            "put images and masks of equal names into such folders (or say --format camvid)"
        )
    return {_SPLITS.get(s, s): pair_up(source, f"{s}/images", f"{s}/masks") for s in splits}


def camvid(source: Listing, val_share: float, seed: int) -> Splits:
    """CamVid as SegNet's authors laid it out: train/, trainannot/, val/, valannot/, and test/ if it is there."""
    splits = [s for s in ("train", "val", "test") if s in source.names()]
    if not splits:
        raise DataError(f"{source.source}: not CamVid's layout (train/, trainannot/, val/, valannot/)")
    return {s: pair_up(source, s, f"{s}annot") for s in splits}


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

    find: Callable[[Listing, float, int], Splits]
    labels: Labels | None
    licence: str
    about: str


LAYOUTS = {
    "folder": Layout(folder, None, "", "images/ and masks/ with equal names, whole or per split"),
    "camvid": Layout(camvid, CAMVID, "research use (CamVid, Brostow et al. 2009)", "CamVid, 11 classes, 11 = void"),
}


def pair_up(source: Listing, images: str, masks: str) -> list[Pair]:
    """Pairs of equal names (without suffix) below two folders, sorted. Raises DataError for what has no partner."""
    found = {folder: _by_stem(source, folder) for folder in (images, masks)}
    for folder, other in ((images, masks), (masks, images)):
        if found[other] and not found[folder]:
            raise DataError(
                f"{storage.join(source.source, folder)}: this folder does not exist, or holds no pictures; images/ and "
                "masks/ stand side by side, with equal names"
            )
    lonely = [
        (file, kind, other, f"{storage.join(source.source, place)}/{stem}")
        for folder, kind, other, place in ((images, "image", "mask", masks), (masks, "mask", "image", images))
        for stem, file in found[folder].items()
        if stem not in found[place]
    ]
    if lonely:
        file, kind, other, expected = lonely[0]
        more = f" ({len(lonely)} files are unpaired in all)" if len(lonely) > 1 else ""
        raise DataError(
            f"{file.uri}: this {kind} has no {other}; expected {expected}.*. Add it, or remove the {kind}{more}"
        )
    return [Pair(stem, file, found[masks][stem]) for stem, file in found[images].items()]


def _by_stem(source: Listing, folder: str) -> dict[str, File]:
    """Pictures by their path without suffix, sorted."""
    found: dict[str, File] = {}
    for name, file in sorted(source.below(folder).items()):
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in found:
            twin = found[stem].uri.rsplit("/", 1)[-1]
            raise DataError(f"{file.uri}: {twin} has the same name without suffix; rename one of them")
        found[stem] = file
    return dict(sorted(found.items()))


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


def read_mask(file: File, max_pixels: int) -> np.ndarray:
    """(H, W) uint8 or uint16 raw values. Raises DataError or LabelError, with the remedy, for anything else."""
    path = file.uri
    with _open(_bytes(file), path, max_pixels) as image:
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


def read_image(file: File, size: tuple[int, int], max_pixels: int) -> bytes:
    """The image's bytes as they are stored: untouched for RGB or grey JPEG and PNG, else as RGB PNG.

    `size` is its mask's (height, width). An EXIF rotation is applied when the turned picture fits the mask, as viewers and
    labelling tools show it, and left alone when only the unturned one fits. Raises DataError when neither does, or the
    file is broken.
    """
    path, data = file.uri, _bytes(file)
    with _open(data, path, max_pixels) as image:
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
            return data
        check_range(image, path)
        if turn:
            image = ImageOps.exif_transpose(image)
        out = io.BytesIO()
        image.convert("RGB").save(out, "PNG", compress_level=3)
        return out.getvalue()


def check_range(image: Image.Image, path: str) -> None:
    """Raises DataError for pictures whose values have no agreed range, which converting would clip without a word."""
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path}: an image of mode {image.mode} has no agreed range; convert it to 8 bits a channel")


def stored_bytes(file: File) -> int:
    """About how many bytes an image will take at rest: its own, or if it must become a PNG, at most its pixels'."""
    if file.uri.lower().endswith((".jpg", ".jpeg", ".png")):
        return file.num_bytes
    try:
        with Image.open(io.BytesIO(_bytes(file))) as image:
            return 3 * image.width * image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return file.num_bytes  # reading it will say what is wrong


def digest(file: File) -> str:
    """What changes with a file's content: its store's tag (which a copy may not keep), or the sha256 of its bytes."""
    return file.tag or hashlib.sha256(_bytes(file)).hexdigest()


def _bytes(file: File) -> bytes:
    return storage.patiently(lambda: storage.read(file.uri), log.say)


def _open(data: bytes, path: str, max_pixels: int) -> Image.Image:
    """A decoded picture. Raises DataError when it is none, is truncated, or is a bomb."""
    try:
        image = Image.open(io.BytesIO(data))
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
