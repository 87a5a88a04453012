"""Every term against a reference that resizes first and takes whole tensors; and what makes it a loss of the global batch."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch import losses as smp

from segdist.config import Loss
from segdist.data import class_weights
from segdist.errors import ConfigError
from segdist.ops import resize
from segdist.ops.boundary import class_distance
from segdist.step.loss import Criterion

Reference = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of logits at the mask's size, and masks
PIXEL_TERMS = [
    {"cross_entropy": 1.0},
    {"cross_entropy": 0.5, "label_smoothing": 0.1},
    {"cross_entropy": 0.0, "focal": 1.0},
    {"cross_entropy": 0.7, "focal": 2.0, "focal_gamma": 0.5, "label_smoothing": 0.3},
    {"boundary_weight": 3.0, "boundary_sigma_px": 0.7},
    {"boundary_weight": 2.0, "focal": 1.0, "label_smoothing": 0.2},
]
GROUP_TERMS = [{"cross_entropy": 0.0, name: 1.0} for name in ("ohem", "dice", "jaccard", "tversky", "lovasz")]


def name_of(fields: dict[str, float]) -> str:
    return " ".join(f"{k}={v:g}" for k, v in fields.items())


def example(
    k: int = 5, h: int = 4, w: int = 3, height: int = 13, width: int = 9, b: int = 2, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sure and unsure float64 logits, and masks in patches with 30 % void."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(b, k, h, w, dtype=torch.float64, generator=generator)
    coarse = torch.randint(0, k, (b, 1, -(-height // 3), -(-width // 3)), generator=generator)
    masks = F.interpolate(coarse.double(), scale_factor=3)[:, 0, :height, :width].to(torch.uint8)
    masks[torch.rand(masks.shape, generator=generator) < 0.3] = 255
    return logits.requires_grad_(), masks


def whole(
    criterion: Criterion, logits: torch.Tensor, masks: torch.Tensor, align: bool = False, batch: int | None = None
) -> torch.Tensor:
    """The loss of one global batch in micro-batches of `batch` samples."""
    groups = list(zip(logits.split(batch or len(masks)), masks.split(batch or len(masks))))
    divisors = criterion.divisors(criterion.tally([m for _, m in groups]))
    return torch.stack([criterion(z, m, divisors, align) for z, m in groups]).sum()


def assert_alike(
    criterion: Criterion, reference: Reference, logits: torch.Tensor, masks: torch.Tensor, align: bool
) -> None:
    """Value and gradient in float64."""
    ours = whole(criterion, logits, masks, align)
    wide = F.interpolate(logits, masks.shape[1:], mode="bilinear", align_corners=align)
    theirs = reference(wide, masks.long())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-11)
    (a,), (b,) = torch.autograd.grad(ours * 3, logits), torch.autograd.grad(theirs * 3, logits)
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    assert b.any()


def distance_by_brute_force(mask: torch.Tensor, reach: int) -> torch.Tensor:
    height, width = mask.shape
    out = torch.zeros(height, width, dtype=torch.uint8)
    valid = [(r, c, int(mask[r, c])) for r in range(height) for c in range(width) if mask[r, c] != 255]
    for r, c, k in valid:
        others = [max(abs(r - y), abs(c - x)) for y, x, j in valid if j != k]
        if others and min(others) <= reach:
            out[r, c] = min(others)
    return out


def pixel_reference(cfg: Loss, weights: torch.Tensor | None) -> Reference:
    """The pixel terms of a config, by F.cross_entropy, the definition of the focal loss and brute-force distances."""

    def of(wide: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        w = None if weights is None else weights.double()
        valid = masks != 255
        class_weight = torch.ones(masks.shape, dtype=torch.float64) if w is None else w[masks.where(valid, 0)]
        boost = torch.ones(masks.shape, dtype=torch.float64)
        if cfg.boundary_weight:
            d = torch.stack([distance_by_brute_force(m, int(3 * cfg.boundary_sigma_px)) for m in masks]).double()
            near = cfg.boundary_weight * torch.exp(-(d**2) / (2 * cfg.boundary_sigma_px**2))
            boost = torch.where(d > 0, 1 + near, 1.0)
        ce = F.cross_entropy(
            wide, masks, w, ignore_index=255, reduction="none", label_smoothing=cfg.label_smoothing
        )  # weighted already
        p = wide.softmax(1).gather(1, masks.where(valid, 0)[:, None])[:, 0]
        focal = class_weight * (1 - p) ** cfg.focal_gamma * -p.log() * valid
        total = (boost * (cfg.cross_entropy * ce + cfg.focal * focal)).sum()
        return total / (boost * class_weight * valid).sum()

    return of


def test_enet_weights_by_hand() -> None:
    weights = class_weights.class_weights(Loss(class_weights="enet"), [90, 10, 0])
    assert weights is not None
    assert weights.tolist() == pytest.approx([1 / math.log(1.92), 1 / math.log(1.12), 1 / math.log(1.02)])


def test_a_list_must_fit_the_classes() -> None:
    with pytest.raises(ConfigError, match="2 numbers, but the dataset has 3 classes"):
        Criterion(Loss(class_weights=(1.0, 2.0)), [1, 1, 1])


@pytest.mark.parametrize("weights", [None, (2.0, 0.5)])
def test_the_divisors_are_the_weight_of_valid_pixels_and_the_groups_that_have_some(
    weights: tuple[float, ...] | None,
) -> None:
    masks = [torch.tensor([[[0, 0, 1, 255]]]), torch.tensor([[[1, 255, 255, 255]]]), torch.full((1, 2, 2), 255)]
    masks = [m.to(torch.uint8) for m in masks]
    criterion = Criterion(Loss(class_weights=weights), [1, 1])
    tallied = criterion.tally(masks)
    assert torch.equal(tallied, criterion.tally(masks[:1]) + criterion.tally(masks[1:]))
    assert criterion.divisors(tallied).tolist() == [4 if weights is None else 5, 2]
    assert criterion.divisors(criterion.tally(masks[2:])).tolist() == [1, 1]
    assert criterion.divisors(criterion.tally([])).tolist() == [1, 1]


def test_the_divisor_weighs_boundaries_too() -> None:
    """Two classes meet in a row: 0 0 0 1 void 1, at distances 3 2 1 1 - 3, and sigma 0.7 px reaches 2."""
    mask = torch.tensor([[[0, 0, 0, 1, 255, 1]]], dtype=torch.uint8)
    near = [2 * math.exp(-(d**2) / (2 * 0.7**2)) for d in (1, 2)]
    for weights, (a, b) in ((None, (1, 1)), ((2.0, 0.5), (2.0, 0.5))):
        cfg = Loss(boundary_weight=2.0, boundary_sigma_px=0.7, class_weights=weights)
        criterion = Criterion(cfg, [1, 1])
        want = a * (3 + near[1] + near[0]) + b * (2 + near[0])
        assert criterion.divisors(criterion.tally([mask]))[0].item() == pytest.approx(want, rel=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 9), width=st.integers(1, 9), reach=st.integers(0, 9), top=st.sampled_from([2, 3, 255]),
    void=st.sampled_from([0.0, 0.3, 0.9, 1.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_distances_are_those_of_brute_force(
    height: int, width: int, reach: int, top: int, void: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, top, (2, height, width), dtype=torch.uint8, generator=generator)
    masks[1] = masks[1, 0, 0]  # one class alone, but for a corner
    masks[1, -1, -1] = 0
    masks[torch.rand(masks.shape, generator=generator) < void] = 255
    want = torch.stack([distance_by_brute_force(mask, reach) for mask in masks])
    assert torch.equal(class_distance(masks, reach), want)


@pytest.mark.parametrize("align", [False, True], ids=["centres", "corners"])
@pytest.mark.parametrize("weights", [None, (1.0, 0.0, 2.5, 0.25, 9.0)], ids=["", "weights"])
@pytest.mark.parametrize("fields", PIXEL_TERMS, ids=name_of)
def test_pixel_terms_are_those_of_the_definition(
    fields: dict[str, float], weights: tuple[float, ...] | None, align: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = Loss(class_weights=weights, **fields)  # type: ignore[arg-type]
    criterion = Criterion(cfg, [1] * 5)
    reference = pixel_reference(cfg, None if weights is None else torch.tensor(weights))
    for height, width in ((13, 9), (4, 3)):
        logits, masks = example(height=height, width=width)
        assert_alike(criterion, reference, logits, masks, align)
    monkeypatch.setattr(resize, "_BAND_ELEMENTS", 1)
    assert_alike(criterion, reference, *example(), align)


def test_focal_of_two_classes_is_that_of_smp() -> None:
    """smp's multiclass focal loss is a sum of sigmoids, ours a softmax: they meet for K = 2 and logits (0, z)."""
    logits, masks = example(k=2, h=13, w=9)
    logits = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, 1:]], 1)
    ours = whole(Criterion(Loss(cross_entropy=0, focal=1), [1, 1]), logits, masks)
    valid = masks != 255
    theirs = smp.FocalLoss("binary")(logits[:, 1][valid], masks[valid].double())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


