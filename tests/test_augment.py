"""Views of a sample: image and mask agree wherever a view looks, and a view is a pure function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segdist import config
from segdist.config import Data
from segdist.data import augment
from segdist.ops.pixels import to_input

sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


def data(**fields: object) -> Data:
    tree = {"run": {"uri": "r"}, "data": {"uri": "d", **fields}, "model": {"name": "unet"}, "train": {"num_steps": 1}}
    return config.from_tree(tree, "test").data


def view_of(
    cfg: Data, image: torch.Tensor, mask: np.ndarray, sample_id: str, epoch: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    pixels = torch.full((3, *cfg.crop_size), 7, dtype=torch.uint8)
    classes = np.full(cfg.crop_size, 255, np.uint8)
    view = augment.draw(cfg, 5, epoch, sample_id, *mask.shape)
    augment.apply(view, image, mask, pixels, classes)
    return pixels.numpy(), classes


@settings(max_examples=80, deadline=None)
@given(size=sizes, crop=sizes, scale=st.sampled_from([[0.3, 0.5], [0.5, 2.0], [2.0, 3.0]]), name=st.text(max_size=5))
def test_painted_coordinates_agree_in_image_and_mask(
    size: tuple[int, int], crop: tuple[int, int], scale: list[float], name: str
) -> None:
    """The image holds its own x and y as colours, the mask x + y by classes; after any view they still say the same."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    image = torch.from_numpy(np.stack([x * 2, y * 2, np.zeros_like(x)]))
    cfg = data(crop_size=list(crop), scale_range=scale)
    for mask, channel in ((x, 0), (y, 1)):
        pixels, classes = view_of(cfg, image, mask, name)
        inside = classes != 255
        assert inside.any()
        assert (pixels[:, ~inside] == 7).all()  # padding of both lies in the same place
        difference = np.abs(pixels[channel][inside] / 2 - classes[inside].astype(float))
        zoom_out = max(1.0, 1 / scale[0])
        assert difference.max() <= 1.0 * zoom_out + 0.5, "image and mask look at different places"


def test_a_view_is_a_pure_function_of_seed_epoch_and_sample() -> None:
    cfg = data(crop_size=[16, 16])
    a = augment.draw(cfg, 1, 2, "x", 40, 50)
    b = augment.draw(cfg, 1, 2, "x", 40, 50)
    assert (a.top, a.left, a.window, a.size, a.flip, a.color.tolist()) == (
        b.top,
        b.left,
        b.window,
        b.size,
        b.flip,
        b.color.tolist(),
    )
    others = [augment.draw(cfg, *k, 40, 50).color.tolist() for k in ((2, 2, "x"), (1, 3, "x"), (1, 2, "y"))]
    assert a.color.tolist() not in others


def test_views_cover_the_image_and_flip_half_of_the_time() -> None:
    cfg = data(crop_size=[8, 8], scale_range=[1.0, 1.0])
    views = [augment.draw(cfg, 0, 0, str(i), 16, 16) for i in range(2000)]
    assert {v.top for v in views} == set(range(9))
    assert {v.left for v in views} == set(range(9))
    assert 0.45 < np.mean([v.flip for v in views]) < 0.55


def test_without_jitter_and_scale_a_view_is_the_picture() -> None:
    cfg = data(
        crop_size=[20, 30], scale_range=[1.0, 1.0], flip_prob=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
    )
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, 20, 30), dtype=np.uint8))
    mask = rng.integers(0, 5, (20, 30), dtype=np.uint8)
    pixels, classes = view_of(cfg, image, mask, "a")
    assert (pixels == image.numpy()).all()
    assert (classes == mask).all()
    assert augment.draw(cfg, 0, 0, "a", 20, 30).color == pytest.approx(np.eye(3, 4), abs=1e-6)


@pytest.mark.parametrize(
    ("jitter", "reference"),
    [
        ({"brightness": 0.7}, lambda x: x * 0.7),
        ({"contrast": 1.3}, lambda x: (x - 127.5) * 1.3 + 127.5),
        ({"saturation": 0.0}, lambda x: np.tile(x @ [0.299, 0.587, 0.114], (3, 1)).T),
        ({"hue": 1.0}, lambda x: x),
    ],
)
def test_a_colour_map_does_what_its_name_says(jitter: dict[str, float], reference: object) -> None:
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    matrix = augment.color_map(**(neutral | jitter))
    rgb = np.random.default_rng(1).uniform(60, 190, (50, 3))
    assert rgb @ matrix[:, :3].T + matrix[:, 3] == pytest.approx(reference(rgb), abs=1e-3)  # type: ignore[operator]


def test_a_hue_rotation_keeps_luma_and_turns_colours() -> None:
    matrix = augment.color_map(1, 1, 1, 1 / 3)
    turned = matrix[:, :3] @ np.array([180.0, 60, 60])
    assert turned @ [0.299, 0.587, 0.114] == pytest.approx(np.array([180.0, 60, 60]) @ [0.299, 0.587, 0.114], abs=1e-3)
    assert turned.argmax() != 0


def test_input_is_normalised_as_transformers_does_it() -> None:
    from transformers import SegformerImageProcessor

    images = torch.randint(0, 256, (2, 3, 9, 11), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    processor = SegformerImageProcessor(do_resize=False, image_mean=list(mean), image_std=list(std))
    assert torch.equal(to_input(images, mean, std), processor(images=list(images), return_tensors="pt")["pixel_values"])
    neutral = torch.eye(3, 4).expand(2, 3, 4)
    assert torch.allclose(to_input(images, mean, std, neutral), to_input(images, mean, std), atol=1e-6)


@pytest.mark.parametrize(("wish", "expected"), [(None, (30, 40)), (15, (15, 20)), ((7, 9), (7, 9)), (100, (100, 133))])
def test_the_size_the_model_sees(wish: object, expected: tuple[int, int]) -> None:
    assert augment.model_size(wish, 30, 40) == expected  # type: ignore[arg-type]
    flipped = augment.model_size(wish, 40, 30)  # type: ignore[arg-type]
    assert flipped == (expected if isinstance(wish, tuple) else expected[::-1])


def test_a_picture_one_pixel_wide_is_resized_as_pillow_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    want = np.asarray(Image.fromarray(pixels).resize((1, 3), Image.Resampling.BILINEAR)).astype(int)
    for image in (torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(pixels.transpose(2, 0, 1).copy())):
        got = augment.resize_image(image, (3, 1)).permute(1, 2, 0).numpy()
        assert np.abs(got - want).max() <= 1
