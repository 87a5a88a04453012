"""Windows, scales and mirrors: against plain torch that holds everything, and bit for bit where nothing is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SEGFORMER, UNET
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from segdist import config, models
from segdist.data.augment import resize_image
from segdist.evaluation import inference
from segdist.evaluation.inference import PLAIN, InferenceSettings, cover, segment
from segdist.models.segmenter import Segmenter, Traits, infer

K = 5


@pytest.fixture(scope="module", params=["segformer", "unet"])
def model(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(0)
    cfg = TypeAdapter(config.Model).validate_python({"segformer": SEGFORMER, "unet": UNET}[request.param])
    return models.build(cfg, [str(k) for k in range(K)]).eval()


def pictures(num: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    images = torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=generator)
    masks = torch.randint(0, K, (num, height, width), dtype=torch.uint8, generator=generator)
    masks[:, : height // 3] = 255
    return images, masks


def slid(model: Segmenter, image: torch.Tensor, window: tuple[int, int], overlap: float) -> torch.Tensor:
    """Blended logits (K, h, w) of a (3, H, W) image, in float64, one window at a time, weights divided at the end."""
    s = model.traits.stride
    h, w = (-(-n // s) for n in image.shape[1:])
    total, weights = torch.zeros(K, h, w, dtype=torch.float64), torch.zeros(h, w, dtype=torch.float64)
    sides = [min(-(-n // s), full) for n, full in zip(window, (h, w))]
    bells = [torch.exp(-0.5 * ((torch.arange(n) + 0.5 - n / 2) / (n / 8)) ** 2).double() for n in sides]
    starts = [
        sorted({*range(0, full - n + 1, max(1, round(n * (1 - overlap)))), full - n}) for n, full in zip(sides, (h, w))
    ]
    for top in starts[0]:
        for left in starts[1]:
            tile = image[:, top * s : (top + sides[0]) * s, left * s : (left + sides[1]) * s]
            place = (slice(top, top + sides[0]), slice(left, left + sides[1]))
            total[:, *place] += infer(model, tile[None])[0].double() * bells[0][:, None] * bells[1]
            weights[place] += bells[0][:, None] * bells[1]
    return total / weights


def judged(logits: torch.Tensor, mask: torch.Tensor, align_corners: bool) -> tuple[torch.Tensor, float]:
    """(classes, summed loss) of float64 logits (K, h, w), all at once."""
    wide = F.interpolate(logits[None], mask.shape, mode="bilinear", align_corners=align_corners)
    return wide.argmax(1)[0], F.cross_entropy(wide, mask[None].long(), ignore_index=255, reduction="sum").item()


@pytest.mark.parametrize(
    ("size", "window"),
    [((64, 96), (64, 96)), ((50, 71), (64, 96)), ((33, 47), (34, 45)), ((64, 64), (512, 512))],
)
def test_what_fits_into_a_window_is_seen_whole_bit_for_bit(
    model: Segmenter, size: tuple[int, int], window: tuple[int, int]
) -> None:
    if model.traits.stride == 1:
        window = (max(size[0], window[0]), max(size[1], window[1]))  # where nothing is rounded up to the stride
    images, masks = pictures(3, *size)
    whole, whole_loss = segment(model, images, size, PLAIN, 4, masks)
    slid, slid_loss = segment(model, images, size, InferenceSettings(window), 4, masks)
    assert torch.equal(whole, slid)
    assert whole_loss.item() == slid_loss.item()


@pytest.mark.parametrize("size", [(64, 96), (97, 130), (40, 131), (131, 40)])
@pytest.mark.parametrize(("window", "overlap"), [((64, 64), 0.5), ((48, 36), 0.25), ((64, 80), 0.0)])
@pytest.mark.parametrize("scale", [1, 2])
def test_sliding_is_blending_and_resizing_once(
    model: Segmenter, size: tuple[int, int], window: tuple[int, int], overlap: float, scale: int
) -> None:
    images, _ = pictures(2, *size)
    _, masks = pictures(2, size[0] * scale, size[1] * scale)
    mask_size = (masks.shape[1], masks.shape[2])
    pred, loss = segment(model, images, mask_size, InferenceSettings(window, overlap), 3, masks)
    expected = [judged(slid(model, i, window, overlap), m, model.traits.align_corners) for i, m in zip(images, masks)]
    assert (pred != torch.stack([p for p, _ in expected])).float().mean() < 1e-3  # fp32 may turn a tie
    assert loss.item() == pytest.approx(sum(one for _, one in expected), rel=1e-5)


def test_bands_change_nothing(model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = pictures(1, 97, 130)
    how = InferenceSettings((64, 64), 0.5, (0.5, 1.0), flip=True)
    pred, loss = segment(model, images, (97, 130), how, 4, masks)
    monkeypatch.setattr(inference, "_BAND_ELEMENTS", 1)  # one row at a time
    narrow, narrow_loss = segment(model, images, (97, 130), how, 4, masks)
    assert (pred != narrow).float().mean() < 1e-3
    assert narrow_loss.item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("window", [None, (64, 64)])
def test_views_are_averaged_as_probabilities_at_the_masks_size(
    model: Segmenter, window: tuple[int, int] | None
) -> None:
    images, masks = pictures(2, 96, 130)
    how = InferenceSettings(window, 0.5, (0.5, 1.0, 1.25), flip=True)
    pred, loss = segment(model, images, (96, 130), how, 4, masks)
    total = torch.zeros(2, K, 96, 130, dtype=torch.float64)
    for scale, size in ((0.5, (48, 65)), (1.0, (96, 130)), (1.25, (120, 162))):
        for mirrored in (False, True):
            for i, image in enumerate(images):
                seen = resize_image(image, size) if scale != 1 else image
                seen = seen.flip(2) if mirrored else seen
                logits = slid(model, seen, window, 0.5) if window else infer(model, seen[None])[0].double()
                wide = F.interpolate(
                    logits[None], (96, 130), mode="bilinear", align_corners=model.traits.align_corners
                )[0].softmax(0)
                total[i] += (wide.flip(2) if mirrored else wide) / 6
    expected = F.nll_loss(total.log(), masks.long(), ignore_index=255, reduction="sum").item()
    assert (pred != total.argmax(1)).float().mean() < 1e-3
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_picture_and_its_mirror_image_are_judged_alike(model: Segmenter) -> None:
    images, _ = pictures(1, 64, 96)
    how = InferenceSettings(flip=True)
    pred, _ = segment(model, images, (64, 96), how, 4)
    mirrored, _ = segment(model, images.flip(3), (64, 96), how, 4)
    assert (pred != mirrored.flip(2)).float().mean() < 1e-3


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 400), window=st.integers(1, 200), overlap=st.floats(0, 0.95))
def test_windows_cover_everything_and_their_weights_add_up_to_one(size: int, window: int, overlap: float) -> None:
    starts, weights = cover(size, window, overlap)
    total, length = np.zeros(size), weights.shape[1]
    assert length == min(window, size)
    for start, weight in zip(starts, weights, strict=True):
        assert 0 <= start <= size - length
        assert (weight > 0).all()
        total[start : start + length] += weight
    assert np.allclose(total, 1, rtol=1e-12)
    assert starts == sorted(set(starts))
    steps = np.diff(starts)
    assert (steps <= max(1, round(length * (1 - overlap)))).all()
    assert (steps[:-1] == max(1, round(length * (1 - overlap)))).all()  # only the last one is moved inwards


class _Brightness(torch.nn.Module):
    """Logits at stride 4 that depend on the pixels below them and on nothing else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right, below = -x.shape[3] % 4, -x.shape[2] % 4
        mean = F.avg_pool2d(F.pad(x, (0, right, 0, below), mode="replicate").mean(1, keepdim=True), 4)
        return torch.cat([mean * w for w in (-1.0, 0.5, 2.0)], 1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (61, 99), (33, 130)])
