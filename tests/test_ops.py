"""The fused operations, against the plain ones they replace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segdist.ops import resize

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 33), st.integers(1, 33))


def plain_loss(
    logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, weights: torch.Tensor | None = None
) -> torch.Tensor:
    wide = F.interpolate(logits, masks.shape[1:], mode="bilinear", align_corners=align_corners)
    weights = None if weights is None else weights.to(wide)
    return F.cross_entropy(wide, masks.long(), weights, ignore_index=255, reduction="sum")


def example(k: int, h: int, w: int, height: int, width: int, void: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(h * 1000 + width)
    logits = torch.randn(2, k, h, w, dtype=torch.float64, generator=generator).requires_grad_()
    masks = torch.randint(0, k, (2, height, width), dtype=torch.uint8, generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < void] = 255
    return logits, masks


@settings(max_examples=50, deadline=None)
@given(shape=shapes, align_corners=st.booleans(), band=st.sampled_from([1, 100, 1 << 22]))
def test_loss_and_gradient_are_those_of_resizing_first(
    shape: tuple[int, int, int, int], align_corners: bool, band: int
) -> None:
    logits, masks = example(5, *shape)
    weights = torch.tensor([1.0, 0.0, 2.5, 0.3, 9.0]) if band == 100 else None
    before, resize._BAND_ELEMENTS = resize._BAND_ELEMENTS, band
    try:
        ours = resize.cross_entropy_sum(logits, masks, align_corners, weights)
    finally:
        resize._BAND_ELEMENTS = before
    theirs = plain_loss(logits, masks, align_corners, weights)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12, abs=1e-12)
    (a,), (b,) = torch.autograd.grad(ours * 3, logits), torch.autograd.grad(theirs * 3, logits)
    assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_the_gradient_passes_gradcheck() -> None:
    logits, masks = example(3, 3, 4, 7, 6)
    assert torch.autograd.gradcheck(lambda z: resize.cross_entropy_sum(z, masks, False), (logits,))


def test_a_wholly_void_mask_costs_nothing() -> None:
    for size in ((4, 4), (16, 16)):
        logits = torch.randn(2, 3, 4, 4, requires_grad=True)
        loss = resize.cross_entropy_sum(logits, torch.full((2, *size), 255, dtype=torch.uint8), False)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert not logits.grad.any()


def test_half_precision_logits_give_a_single_precision_loss() -> None:
    logits, masks = example(4, 5, 5, 20, 20)
    half = logits.detach().bfloat16()
    assert resize.cross_entropy_sum(half, masks, False).dtype == torch.float32
    assert resize.cross_entropy_sum(half, masks, False).item() == pytest.approx(
        plain_loss(half.float(), masks, False).item(), rel=1e-5
    )


@settings(max_examples=50, deadline=None)
@given(shape=shapes, align_corners=st.booleans(), rows=st.integers(1, 33))
def test_the_way_back_is_the_adjoint_of_the_resize_by_either_road(
    shape: tuple[int, int, int, int], align_corners: bool, rows: int
) -> None:
    """Scattered additions and matrix products give the gradient of F.interpolate; in fp32 they differ by their rounding."""
    z, size = example(3, *shape)[0], shape[2:]
    wide = F.interpolate(z, size, mode="bilinear", align_corners=align_corners)
    d_wide = torch.randn(wide.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(1))
    (want,) = torch.autograd.grad(wide, z, d_wide)

    def back(dtype: torch.dtype, products: bool) -> torch.Tensor:
        logits = z.detach().to(dtype)
        resizing, grad = resize.Resizing(logits, size, align_corners, products), torch.zeros_like(logits)
        for first in range(0, size[0], rows):
            last = min(first + rows, size[0])
            if dtype == torch.float64:
                assert torch.allclose(resizing.resize(logits, first, last), wide[:, :, first:last], rtol=0, atol=1e-12)
            resizing.add_gradient(d_wide[:, :, first:last].to(dtype), first, last, grad)
        return grad

    scale = want.abs().max()
    for products in (False, True):
        assert (back(torch.float64, products) - want).abs().max() <= 1e-12 * scale
    with torch.autocast("cpu", torch.bfloat16):  # which would round the products
        assert (back(torch.float32, True) - back(torch.float32, False)).abs().max() <= 1e-6 * scale


@settings(max_examples=50, deadline=None)
@given(shape=shapes, k=st.integers(2, 40), align_corners=st.booleans(), band=st.sampled_from([1, 1 << 22]))
def test_predictions_are_the_argmax_bit_for_bit(
    shape: tuple[int, int, int, int], k: int, align_corners: bool, band: int
) -> None:
    logits = example(k, *shape)[0].detach().float()
    wide = F.interpolate(logits, shape[2:], mode="bilinear", align_corners=align_corners)
    before, resize._BAND_ELEMENTS = resize._BAND_ELEMENTS, band
    try:
        assert torch.equal(resize.predict(logits, shape[2:], align_corners).long(), wide.argmax(1))
    finally:
        resize._BAND_ELEMENTS = before


def test_ties_go_to_the_lower_class() -> None:
    assert not resize.predict(torch.zeros(1, 9, 2, 2), (8, 8), False).any()
    assert not resize.predict(torch.zeros(1, 9, 2, 2), (2, 2), False).any()


def test_the_resized_logits_never_exist() -> None:
    """150 classes at 768x768: whole, they would take 354 MB; the peak of what autograd keeps is far below."""
    logits = torch.randn(1, 150, 24, 24, requires_grad=True)
    masks = torch.randint(0, 150, (1, 768, 768), dtype=torch.uint8)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return out

    with Watch():
        resize.cross_entropy_sum(logits, masks, False).backward()
        resize.predict(logits.detach(), (768, 768), False)
    assert 1 << 20 < largest < 40 << 20
