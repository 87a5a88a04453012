"""Pictures that Pillow does not write: PNGs of any depth, interlaced, damaged or huge; headers that promise too much."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # PNG colour types
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, bits: int = 8, color: int = GREY, interlaced: bool = False) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced))


def _rows(samples: np.ndarray, bits: int) -> bytes:
    """Filtered (by none) and packed rows of samples (H, W, channels)."""
    rows = []
    for row in samples.reshape(len(samples), -1):
        if bits == 16:
            packed = row.astype(">u2").tobytes()
        else:
            digits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
            packed = np.packbits(digits.ravel()).tobytes()
        rows.append(b"\0" + packed)
    return b"".join(rows)


def png(samples: np.ndarray, bits: int = 8, color: int = GREY, extra: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG of samples (H, W) or (H, W, channels), written from the specification; `extra` stands before the pixels."""
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width = samples.shape[:2]
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in _ADAM7] if interlaced else [samples]
    body = zlib.compress(b"".join(_rows(part, bits) for part in passes if part.size))
    palette = chunk(b"PLTE", (bytes(range(256)) * 3)[: 3 << bits]) if color == PALETTE else b""
    parts = (header(width, height, bits, color, interlaced), palette, extra, chunk(b"IDAT", body), chunk(b"IEND", b""))
    return SIGNATURE + b"".join(parts)


def written(picture: np.ndarray | Image.Image, format: str, **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    out = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(out, format, **options)
    return out.getvalue()


def text_bomb(kind: bytes, num_bytes: int) -> bytes:
    """A zTXt, iTXt or iCCP chunk that swells to `num_bytes`."""
    packed = zlib.compress(bytes(num_bytes), 9)
    return chunk(kind, {b"zTXt": b"k\0\0", b"iCCP": b"k\0\0", b"iTXt": b"k\0\1\0\0\0"}[kind] + packed)


def promises(format: str, side: int = 50_000) -> bytes:
    """A small file whose header declares `side` x `side` pixels."""
    if format == "PNG":
        return SIGNATURE + header(side, side) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    data = bytearray(written(np.zeros((8, 8, 3), np.uint8), format))
    if format == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)
