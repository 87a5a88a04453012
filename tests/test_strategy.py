"""One update: the formula against autograd over the whole batch, and what belongs to a group alone."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SEGFORMER, UNET
from torch import nn

from segdist import models
from segdist.config import Loss, Optim, Segformer, Smp, Train
from segdist.data.order import key
from segdist.data.stream import MicroBatch
from segdist.distributed import World
from segdist.errors import ConfigError, DeviceMemoryError
from segdist.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Segmenter, Traits, infer
from segdist.ops.pixels import to_input
from segdist.ops.tf32 import tf32
from segdist.step import optim
from segdist.step.batch_norm import BatchStatistics
from segdist.step.exact import Exact
from segdist.step.loss import Criterion
from segdist.step.update import Step, determinism

ALONE = World(0, 1, torch.device("cpu"))
NAMES = ["a", "b", "c"]


def groups_of(void: list[float], m: int = 2, size: int = 16) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for g, share in enumerate(void):
        masks = torch.randint(0, 3, (m, size, size), dtype=torch.uint8, generator=generator)
        masks[torch.rand(masks.shape, generator=generator) < share] = 255
        images = torch.randint(0, 256, (m, 3, size, size), dtype=torch.uint8, generator=generator)
        batches.append(MicroBatch(g, images, masks, torch.eye(3, 4).repeat(m, 1, 1)))
    return batches


def train(num_groups: int, **fields: object) -> Train:
    return Train(num_steps=10, global_batch_size=2 * num_groups, micro_batch_size=2, **fields)  # type: ignore[arg-type]


def plain_model(norm: bool, dtype: torch.dtype = torch.float32) -> Segmenter:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.GELU(),
        nn.Conv2d(8, 3, 1),
    ]
    traits = Traits(
        IMAGENET_MEAN, IMAGENET_STD, align_corners=False, stride=1, multiple=1, least=1, encoder_prefix="net.0"
    )
    return Segmenter(nn.Sequential(*layers).to(dtype), lambda net, x: net(x.to(dtype)), traits, {})


PLAIN = Criterion(Loss(), [1, 1, 1])


def count(batches: list[MicroBatch], criterion: Criterion = PLAIN) -> torch.Tensor:
    return criterion.divisors(criterion.tally([b.masks for b in batches]))


def step_of(
    model: Segmenter, optimizer: torch.optim.Optimizer, cfg: Train, criterion: Criterion = PLAIN, **fields: Any
) -> Step:
    return Step(model.train(), optimizer, cfg, Optim(**fields), criterion, ALONE)


def build_optimizer(cfg: Optim, model: Segmenter) -> torch.optim.Optimizer:
    return optim.build(cfg, model, model.traits.encoder_prefix, model.traits.layers)


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 7.0)], ids=["plain", "weighted"])
@pytest.mark.parametrize("strategy", ["exact", "ddp"])
def test_unevenly_spread_void_weighs_every_valid_pixel_alike(strategy: str, weights: tuple[float, ...] | None) -> None:
    """Four groups, one wholly void, give the gradient of one (weighted) mean over all valid pixels of the batch."""
    batches = groups_of([0.0, 0.97, 0.5, 1.0])
    model = plain_model(norm=False, dtype=torch.float64)
    reference = plain_model(norm=False, dtype=torch.float64)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    criterion = Criterion(Loss(class_weights=weights), [1, 1, 1])
    step = step_of(model, sgd, train(4, strategy=strategy), criterion)
    mean, norm = step(0, batches, count(batches, criterion))
    images, masks = torch.cat([b.images for b in batches]), torch.cat([b.masks for b in batches])
    expected = F.cross_entropy(
        reference(to_input(images, IMAGENET_MEAN, IMAGENET_STD)),
        masks.long(),
        None if weights is None else torch.tensor(weights).double(),
        ignore_index=255,
    )
    expected.backward()
    assert mean.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [p.grad for p in reference.parameters()]
    assert norm.item() == pytest.approx(
        torch.cat([g.flatten() for g in gradients if g is not None]).norm().item(), rel=1e-9
    )
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        assert theirs.grad is not None
        assert torch.allclose(ours, theirs - theirs.grad, rtol=0, atol=1e-9)


def test_running_statistics_move_once_by_the_mean_over_groups() -> None:
    batches = groups_of([0.1, 0.5, 0.9])
    model = plain_model(norm=True)
    norm = model.net[1]
    norm.running_mean.fill_(0.3)
    rows = []
    for batch in batches:
        twin = plain_model(norm=True)
        twin.net[1].running_mean.fill_(0.3)
        twin.train()(to_input(batch.images, IMAGENET_MEAN, IMAGENET_STD))
        rows.append(twin.net[1].running_mean.double())
    step_of(model, torch.optim.SGD(model.parameters(), lr=0.1), train(3))(0, batches, count(batches))
    assert torch.equal(norm.running_mean, torch.stack(rows).mean(0).float())
    assert norm.num_batches_tracked == 1


def test_dropout_belongs_to_seed_step_and_group() -> None:
    cfg = Segformer(**{**SEGFORMER, "dropout": 0.5})  # type: ignore[arg-type]
    batches = groups_of([0.2, 0.2], size=32)

    def loss_of(step: int, groups: list[MicroBatch], seed: int = 0) -> float:
        torch.manual_seed(7)
        model = models.build(cfg, NAMES).train()
        torch.rand(groups[0].number + 3)  # the global generator may be anywhere
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        return step_of(model, optimizer, train(2, seed=seed))(step, groups, count(batches))[0].item()

    both = loss_of(3, batches)
    assert loss_of(3, batches) == both
    assert loss_of(3, batches[:1]) + loss_of(3, batches[1:]) == pytest.approx(both, rel=1e-12)
    assert loss_of(4, batches) != both
    assert loss_of(3, batches, seed=1) != both


def test_the_fixed_grid_makes_sums_independent_of_their_order() -> None:
    rng = np.random.default_rng(0)
    gradients = [torch.from_numpy(rng.normal(size=1000) * 2.0 ** rng.integers(-45, 1, 1000)).float() for _ in range(8)]
    sums = []
    for order in (range(8), reversed(range(8)), rng.permutation(8).tolist()):
        model: Any = nn.Linear(1000, 1, bias=False)
        nn.init.zeros_(model.weight)
        exact = Exact(model, model, torch.optim.SGD(model.parameters(), lr=1.0), None, ALONE)
        for i in order:
            with exact.micro_batch(False):
                exact.backward((model.weight * gradients[i]).sum())
        exact.update()
        sums.append(-model.weight.detach())
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])
    assert torch.allclose(sums[0][0], torch.stack(gradients).double().sum(0).float(), rtol=1e-6, atol=2**-36)


def test_channels_last_weights_get_the_update_of_plain_ones() -> None:
    """torch's fused AdamW reads memory as it lies: a gradient in another format would be silently misapplied."""
    batches = groups_of([0.0, 0.5], size=32)
    results = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        model = models.build(Smp(encoder="resnet18"), NAMES).train()
        model.to(memory_format=memory_format)
        optimizer = build_optimizer(Optim(lr=1e-3), model)
        optimizer_step = step_of(model, optimizer, train(2))
        optimizer_step(0, batches, count(batches))
        results.append({k: v.clone() for k, v in model.state_dict().items()})
    moved = [(a - b).abs().mean().item() for a, b in zip(*(r.values() for r in results)) if a.is_floating_point()]
    assert max(moved) < 2e-4  # the forward passes differ by rounding; a misapplied gradient moves weights by up to 2 lr