def lovasz_by_definition(p: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Equations 6, 8 and 9 of Berman et al. with sets of pixels: the loss of the mistakes {pi_1 ... pi_i}, one by one."""
    error = torch.where(truth, 1 - p, p)
    inside = {i for i, is_class in enumerate(truth.tolist()) if is_class}
    mistakes: set[int] = set()
    total, before = error.new_zeros(()), 0.0
    for i in error.argsort(descending=True).tolist():
        mistakes.add(i)
        jaccard = len(inside - mistakes) / len(inside | mistakes)
        total = total + error[i] * (1 - jaccard - before)
        before = 1 - jaccard
    return total


def overlap_reference(name: str) -> Reference:
    """smp's, told the classes that are present: its own mean counts the absent ones as perfect."""

    def of(wide: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        classes = masks[masks != 255].unique().tolist()
        if name == "tversky":  # float64 counts, hence no eps
            return smp.TverskyLoss("multiclass", classes=classes, ignore_index=255, alpha=0.3, beta=0.7)(wide, masks)
        if name == "dice":
            return smp.DiceLoss("multiclass", classes=classes, ignore_index=255)(wide, masks)
        if name == "lovasz":  # smp's works in fp32 alone, see below
            valid = masks != 255
            p, y = wide.softmax(1).movedim(1, -1)[valid], masks[valid]
            return sum(lovasz_by_definition(p[:, k], y == k) for k in classes) / len(classes)
        valid = masks != 255  # smp's JaccardLoss takes no ignore_index
        p, t = wide.softmax(1).movedim(1, -1)[valid], F.one_hot(masks[valid], wide.shape[1]).double()
        logits = p.log().T[None, :, :, None]
        return smp.JaccardLoss("multiclass", classes=classes)(logits, t.argmax(1)[None, :, None])

    return of


@pytest.mark.parametrize("align", [False, True], ids=["centres", "corners"])
@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "lovasz"])
def test_overlap_terms_are_those_of_smp(name: str, align: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = Criterion(Loss(cross_entropy=0, **{name: 1.0}), [1] * 5)  # type: ignore[arg-type]
    for height, width in ((13, 9), (4, 3)):
        logits, masks = example(height=height, width=width)
        masks[masks == 3] = 255  # an absent class
        assert_alike(criterion, overlap_reference(name), logits, masks, align)
    monkeypatch.setattr(resize, "_BAND_ELEMENTS", 1)
    assert_alike(criterion, overlap_reference(name), *example(), align)


def test_lovasz_is_that_of_smp_in_single_precision() -> None:
    criterion = Criterion(Loss(cross_entropy=0, lovasz=1), [1] * 5)
    logits, masks = (t.detach() for t in example())
    wide = F.interpolate(logits.float(), masks.shape[1:], mode="bilinear")
    theirs = smp.LovaszLoss("multiclass", ignore_index=255)(wide, masks.long())
    assert whole(criterion, logits, masks).item() == pytest.approx(theirs.item(), rel=1e-5)


def ohem_reference(cfg: Loss, weights: torch.Tensor | None) -> Reference:
    def of(wide: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        w = torch.ones(wide.shape[1], dtype=torch.float64) if weights is None else weights.double()
        log_prob = wide.log_softmax(1)
        pixels = [
            (log_prob[b, masks[b, r, c], r, c], w[masks[b, r, c]])
            for b, r, c in (masks != 255).nonzero().tolist()
        ]  # fmt: skip
        pixels.sort(key=lambda pixel: pixel[0].item())
        least = math.ceil(cfg.ohem_min_kept * len(pixels))
        kept = pixels[:least] + [p for p in pixels[least:] if p[0].exp().item() < cfg.ohem_threshold]
        assert least <= len(kept) < len(pixels)
        return -sum(wk * lp for lp, wk in kept) / sum(wk for _, wk in kept)

    return of


@pytest.mark.parametrize("align", [False, True], ids=["centres", "corners"])
@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 2.5, 0.25, 9.0)], ids=["", "weights"])
@pytest.mark.parametrize(("threshold", "least"), [(0.4, 0.01), (1e-9, 0.2)], ids=["by threshold", "by number"])
def test_ohem_is_the_mean_over_the_hard_pixels(
    threshold: float, least: float, weights: tuple[float, ...] | None, align: bool
) -> None:
    cfg = Loss(cross_entropy=0, ohem=1, ohem_threshold=threshold, ohem_min_kept=least, class_weights=weights)
    reference = ohem_reference(cfg, None if weights is None else torch.tensor(weights))
    assert_alike(Criterion(cfg, [1] * 5), reference, *example(), align)


