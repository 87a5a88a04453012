"""Files of a source, and strict decoding of their images and masks: anything ambiguous is an error.

Masks are read as indices with PIL, including palette PNGs, whose indices other decoders silently turn into colours.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from segdist import console, storage
from segdist.data.importers import colors
from segdist.data.labels import Color, Labels
from segdist.errors import DataError, LabelError, UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_FORMATS = (
    "PNG",
    "JPEG",
    "TIFF",
    "BMP",
    "GIF",
    "WEBP",
    "JPEG2000",
)  # others do more than hold pixels: PostScript runs code
_LOSSY = {"JPEG", "MPO", "WEBP", "JPEG2000"}
_LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp"}
_PNG = b"\x89PNG\r\n\x1a\n"
_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class Rules:
    """Limits and conventions for decoding."""

    max_pixels: int
    labels: Labels | None = None  # declares the colours of RGB masks; None: the contract is still to be inferred
    color_tolerance: int = 0  # largest distance of a colour from a declared one, per channel


class Content(Protocol):
    """Bytes of the source, wherever they are stored. Safe to read from several threads."""

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def num_bytes(self) -> int: ...

    def read(self) -> bytes: ...

    def digest(self) -> str:
        """A string that changes with the content."""


@dataclass(frozen=True)
class File:
    """A file of the source. `tag` changes with its content, if the store provides one."""

    uri: str
    num_bytes: int
    tag: str | None

    @property
    def name(self) -> str:
        return self.uri

    def read(self) -> bytes:
        return storage.with_retries(lambda: storage.read(self.uri), report_retry)

    def digest(self) -> str:
        """Return the store's tag (which a copy may not keep), or else the sha256 of its bytes."""
        return self.tag or hashlib.sha256(self.read()).hexdigest()


@dataclass(frozen=True)
class Text:
    """Bytes that the importer already holds, such as one image's part of a large annotation file."""

    name: str
    data: bytes = field(repr=False)

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def read(self) -> bytes:
        return self.data

    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def report_retry(text: str) -> None:
    """Report that a store does not answer, but not for each of its files."""
    console.warn("waits for a store", text)


Decode = Callable[[bytes, str, Rules], np.ndarray]  # (bytes, name, rules) -> (H, W) uint8 or uint16 raw values


def decode_mask(data: bytes, name: str, rules: Rules) -> np.ndarray:
    """Return (H, W) uint8 or uint16 raw values of a mask file. Raises DataError or LabelError if they are not unambiguous."""
    by_color = rules.labels is not None and bool(rules.labels.rgb)
    with _as_data_error(name), open_image(data, name, rules.max_pixels) as image:
        _check_exact(image, data, name, by_color, rules.color_tolerance)
        mode = image.mode
        if by_color and mode in ("RGB", "P", "RGBA"):
            pixels = np.asarray(_opaque(image, name).convert("RGB"))
        else:
            pixels = np.asarray(_opaque(image, name))
    if by_color:
        assert rules.labels is not None
        return colors.color_indices(pixels, rules.labels, rules.color_tolerance, name)
    if mode in ("L", "P", "1", "LA"):
        return pixels.astype(np.uint8)
    if mode.startswith("I"):  # 16 bits, or 32 bits with values that fit 16
        if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 65535:
            raise LabelError(
                f"{name}: mask values {pixels.min()}..{pixels.max()} do not fit 16 bits. Remap them to 0..65535"
            )
        return pixels.astype(np.uint16)
    if mode in ("RGB", "RGBA", "CMYK", "YCbCr", "HSV"):
        raise LabelError(
            f"{name}: this mask is {mode}: its pixels are colours, not class values{colors.describe_colors(pixels)}. Map "
            "colours to classes with --names name=#rrggbb,... or a contract file, or export class-index masks"
        )
    raise LabelError(
        f"{name}: masks of mode {mode} are not supported. Export one channel of 8 or 16 bits, without alpha"
    )