def test_clipping_bounds_the_update() -> None:
    batches = groups_of([0.0])
    model = plain_model(norm=False)
    before = [p.detach().clone() for p in model.parameters()]
    step_of(model, torch.optim.SGD(model.parameters(), lr=1.0), train(1), clip_grad_norm=1e-3)(
        0, batches, count(batches)
    )
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters())])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_model_without_batchnorm_has_no_statistics_to_move() -> None:
    statistics = BatchStatistics(plain_model(norm=False))
    statistics.begin()
    statistics.rewind()
    assert statistics.flat().numel() == statistics.size == 0
    statistics.finish(torch.zeros(3, 0))


def test_group_seeds_do_not_collide() -> None:
    seeds = {int(key(0, step, group, 4) >> np.uint64(1)) for step in range(300) for group in range(30)}
    assert len(seeds) == 9000


@pytest.mark.parametrize("tree", [SEGFORMER, UNET], ids=lambda t: t["name"])
def test_bf16_trains(tree: dict) -> None:
    cfg = (Segformer if tree["name"] == "segformer" else Smp)(**tree)
    model = models.build(cfg, NAMES).train()
    optimizer = build_optimizer(Optim(lr=3e-3), model)
    step = step_of(model, optimizer, train(1, precision="bf16"))
    batches = groups_of([0.1], size=32)
    losses = [step(0, batches, count(batches))[0].item() for _ in range(12)]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())