def test_ohem_keeps_pixels_that_are_exactly_as_hard() -> None:
    """Of four equally hard pixels at least one is to be kept: all are, in whatever order they come."""
    logits, masks = torch.zeros(1, 2, 2, 2, requires_grad=True), torch.zeros(1, 2, 2, dtype=torch.uint8)
    criterion = Criterion(Loss(cross_entropy=0, ohem=1, ohem_threshold=0.1, ohem_min_kept=0.25), [1, 1])
    (gradient,) = torch.autograd.grad(whole(criterion, logits, masks), logits)
    assert gradient[0, 0].unique().tolist() == [-0.125]


@pytest.mark.parametrize("align", [False, True], ids=["centres", "corners"])
@pytest.mark.parametrize("size", [(7, 6), (3, 4)], ids=["resized", "as it is"])
@pytest.mark.parametrize("fields", [*PIXEL_TERMS, *GROUP_TERMS], ids=name_of)
def test_gradients_pass_gradcheck(fields: dict[str, float], size: tuple[int, int], align: bool) -> None:
    logits, masks = example(3, 3, 4, *size)
    criterion = Criterion(Loss(class_weights=(1.0, 3.0, 0.5), **fields), [1] * 3)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda z: whole(criterion, z, masks, align), (logits,))


@settings(max_examples=30, deadline=None)
@given(
    fields=st.sampled_from(PIXEL_TERMS), batch=st.sampled_from([1, 2, 3]), cuts=st.sets(st.integers(1, 5)),
    weighted=st.booleans(),
)  # fmt: skip
def test_pixel_terms_do_not_depend_on_groups_or_ranks(
    fields: dict[str, float], batch: int, cuts: set[int], weighted: bool
) -> None:
    weights = (0.5, 1.0, 2.0, 4.0, 0.1) if weighted else None
    criterion = Criterion(Loss(class_weights=weights, **fields), [1] * 5)  # type: ignore[arg-type]
    logits, masks = example(b=6)
    masks[2:4] = 255
    one = whole(criterion, logits, masks)
    groups = list(zip(logits.split(batch), masks.split(batch)))
    edges = [0, *sorted(c for c in cuts if c < len(groups)), len(groups)]
    ranks = [groups[a:b] for a, b in zip(edges, edges[1:])]
    divisors = criterion.divisors(sum(criterion.tally([m for _, m in rank]) for rank in ranks))  # type: ignore[arg-type]
    parts = [criterion(z, m, divisors, False) for rank in ranks for z, m in rank]
    assert torch.stack(parts).sum().item() == pytest.approx(one.item(), rel=1e-12)


