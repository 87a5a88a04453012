"""Encoding and decoding of images and masks.

Images keep their JPEG or PNG bytes. Masks are raw integers compressed by zstd: 20 times cheaper to decode than PNG, and
smaller on street scenes. Every decoder here releases the GIL, so the stream needs threads only.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from PIL import Image

from segdist.errors import DataError

JPEG = b"\xff\xd8"  # magic number
PNG = "png-uint8"  # mask codec for viewers; 20 times slower to decode
MASK_CODECS: dict[str, np.dtype[Any]] = {
    "zstd-uint8": np.dtype("<u1"), "zstd-uint16": np.dtype("<u2"), PNG: np.dtype("<u1"),
}  # fmt: skip
_ZSTD = pa.Codec("zstd", compression_level=3)


def encode_mask(mask: np.ndarray) -> tuple[bytes, str]:
    """Encode an (H, W) uint8 or uint16 mask. Returns (bytes, codec name)."""
    codec = "zstd-uint8" if mask.dtype == np.uint8 else "zstd-uint16"
    raw = np.ascontiguousarray(mask, dtype=MASK_CODECS[codec])
    return _ZSTD.compress(raw.tobytes(), asbytes=True), codec


def decode_mask(data: pa.Buffer | bytes, codec: str, height: int, width: int) -> np.ndarray:
    """Decode a mask to (H, W) uint8 or uint16 raw values, read-only. Raises DataError if it does not decode to this size."""
    if codec not in MASK_CODECS:
        raise DataError(f"unknown mask_codec {codec!r}, not {' or '.join(MASK_CODECS)}. Upgrade segdist")
    dtype = MASK_CODECS[codec]
    try:
        if codec == PNG:
            with open_image(memoryview(data).cast("B")) as image:
                if image.mode not in ("L", "P") or image.size != (width, height):
                    raise ValueError(f"the PNG is {image.height}x{image.width}, mode {image.mode}")
                return np.array(image)
        raw = _ZSTD.decompress(data, decompressed_size=height * width * dtype.itemsize)
        return np.frombuffer(raw, dtype).reshape(height, width)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"cannot decode the mask to {height}x{width} {dtype}: {error}") from None


def size_of(data: pa.Buffer | bytes) -> tuple[int, int]:
    """Return the (height, width) in the header of JPEG or PNG bytes. Raises DataError if the header is unreadable."""
    view = memoryview(data).cast("B")
    try:
        if _is_jpeg(view):
            height, width = simplejpeg.decode_jpeg_header(view)[:2]
            return int(height), int(width)
        with open_image(view) as image:
            return image.height, image.width
    except (ValueError, OSError, SyntaxError) as error:
        raise DataError(f"cannot decode the image: {error}") from None


def decode_image(data: pa.Buffer | bytes) -> torch.Tensor:
    """Decode JPEG or PNG bytes to (3, H, W) uint8 RGB. Raises DataError if they do not decode.

    simplejpeg (libjpeg-turbo) gives the same bits as Pillow and torchvision in 0.7 of Pillow's time.
    Does not limit the size: check untrusted images with `size_of` first.
    """
    view = memoryview(data).cast("B")
    try:
        if _is_jpeg(view):
            pixels = simplejpeg.decode_jpeg(view, "RGB")
        else:
            with open_image(view) as image:
                pixels = np.array(image.convert("RGB"))
    except (ValueError, OSError, SyntaxError) as error:
        raise DataError(f"cannot decode the image: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _is_jpeg(view: memoryview) -> bool:
    return bytes(view[:2]) == JPEG


def open_image(view: memoryview) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = None  # `prepare --max-megapixels` already limits the size
    return Image.open(io.BytesIO(view))


def strip_metadata(data: bytes) -> bytes:
    """Remove EXIF, XMP, IPTC and comments from a JPEG or PNG. Pixels and the colour profile stay as they are.

    Raises DataError if the data is neither JPEG nor PNG.
    """
    return _strip_jpeg(data) if data[:2] == JPEG else _strip_png(data)


def _strip_jpeg(data: bytes) -> bytes:
    """Keep the segments that decoding needs and the colour profile. Drop bytes after the end of the image."""
    kept, at = [JPEG], 2
    try:
        while data[at + 1] != 0xD9:  # end of image
            marker, length = data[at + 1], 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if data[at] != 0xFF or length < 4:
                raise ValueError(f"expected a segment at byte {at}")
            segment = data[at : at + length]
            at += length
            is_profile = marker == 0xE2 and segment[4:15] == b"ICC_PROFILE"
            if is_profile or marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
                kept.append(segment)
            if marker == 0xDA:  # start of scan: copy up to the next marker outside the scan data
                end = at
                while data[end] != 0xFF or data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7:
                    end += 1 if data[end] != 0xFF else 2
                    end = data.index(b"\xff", end)
                kept.append(data[at:end])
                at = end
            while data[at + 1] == 0xFF:  # fill bytes
                at += 1
    except (IndexError, ValueError) as error:
        raise DataError(f"the JPEG is damaged or truncated: {error}") from None
    return b"".join([*kept, b"\xff\xd9"])


def _strip_png(data: bytes) -> bytes:
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise DataError("the image is neither JPEG nor PNG")
    kept, at = [data[:8]], 8
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"):
            kept.append(data[at : at + 12 + length])
        at += 12 + length
        if kind == b"IEND":
            break
    return b"".join(kept)