def tiny(cls: type = Segformer, tree: dict = SEGFORMER, seed: int = 0, **fields: Any) -> Segmenter:
    torch.manual_seed(seed)
    return models.build(cls(**{**tree, **fields}), NAMES).train()


def walk(model: Segmenter, num_steps: int, cfg: Train, start: int = 0, **fields: Any) -> tuple[Step, list[float]]:
    """Steps over two groups of random images; (the step, its losses)."""
    batches = groups_of([0.1, 0.6], size=32)
    built = build_optimizer(Optim(**fields), model)
    step = Step(model, built, cfg, Optim(**fields), PLAIN, ALONE, start)
    return step, [step(n, batches, count(batches))[0].item() for n in range(start, start + num_steps)]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("strategy", ["exact", "ddp"])
def test_a_frozen_encoder_keeps_weights_and_statistics_until_its_step(strategy: str, name: str) -> None:
    model = tiny(Smp, UNET, encoder="resnet18")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = groups_of([0.1, 0.6], size=32)
    fields: dict[str, Any] = {"name": name, "lr": 1e-3, "freeze_encoder_steps": 2}
    step = Step(
        model, build_optimizer(Optim(**fields), model), train(2, strategy=strategy), Optim(**fields), PLAIN, ALONE
    )
    for number in range(3):
        model.eval()  # as an evaluation does
        model.train()
        step(number, batches, count(batches))
        same = {k: torch.equal(v, before[k]) for k, v in model.state_dict().items()}
        encoder = [v for k, v in same.items() if k.startswith("net.encoder.")]
        assert all(encoder) if number < 2 else not any(v for k, v in same.items() if k.endswith("conv1.weight"))
        assert not same["net.segmentation_head.0.weight"]
        assert not same["net.decoder.blocks.0.conv1.1.running_mean"]
    assert not same["net.encoder.bn1.running_mean"]


def test_freezing_leaves_alone_what_takes_no_part() -> None:
    model = tiny(Smp, UNET, encoder="mobilenet_v2")
    idle = next(model.encoder().parameters())
    idle.requires_grad_(False)
    model.freeze()
    model.unfreeze()
    assert not idle.requires_grad
    assert all(p.requires_grad for p in list(model.encoder().parameters())[1:])


def test_the_average_is_that_of_the_formula_and_what_is_scored() -> None:
    model = plain_model(norm=True)
    expected = {k: v.double().clone() for k, v in model.state_dict().items()}
    batches = groups_of([0.1, 0.6])
    fields: dict[str, Any] = {"lr": 1e-2, "ema_decay": 0.2}
    step = step_of(model, build_optimizer(Optim(**fields), model), train(2), **fields)
    for number in range(4):
        step(number, batches, count(batches))
        decay = min(0.2, (1 + number) / (10 + number))
        expected = {k: decay * expected[k] + (1 - decay) * v for k, v in model.state_dict().items()}
    scored = step.eval_model()
    assert scored is not model and not scored.training
    for name, value in scored.state_dict().items():
        want = model.state_dict()[name].double() if "num_batches" in name else expected[name]
        assert torch.allclose(value.double(), want, rtol=1e-5, atol=1e-7), name
    taken = step.snapshot({}).copied()
    assert taken.ema is not None
    assert all(torch.equal(taken.ema[k], v) for k, v in scored.state_dict().items())


@pytest.mark.parametrize(("cls", "tree"), [(Segformer, SEGFORMER), (Smp, UNET)], ids=["segformer", "unet"])
def test_activations_computed_twice_give_the_same_bits(cls: type, tree: dict) -> None:
    """Weights, running statistics and losses, dropout and drop path included."""
    states = []
    for twice in (False, True):
        model = tiny(cls, tree)
        _, losses = walk(model, 2, train(2, activation_checkpointing=twice), lr=1e-3)
        states.append((losses, model.state_dict()))
    assert states[0][0] == states[1][0]
    for name, value in states[0][1].items():
        assert torch.equal(value, states[1][1][name]), name