@pytest.mark.parametrize("fields", GROUP_TERMS, ids=name_of)
def test_group_terms_are_the_mean_over_groups_with_valid_pixels(fields: dict[str, float]) -> None:
    criterion = Criterion(Loss(**fields), [1] * 5)  # type: ignore[arg-type]
    logits, masks = example(b=6)
    masks[2:4] = 255
    alone = [whole(criterion, logits[i : i + 2], masks[i : i + 2]).item() for i in (0, 2, 4)]
    assert alone[1] == 0
    assert whole(criterion, logits, masks, batch=2).item() == pytest.approx((alone[0] + alone[2]) / 2, rel=1e-12)


def everything(**fields: Any) -> Loss:
    names = ("focal", "ohem", "dice", "jaccard", "tversky", "lovasz")
    return Loss(**dict.fromkeys(names, 1.0), boundary_weight=1, label_smoothing=0.1, **fields)


@pytest.mark.parametrize("size", [(4, 3), (13, 9)], ids=["as it is", "resized"])
@pytest.mark.parametrize("fields", [*PIXEL_TERMS, *GROUP_TERMS, {"tversky": 1.0, "tversky_alpha": 1.0}], ids=name_of)
def test_a_wholly_void_group_costs_nothing(fields: dict[str, float], size: tuple[int, int]) -> None:
    logits, _ = example()
    masks = torch.full((2, *size), 255, dtype=torch.uint8)
    ours = whole(Criterion(Loss(class_weights=(1.0,) * 5, **fields), [1] * 5), logits, masks)  # type: ignore[arg-type]
    assert ours.item() == 0
    assert not torch.autograd.grad(ours, logits)[0].any()


