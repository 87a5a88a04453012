"""Random augmentation: scale, crop, flip and colour jitter, as a pure function of (seed, epoch, sample_id).

Only the window that the crop needs is resized, in uint8, directly into its slot of the batch. Colour jitter is twelve
numbers per image (an affine map of RGB). The device applies it together with the normalisation: `ops.pixels.to_input`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from segdist.config import Data
from segdist.data.order import key

_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma
_YIQ = np.array([_GREY, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


@dataclass(frozen=True)
class View:
    """The window to cut out of an image and its mask, and its place in the crop. All sizes in px."""

    top: int
    left: int
    window: tuple[int, int]  # (height, width) in the stored image
    size: tuple[int, int]  # (height, width) in the crop, anchored at its top left corner; the rest is padding
    flip: bool
    color: np.ndarray  # float32 (3, 4): RGB in 0..255 -> color[:, :3] @ rgb + color[:, 3], then clamped


def uniforms(seed: int, epoch: int, sample_id: str, num: int) -> np.ndarray:
    """Return `num` float64 in [0, 1)."""
    sample_hash = int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "little")
    bits = key(seed, epoch, np.uint64(sample_hash), np.arange(num))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def model_size(image_size: int | tuple[int, int] | None, height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of the model's input for an image of this size. An int sets the shorter side."""
    if image_size is None:
        return height, width
    if isinstance(image_size, int):
        short, long = sorted((height, width))
        other = int(image_size * long / short)  # rounds like torchvision's Resize
        return (image_size, other) if height <= width else (other, image_size)
    return image_size


def draw(cfg: Data, seed: int, epoch: int, sample_id: str, height: int, width: int) -> View:
    """Return the view of this sample in this epoch. `height` and `width` are the stored image's."""
    u = uniforms(seed, epoch, sample_id, 8)
    low, high = cfg.scale_range
    scale = low * (high / low) ** u[0]
    size, window, start = [], [], []
    resized = model_size(cfg.image_size, height, width)
    for full, target, crop, offset in zip((height, width), resized, cfg.crop_size, u[1:3]):
        size.append(max(1, min(crop, round(target * scale))))
        window.append(max(1, min(full, round(size[-1] * full / (target * scale)))))
        start.append(int(offset * (full - window[-1] + 1)))
    return View(
        top=start[0],
        left=start[1],
        window=(window[0], window[1]),
        size=(size[0], size[1]),
        flip=bool(u[3] < cfg.flip_prob),
        color=color_map(
            brightness=1 + cfg.brightness * (2 * u[4] - 1),
            contrast=1 + cfg.contrast * (2 * u[5] - 1),
            saturation=1 + cfg.saturation * (2 * u[6] - 1),
            hue=cfg.hue * (2 * u[7] - 1),
        ),
    )


def color_map(brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """Return the four jitters, applied in this order, as one affine map of RGB in 0..255: float32 (3, 4).

    Contrast scales around mid-grey, and saturation around the pixel's luma. Hue rotates the chroma plane of YIQ by `hue`
    turns.
    """
    c, s = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    rotate = np.linalg.inv(_YIQ) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ _YIQ
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(_GREY, (3, 1))
    linear = rotate @ saturate
    shift = linear @ np.full(3, (1 - contrast) * 127.5)
    return np.concatenate([linear * (contrast * brightness), shift[:, None]], 1).astype(np.float32)


def resize_image(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (3, H, W) uint8 to (3, *size), bilinear with antialiasing: the kernel of torchvision and transformers."""
    if tuple(image.shape[1:]) == size:
        return image
    if size[1] == 1:  # torch 2.15's kernel asserts on one-pixel-wide results unless memory is channels-last
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) to `size` by nearest neighbour, with the same pixel centres as `resize_image`."""
    rows, cols = ((np.arange(n) * 2 + 1) * full // (2 * n) for n, full in zip(size, mask.shape))
    return mask.take(rows, 0).take(cols, 1)  # takes 0.3 of the time of mask[rows[:, None], cols]


def apply(view: View, image: torch.Tensor, mask: np.ndarray, into: torch.Tensor, mask_into: np.ndarray) -> None:
    """Write the view of `image` (3, H, W) uint8 and `mask` (H, W) into a slot of the batch.

    `mask` holds class numbers. Pixels of the slot outside the view keep their padding.
    """
    (h, w), (top, left) = view.window, (view.top, view.left)
    pixels = resize_image(image[:, top : top + h, left : left + w], view.size)
    classes = resize_mask(mask[top : top + h, left : left + w], view.size)
    if view.flip:
        pixels, classes = pixels.flip(2), classes[:, ::-1]
    into[:, : view.size[0], : view.size[1]] = pixels
    mask_into[: view.size[0], : view.size[1]] = classes
