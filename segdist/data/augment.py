"""Random views of a sample: scale, crop, flip, colour. A view is a pure function of (seed, epoch, sample_id).

Only the window that the crop needs is resized, in uint8, straight into its slot of the batch. Colour is twelve numbers
per picture (an affine map of RGB), applied on the device together with the normalisation: `ops.pixels.to_input`.
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
    """What to cut out of an image and its mask, and how it lies in the crop; all px."""

    top: int
    left: int
    window: tuple[int, int]  # (height, width) in the stored image
    size: tuple[int, int]  # (height, width) in the crop, from its upper left corner; the rest is padding
    flip: bool
    color: np.ndarray  # float32 (3, 4): RGB in 0..255 -> color[:, :3] @ rgb + color[:, 3], then clamped


def uniforms(seed: int, epoch: int, sample_id: str, num: int) -> np.ndarray:
    """num float64 in [0, 1)."""
    identity = int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "little")
    bits = key(seed, epoch, np.uint64(identity), np.arange(num))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def model_size(image_size: int | tuple[int, int] | None, height: int, width: int) -> tuple[int, int]:
    """(height, width) at which the model sees an image of this size; a number means its shorter side."""
    if image_size is None:
        return height, width
    if isinstance(image_size, int):
        short, long = sorted((height, width))
        other = int(image_size * long / short)  # as torchvision's Resize rounds
        return (image_size, other) if height <= width else (other, image_size)
    return image_size


def draw(cfg: Data, seed: int, epoch: int, sample_id: str, height: int, width: int) -> View:
    """The view of this sample in this epoch; height and width are the stored image's."""
    u = uniforms(seed, epoch, sample_id, 8)
    low, high = cfg.scale_range
    scale = low * (high / low) ** u[0]
    size, window, start = [], [], []
    for full, seen, crop, at in zip((height, width), model_size(cfg.image_size, height, width), cfg.crop_size, u[1:3]):
        size.append(max(1, min(crop, round(seen * scale))))
        window.append(max(1, min(full, round(size[-1] * full / (seen * scale)))))
        start.append(int(at * (full - window[-1] + 1)))
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
    """float32 (3, 4): the four jitters, in this order, as one affine map of RGB in 0..255.

    Contrast turns about mid-grey, saturation about the pixel's luma; hue rotates the chroma plane of YIQ by `hue` turns.
    """
    c, s = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    rotate = np.linalg.inv(_YIQ) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ _YIQ
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(_GREY, (3, 1))
    linear = rotate @ saturate
    shift = linear @ np.full(3, (1 - contrast) * 127.5)
    return np.concatenate([linear * (contrast * brightness), shift[:, None]], 1).astype(np.float32)


def resize_image(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) uint8 -> (3, *size) uint8, bilinear with antialiasing: torchvision's and transformers' own kernel."""
    if tuple(image.shape[1:]) == size:
        return image
    if (
        size[1] == 1
    ):  # torch 2.15's kernel asserts where the result is one pixel wide, unless channels come last in memory
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> size, nearest to the pixel's centre, which is where `resize_image` looks too."""
    rows, cols = ((np.arange(n) * 2 + 1) * full // (2 * n) for n, full in zip(size, mask.shape))
    return mask.take(rows, 0).take(cols, 1)  # in 0.3 of the time of mask[rows[:, None], cols]


def apply(view: View, image: torch.Tensor, mask: np.ndarray, into: torch.Tensor, mask_into: np.ndarray) -> None:
    """Writes the view of (3, H, W) uint8 `image` and (H, W) `mask` into a slot of the batch.

    `mask` holds classes already; what the view does not cover of the slots keeps its padding.
    """
    (h, w), (top, left) = view.window, (view.top, view.left)
    pixels = resize_image(image[:, top : top + h, left : left + w], view.size)
    classes = resize_mask(mask[top : top + h, left : left + w], view.size)
    if view.flip:
        pixels, classes = pixels.flip(2), classes[:, ::-1]
    into[:, : view.size[0], : view.size[1]] = pixels
    mask_into[: view.size[0], : view.size[1]] = classes