def test_where_windows_agree_sliding_is_whole(size: tuple[int, int], align_corners: bool) -> None:
    """Logits of windows lie on the very grid of the whole picture's, whatever its size and the head's rule."""
    traits = Traits((0.5,) * 3, (0.2,) * 3, align_corners, stride=4, multiple=1, least=1, encoder_prefix="")
    model = Segmenter(_Brightness(), lambda net, x: net(x), traits, {})
    model.register_parameter("anywhere", torch.nn.Parameter(torch.zeros(1)))
    images, masks = pictures(2, *size)
    masks[masks < 255] %= 3
    whole, whole_loss = segment(model, images, size, PLAIN, 4, masks)
    slid, slid_loss = segment(model, images, size, InferenceSettings((32, 24)), 4, masks)
    assert (whole != slid).float().mean() < 1e-3
    assert slid_loss.item() == pytest.approx(whole_loss.item(), rel=1e-6)


def test_memory_is_bounded_by_a_row_of_windows(model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as tall a picture needs no larger tensor; the largest is a row of windows, not the picture's logits."""
    monkeypatch.setattr(inference, "_BAND_ELEMENTS", 1 << 12)

    def largest(height: int) -> int:
        images, masks = pictures(1, height, 96)
        found = 0

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                nonlocal found
                out = func(*args, **(kwargs or {}))
                for tensor in out if isinstance(out, tuple | list) else (out,):
                    if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                        found = max(found, tensor.numel())
                return out

        with Watch():
            segment(model, images, (height, 96), InferenceSettings((64, 64)), 2, masks)
        return found

    assert largest(256) == largest(1024)