@pytest.mark.parametrize("fields", [*PIXEL_TERMS, *GROUP_TERMS, {"tversky": 1.0, "tversky_alpha": 1.0}], ids=name_of)
@pytest.mark.parametrize("gap", [30.0, 1000.0])
def test_sure_logits_right_or_wrong_give_finite_numbers(fields: dict[str, float], gap: float) -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
    for says in (0, 1):
        logits = torch.zeros(1, 2, 8, 8)
        logits[:, says] = gap
        logits.requires_grad_()
        ours = whole(Criterion(Loss(**fields), [1, 1]), logits, masks)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(ours, logits)
        assert ours.isfinite() and gradient.isfinite().all()
        if says == 0 and not fields.get("label_smoothing"):
            assert ours.item() == pytest.approx(0, abs=1e-6)


def test_one_class_alone_by_hand() -> None:
    """p = 1/2 everywhere, one class: dice 1 - 2(n/2)/(n/2 + n), jaccard 1 - (n/2)/n, Lovász the mean error."""
    logits, masks = torch.zeros(1, 2, 4, 4, requires_grad=True), torch.zeros(1, 8, 8, dtype=torch.uint8)
    for name, want in {"dice": 1 / 3, "jaccard": 1 / 2, "tversky": 1 - 0.5 / 0.85, "lovasz": 1 / 2}.items():
        criterion = Criterion(Loss(cross_entropy=0, **{name: 1.0}), [1, 1])  # type: ignore[arg-type]
        assert whole(criterion, logits, masks).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("k", [2, 150])
def test_few_and_many_classes_in_single_precision_are_near_double_precision(k: int) -> None:
    logits, masks = example(k, 8, 8, 30, 30)
    criterion = Criterion(everything(class_weights="enet"), [1 + i for i in range(k)])
    single = logits.detach().float().requires_grad_()
    double, half = single.detach().double().requires_grad_(), single.detach().bfloat16().requires_grad_()
    ours, exact = whole(criterion, single, masks), whole(criterion, double, masks)
    assert ours.item() == pytest.approx(exact.item(), rel=1e-6)
    (a,), (b,) = torch.autograd.grad(ours, single), torch.autograd.grad(exact, double)
    assert (a - b).abs().max() < 1e-5 * b.abs().max()
    rough = whole(criterion, half, masks)
    assert rough.dtype == torch.float64
    assert rough.item() == pytest.approx(whole(criterion, half.float(), masks).item(), rel=1e-12)
    assert torch.autograd.grad(rough, half)[0].dtype == torch.bfloat16


