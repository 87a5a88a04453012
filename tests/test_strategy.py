"""One update: the formula against autograd over the whole batch, and what belongs to a group alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SEGFORMER, UNET
from torch import nn

from segdist import models, optim
from segdist.config import Loss, Optim, Segformer, Train, Unet
from segdist.data.order import key
from segdist.data.stream import MicroBatch
from segdist.loss import Criterion
from segdist.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Segmenter, Traits
from segdist.ops.pixels import to_input
from segdist.strategy import BatchStatistics, Exact, Step
from segdist.world import World

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


def divisors(batches: list[MicroBatch], criterion: Criterion = PLAIN) -> torch.Tensor:
    return criterion.divisors(criterion.tally([b.masks for b in batches]))


@pytest.mark.parametrize("weights", [None, (0.25, 1.0, 7.0)], ids=["plain", "weighted"])
@pytest.mark.parametrize("strategy", ["exact", "ddp"])
def test_unevenly_spread_void_weighs_every_valid_pixel_alike(strategy: str, weights: tuple[float, ...] | None) -> None:
    """Four groups, one wholly void, give the gradient of one (weighted) mean over all valid pixels of the batch."""
    batches = groups_of([0.0, 0.97, 0.5, 1.0])
    model = plain_model(norm=False, dtype=torch.float64)
    reference = plain_model(norm=False, dtype=torch.float64)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    criterion = Criterion(Loss(class_weights=weights), [1, 1, 1])
    step = Step(model, sgd, train(4, strategy=strategy), None, criterion, ALONE)
    mean, norm = step(0, batches, divisors(batches, criterion))
    images, masks = torch.cat([b.images for b in batches]), torch.cat([b.masks for b in batches])
    expected = F.cross_entropy(
        reference(to_input(images, IMAGENET_MEAN, IMAGENET_STD)),
        masks.long(),
        weights if weights is None else torch.tensor(weights, dtype=torch.float64),
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
    Step(model, torch.optim.SGD(model.parameters(), lr=0.1), train(3), None, PLAIN, ALONE)(
        0, batches, divisors(batches)
    )
    assert torch.equal(norm.running_mean, torch.stack(rows).mean(0).float())
    assert norm.num_batches_tracked == 1


def test_dropout_belongs_to_seed_step_and_group() -> None:
    cfg = Segformer(**{**SEGFORMER, "dropout": 0.5})  # type: ignore[arg-type]
    batches = groups_of([0.2, 0.2], size=32)

    def loss_of(step: int, groups: list[MicroBatch], seed: int = 0) -> float:
        torch.manual_seed(7)
        model = models.build(cfg, NAMES).train()
        torch.rand(groups[0].group + 3)  # the global generator may be anywhere
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        return Step(model, optimizer, train(2, seed=seed), None, PLAIN, ALONE)(step, groups, divisors(batches))[
            0
        ].item()

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
        model = nn.Linear(1000, 1, bias=False)
        exact = Exact(model, ALONE)
        for i in order:
            (model.weight * gradients[i]).sum().backward()
        exact.reduce()
        assert model.weight.grad is not None
        sums.append(model.weight.grad.clone())
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])
    assert torch.allclose(sums[0][0], torch.stack(gradients).double().sum(0).float(), rtol=1e-6, atol=2**-36)


def test_channels_last_weights_get_the_update_of_plain_ones() -> None:
    """torch's fused AdamW reads memory as it lies: a gradient in another format would be silently misapplied."""
    batches = groups_of([0.0, 0.5], size=32)
    results = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        model = models.build(Unet(encoder="resnet18"), NAMES).train()
        model.to(memory_format=memory_format)
        optimizer = optim.build(Optim(lr=1e-3), model, model.traits.encoder_prefix)
        optimizer_step = Step(model, optimizer, train(2), None, PLAIN, ALONE)
        optimizer_step(0, batches, divisors(batches))
        results.append({k: v.clone() for k, v in model.state_dict().items()})
    moved = [(a - b).abs().mean().item() for a, b in zip(*(r.values() for r in results)) if a.is_floating_point()]
    assert max(moved) < 2e-4  # the forward passes differ by rounding; a misapplied gradient moves weights by up to 2 lr


def test_clipping_bounds_the_update() -> None:
    batches = groups_of([0.0])
    model = plain_model(norm=False)
    before = [p.detach().clone() for p in model.parameters()]
    Step(model, torch.optim.SGD(model.parameters(), lr=1.0), train(1), 1e-3, PLAIN, ALONE)(
        0, batches, divisors(batches)
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
    cfg = (Segformer if tree["name"] == "segformer" else Unet)(**tree)
    model = models.build(cfg, NAMES).train()
    optimizer = optim.build(Optim(lr=3e-3), model, model.traits.encoder_prefix)
    step = Step(model, optimizer, train(1, precision="bf16"), None, PLAIN, ALONE)
    batches = groups_of([0.1], size=32)
    losses = [step(0, batches, divisors(batches))[0].item() for _ in range(12)]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())