def _check_exact(image: Image.Image, data: bytes, name: str, by_color: bool, tolerance: int) -> None:
    """Raise LabelError unless the values that Pillow returns are exactly the saved class values (or colours)."""
    lossy = image.format in _LOSSY or (image.format == "TIFF" and image.info.get("compression") in _LOSSY_TIFF)
    if lossy and not (by_color and tolerance):
        stored = image.format if image.format in _LOSSY else "TIFF with lossy compression"
        raise LabelError(
            f"{name}: a mask stored as {stored} may be lossy, which changes class values. Export masks as PNG"
        )
    if image.format == "GIF" and not by_color:
        raise LabelError(f"{name}: a mask stored as GIF may have its values renumbered. Export masks as PNG")
    if (num := getattr(image, "n_frames", 1)) > 1:
        raise LabelError(f"{name}: this mask holds {num} images. Export only the right one")
    bits = _bits(image, data)
    if (image.mode == "L" and bits in (2, 4)) or (bits == 16 and image.mode in ("LA", "RGB", "RGBA")):
        raise LabelError(
            f"{name}: this mask has {bits} bits per channel (mode {image.mode}), which programs scale to 8 bits in different "
            "ways. Export masks with 8 bits"
        )
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
        raise LabelError(
            f"{name}: this TIFF mask declares 0 as white, which some programs invert and others do not. Export masks as PNG"
        )


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the bits per channel stored in the file, or 8 for formats where that is fixed."""
    if image.format == "PNG":
        return data[24]
    return max(image.tag_v2.get(_BITS, (8,))) if image.format == "TIFF" else 8  # type: ignore[attr-defined]


def _opaque(image: Image.Image, name: str) -> Image.Image:
    """Return the image without its alpha channel. Raises LabelError unless alpha is opaque everywhere."""
    if image.mode not in ("LA", "PA", "RGBA", "La", "RGBa"):
        return image
    alpha = np.asarray(image.getchannel("A" if image.mode[-1] == "A" else "a"))
    if num := int((alpha != 255).sum()):
        raise LabelError(
            f"{name}: this mask has an alpha channel, and {num} of its pixels are not opaque ({num / alpha.size:.2%}), so "
            "their meaning is unclear. Export masks without alpha"
        )
    return image.convert({"L": "L", "P": "P", "R": "RGB"}[image.mode[0]])


def read_image(content: Content, size: tuple[int, int], max_pixels: int) -> bytes:
    """Return the image's bytes for storage: unchanged for RGB or grey JPEG and PNG, otherwise as RGB PNG.

    `size` is its mask's (height, width). An EXIF rotation is applied if the rotated image fits the mask, because viewers and
    labelling tools show it rotated (with a warning if the unrotated one fits as well), and ignored if only the unrotated one
    fits. Raises DataError if neither fits or the file is broken.
    """
    name, data = content.name, content.read()
    with _as_data_error(name), open_image(data, name, max_pixels, load=False) as image:
        upright = image.size[::-1]
        turned = orientation(image)
        turned_size = image.size if turned in (5, 6, 7, 8) else upright
        if size not in (upright, turned_size):
            raise DataError(
                f"{name}: the image is {upright[0]}x{upright[1]} but its mask is {size[0]}x{size[1]} (height x width). "
                "Export the mask at the image's size"
            )
        turn = turned != 1 and turned_size == size
        if turn and upright == size:
            console.warn(
                "images rotated by their EXIF orientation whose masks fit either way",
                f"warning: {name}: rotated by its EXIF orientation {turned}; its mask fits either way, so check them",
            )
        kept = image.format if image.mode in ("RGB", "L") and not turn else None
        damage = _damage(data) if kept == "JPEG" else ""
        if kept == "JPEG" and not damage:
            return data
        image.load()
        if kept == "PNG":
            return data
        if damage:
            text = f"warning: {name}: damaged JPEG ({damage}); the part that can be decoded is stored as PNG"
            console.warn("damaged JPEGs that are stored as PNG", text)
        check_range(image, name)
        out = io.BytesIO()
        (ImageOps.exif_transpose(image) if turn else image).convert("RGB").save(out, "PNG", compress_level=3)
        return out.getvalue()


def _damage(data: bytes) -> str:
    """Return why the training path's decoder rejects a JPEG, or "". It rejects damage that Pillow only repairs."""
    try:
        simplejpeg.decode_jpeg(data, "RGB")
        return ""
    except ValueError as error:
        return str(error) or "not decodable"


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none."""
    if image.format not in ("JPEG", "MPO", "TIFF", "PNG", "WEBP"):
        return 1
    stated = image.getexif().get(_ORIENTATION, 1)
    return stated if stated in range(1, 9) else 1


def check_range(image: Image.Image, name: str) -> None:
    """Raise DataError for images whose values have no standard range, because conversion would clip them silently."""
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{name}: an image of mode {image.mode} has no standard value range. Convert it to 8 bits per channel"
        )


def stored_bytes(content: Content) -> int:
    """Return about how many bytes an image will take when stored: its own, or its pixels' if it must become a PNG."""
    if content.name.lower().endswith((".jpg", ".jpeg", ".png")):
        return content.num_bytes
    try:
        with _as_data_error(content.name), Image.open(io.BytesIO(content.read()), formats=_FORMATS) as image:
            return content.num_bytes if image.format in ("JPEG", "PNG") else 3 * image.width * image.height
    except DataError:
        return content.num_bytes  # the error is raised when the image is read


def palette_of(data: bytes) -> list[Color] | None:
    """Return the colours of a palette image by value, or None if it has no palette."""
    try:
        with _as_data_error("mask"), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            flat = image.getpalette("RGB") if image.mode == "P" else None
    except DataError:
        return None
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)] if flat else None


def open_image(data: bytes, name: str, max_pixels: int, load: bool = True) -> Image.Image:
    """Open an image, decoded unless `load` is False. Raises DataError if it is no image, damaged, or too large."""
    with _as_data_error(name):
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > max_pixels:
            image.close()
            raise DataError(
                f"{name}: {image.height}x{image.width} pixels (height x width) exceed --max-megapixels {max_pixels // 10**6}. "
                "Raise --max-megapixels if you trust this file"
            )
        if image.format == "PNG":
            _check_checksums(data)
        if load:
            image.load()
        return image


@contextlib.contextmanager
def _as_data_error(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on broken files, which is nearly anything, into a DataError that names the file."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that can be read. Replace or remove it") from None
    except Exception as error:
        raise DataError(f"{name}: broken image ({error or type(error).__name__}). Replace or remove it") from None


def _check_checksums(data: bytes) -> None:
    """Raise ValueError if a checksum of a PNG's pixels, palette or header is wrong.

    Pillow ignores the checksums of pixels: of single flipped bits in a small mask, it reads one in twelve as another mask.
    """
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        length = int.from_bytes(data[at : at + 4])
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            raise ValueError("truncated")
        critical = not kind[:1].islower()  # others hold texts, times and colour profiles
        if critical and zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError(f"wrong checksum of its {kind.decode('latin-1')} chunk")
        at = end + 4