def test_autocast_does_not_round_the_loss() -> None:
    logits, masks = example()
    single = logits.detach().float().requires_grad_()
    criterion = Criterion(everything(), [1] * 5)
    plain = whole(criterion, single, masks)
    with torch.autocast("cpu", torch.bfloat16):
        cast = whole(criterion, single, masks)
    assert torch.equal(plain, cast)
    assert torch.equal(torch.autograd.grad(plain, single)[0], torch.autograd.grad(cast, single)[0])


def test_many_terms_are_the_weighted_sum_of_each() -> None:
    logits, masks = example()
    shares = {"focal": 0.5, "ohem": 2.0, "dice": 3.0, "jaccard": 0.25, "tversky": 1.5, "lovasz": 0.7}
    base = {"boundary_weight": 1.0, "label_smoothing": 0.1}
    alone = [{"cross_entropy": 1.0}, *({"cross_entropy": 0.0, name: share} for name, share in shares.items())]
    parts = [whole(Criterion(Loss(**base, **f), [1] * 5), logits, masks).item() for f in alone]  # type: ignore[arg-type]
    together = whole(Criterion(Loss(**base, **shares), [1] * 5), logits, masks)  # type: ignore[arg-type]
    assert together.item() == pytest.approx(sum(parts), rel=1e-12)
    assert min(parts) > 0


def test_auxiliary_heads_pay_the_same_loss_at_their_own_size() -> None:
    criterion = Criterion(everything(aux_weight=0.25), [1] * 5)
    (main, masks), (aux, _), (third, _) = example(), example(h=2, w=2, seed=1), example(h=13, w=9, seed=2)
    divisors = criterion.divisors(criterion.tally([masks]))
    a, b, c = (criterion(z, masks, divisors, False).item() for z in (main, aux, third))
    assert criterion((main, aux, third), masks, divisors, False).item() == pytest.approx(a + (b + c) / 4, rel=1e-12)
    mute = Criterion(everything(aux_weight=0), [1] * 5)
    assert mute((main, aux), masks, divisors, False).item() == pytest.approx(a, rel=1e-12)


def test_plain_cross_entropy_is_the_same_bits_as_its_own_operation() -> None:
    logits, masks = example()
    single = logits.detach().float().requires_grad_()
    criterion = Criterion(Loss(class_weights=(1.0, 2.0, 3.0, 4.0, 5.0)), [1] * 5)
    ours = whole(criterion, single, masks)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    plain = resize.cross_entropy_sum(single, masks, False, weights) / criterion.divisors(criterion.tally([masks]))[0]
    assert torch.equal(ours, plain)
    assert torch.equal(torch.autograd.grad(ours, single)[0], torch.autograd.grad(plain, single)[0])


def test_no_tensor_has_the_size_of_resized_logits() -> None:
    """150 classes at 512x512: whole, the logits would take 157 MB; no tensor of any term comes near."""
    logits = torch.randn(1, 150, 16, 16, requires_grad=True)
    masks = torch.randint(0, 6, (1, 512, 512), dtype=torch.uint8)
    criterion = Criterion(everything(), [1] * 150)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return out

    with Watch():
        whole(criterion, logits, masks).backward()
    assert 1 << 20 < largest < 20 << 20


PEAK = """
import torch
from segdist.config import Loss
from segdist.step.loss import Criterion

def peak_kb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

names = ("cross_entropy", "focal", "ohem", "dice", "jaccard", "tversky", "lovasz")
criterion = Criterion(Loss(**dict.fromkeys(names, 1.0), boundary_weight=1, label_smoothing=0.1), [1] * 150)
masks = torch.randint(0, 6, (4, 512, 512), dtype=torch.uint8)
divisors = criterion.divisors(criterion.tally([masks]))
criterion(torch.randn(1, 150, 4, 4, requires_grad=True), masks[:1, :16, :16], divisors, False).backward()  # warm
logits = torch.randn(4, 150, 128, 128, requires_grad=True)
before = peak_kb()
criterion(logits, masks, divisors, False).backward()
print(peak_kb() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.long
def test_all_terms_together_fit_into_the_memory_of_half_the_resized_logits() -> None:
    """4 pictures, 150 classes, 128 -> 512 px: the resized logits alone would take 629 MB, each gradient kept 39 MB."""
    done = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    assert 39_000 < int(done.stdout) < 400_000