@pytest.mark.parametrize("strategy", ["exact", "ddp"])
def test_out_of_memory_begins_the_step_again_with_the_same_result(
    strategy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smooth = tiny()
    walk(smooth, 2, train(2, strategy=strategy), lr=1e-3)
    rough = tiny()
    batches = groups_of([0.1, 0.6], size=32)
    step = Step(
        rough, build_optimizer(Optim(lr=1e-3), rough), train(2, strategy=strategy), Optim(lr=1e-3), PLAIN, ALONE
    )
    step(0, batches, count(batches))
    honest = Criterion.__call__
    calls = []

    def full_once(self: Criterion, *args: Any) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 2:  # the first group's gradients are there already
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, *args)

    monkeypatch.setattr(Criterion, "__call__", full_once)
    step(1, batches, count(batches))
    assert len(calls) == 4
    for name, value in smooth.state_dict().items():
        assert torch.equal(value, rough.state_dict()[name]), name
    assert "out of memory; from here on" in capsys.readouterr().err


def test_memory_that_ends_between_a_gradient_and_its_sum_doubles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth, rough = tiny(), tiny()
    walk(smooth, 1, train(2), lr=1e-3)
    honest = Exact._add_gradient
    calls: list[None] = []

    def full_once(part: torch.Tensor, parameter: torch.Tensor) -> None:
        calls.append(None)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        honest(part, parameter)

    monkeypatch.setattr(Exact, "_add_gradient", staticmethod(full_once))
    walk(rough, 1, train(2), lr=1e-3)
    for name, value in smooth.state_dict().items():
        assert torch.equal(value, rough.state_dict()[name]), name


def test_out_of_memory_that_recomputation_does_not_cure_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Criterion, *args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Criterion, "__call__", full)
    with pytest.raises(
        DeviceMemoryError, match=r"step 0: out of memory with train\.micro_batch_size=2.*train\.precision=bf16"
    ):
        walk(tiny(), 1, train(2))


def test_fp16_skips_an_overflow_and_remembers_its_scale() -> None:
    model = tiny(dropout=0.0, drop_path=0.0)
    batches = groups_of([0.1, 0.6], size=32)
    cfg = train(2, strategy="ddp", precision="fp16")
    step = Step(model, build_optimizer(Optim(lr=3e-3), model), cfg, Optim(lr=3e-3), PLAIN, ALONE)
    before = {k: v.clone() for k, v in model.named_parameters()}
    step.load(
        replace(step.snapshot({}).copied(), state={"scaler": {**step.snapshot({}).state["scaler"], "scale": 2.0**40}})
    )
    loss, norm = step(0, batches, count(batches))
    assert loss.isfinite() and norm == 0
    assert all(torch.equal(v, before[k]) for k, v in model.named_parameters())
    assert step.snapshot({}).state["scaler"]["scale"] == 2.0**39
    step.load(
        replace(step.snapshot({}).copied(), state={"scaler": {**step.snapshot({}).state["scaler"], "scale": 256.0}})
    )
    losses = [step(n, batches, count(batches))[0].item() for n in range(1, 13)]
    assert losses[-1] < losses[0]


def test_an_overflow_that_no_scale_cures_ends_in_an_infinite_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which stops the run: see train.check_finite."""
    model = tiny(dropout=0.0, drop_path=0.0)
    batches, cfg = groups_of([0.1], size=32), train(1, strategy="ddp", precision="fp16")
    step = Step(model, build_optimizer(Optim(), model), cfg, Optim(), PLAIN, ALONE)
    next(model.parameters()).register_hook(lambda grad: grad * torch.inf)
    norms = [step(n, batches, count(batches))[1].item() for n in range(20)]
    assert norms[0] == 0 and not math.isfinite(norms[-1])


def test_a_loss_scale_outlives_the_thaw_of_the_encoder() -> None:
    model = tiny(dropout=0.0, drop_path=0.0)
    batches, cfg = groups_of([0.1], size=32), train(1, strategy="ddp", precision="fp16")
    optim_cfg = Optim(freeze_encoder_steps=1)
    step = Step(model, build_optimizer(optim_cfg, model), cfg, optim_cfg, PLAIN, ALONE)
    step.load(
        replace(step.snapshot({}).copied(), state={"scaler": {**step.snapshot({}).state["scaler"], "scale": 256.0}})
    )
    for number in range(2):
        step(number, batches, count(batches))
    scaler = step.snapshot({}).state["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (256.0, 2)


def test_scores_are_never_rounded_to_tf32_and_training_leaves_no_trace() -> None:
    seen: list[tuple[str, str]] = []

    def look() -> tuple[str, str]:
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision

    before = look()
    model = plain_model(norm=False)
    model.register_forward_hook(lambda *a: seen.append(look()))
    batches = groups_of([0.1])
    step = step_of(model, torch.optim.SGD(model.parameters(), lr=0.1), train(1))
    step(0, batches, count(batches))
    infer(model.eval(), batches[0].images)
    assert seen == [("tf32", "tf32"), ("ieee", "ieee")]
    with pytest.raises(ZeroDivisionError), tf32(True):
        raise ZeroDivisionError
    assert look() == before


def test_threads_that_hold_tf32_back_in_turns_leave_torch_as_it_was() -> None:
    conv: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009
    before, entered, left = conv.fp32_precision, threading.Event(), threading.Event()

    def first() -> None:
        with tf32(False):
            entered.wait(10)
        left.set()

    thread = threading.Thread(target=first)
    thread.start()
    while conv.fp32_precision != "ieee":
        time.sleep(0.001)
    with tf32(False):
        entered.set()
        assert left.wait(10)
        assert conv.fp32_precision == "ieee"
    thread.join()
    assert conv.fp32_precision == before
    assert torch.backends.cudnn.allow_tf32 in (True, False)  # its kinds agree, or torch raises


def test_a_model_from_before_auxiliary_heads_is_rebuilt() -> None:
    for cls, fields in ((Segformer, SEGFORMER), (Smp, UNET)):
        arch = {k: v for k, v in tiny(cls, fields).arch.items() if k != "aux"}
        assert models.rebuild(arch).aux is None


def test_deterministic_kernels_are_asked_for_within_the_run_alone() -> None:
    for cfg, device, wanted in (
        (train(1), "cpu", False),
        (train(1, deterministic=True), "cpu", True),
        (train(1, strategy="exact"), "cuda", True),
        (train(1, strategy="ddp"), "cuda", False),
    ):
        with determinism(cfg, torch.device(device)):
            assert torch.are_deterministic_algorithms_enabled() == wanted
        assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_kernel_names_the_field() -> None:
    model = plain_model(norm=False)
    places = torch.tensor([0, 0])
    model.net.append(nn.Identity()).register_forward_hook(
        lambda net, args, out: torch.Tensor.put_(out, places, out.flatten()[:2]) if places.numel() else out
    )
    cfg = train(1, deterministic=True)
    step = step_of(model, torch.optim.SGD(model.parameters(), lr=0.1), cfg)
    with (
        determinism(cfg, ALONE.device),
        pytest.raises(
            ConfigError, match=r"^put_ does not have a deterministic implementation\. Set train\.deterministic"
        ),
    ):
        step(0, groups_of([0.1]), count(groups_of([0.1])))


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_model_draws_the_dropout_of_a_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    curves = []
    for compiled in (False, True):
        model = plain_model(norm=True)
        model.net.insert(3, nn.Dropout(0.5))
        curves.append(walk(model, 3, train(2, compile=compiled), lr=1e-2)[1])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


@pytest.mark.parametrize(("cls", "tree"), [(Segformer, SEGFORMER), (Smp, UNET)], ids=["segformer", "unet"])
def test_an_auxiliary_head_adds_its_loss_and_leaves_the_scores_alone(cls: type, tree: dict) -> None:
    model = tiny(cls, tree, aux_head=True)
    batch = groups_of([0.2], size=48)[0]
    outputs = model(to_input(batch.images, IMAGENET_MEAN, IMAGENET_STD))
    main, aux = outputs
    assert aux.shape[1] == 3 and aux.shape[2] == 3  # a sixteenth of the image
    divisors = torch.ones(2, dtype=torch.float64)
    parts = [PLAIN(o, batch.masks, divisors, model.traits.align_corners).item() for o in (main, aux)]
    whole = PLAIN(outputs, batch.masks, divisors, model.traits.align_corners).item()
    assert whole == pytest.approx(parts[0] + 0.4 * parts[1])
    model.eval()
    logits = model(to_input(batch.images, IMAGENET_MEAN, IMAGENET_STD))
    assert logits.shape == main.shape
    twin = models.rebuild(model.arch).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(to_input(batch.images, IMAGENET_MEAN, IMAGENET_STD)), logits)
