"""Parameter groups and schedules, against the formulas of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import SEGFORMER
from torch import nn

from segdist import models
from segdist.config import Optim, Segformer, Smp
from segdist.models.segmenter import Segmenter
from segdist.step import optim

NAMES = ["a", "b", "c"]


def groups_of(cfg: Optim, model: Segmenter) -> dict[str, dict[str, float]]:
    """Name of each parameter -> its group's learning rate factor and decay."""
    names = {p: name for name, p in model.named_parameters()}
    optimizer = optim.build(cfg, model, model.traits.encoder_prefix, model.traits.layers)
    return {names[p]: group for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant", "step"])
def test_schedules_follow_their_formulas(schedule: str) -> None:
    cfg = Optim(lr=2.0, schedule=schedule, poly_power=0.9, min_lr_factor=0.1, warmup_steps=4, step_at=(0.5, 0.75))  # type: ignore[arg-type]
    rates = [optim.lr_at(cfg, step, 104) for step in range(104)]
    assert rates[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    for step in (4, 29, 54, 78, 103):
        done = (step - 4) / 100
        expected = {
            "poly": 2.0 * (0.1 + 0.9 * (1 - done) ** 0.9),
            "cosine": 2.0 * (0.1 + 0.45 * (1 + math.cos(math.pi * done))),
            "constant": 2.0,
            "step": 2.0 * (1.0 if step < 52 else 0.1 if step < 78 else 0.01),
        }
        assert rates[step] == pytest.approx(expected[schedule]), step


def test_norms_biases_and_position_embeddings_do_not_decay() -> None:
    model = models.build(Segformer(**SEGFORMER), NAMES)  # type: ignore[arg-type]
    model.net.register_parameter("position_embeddings", nn.Parameter(torch.zeros(1, 4, 8)))
    for name, group in groups_of(Optim(weight_decay=0.5), model).items():
        spared = name.endswith("bias") or "norm" in name or "position_embeddings" in name
        assert group["weight_decay"] == (0.0 if spared else 0.5), name


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0", "efficientnet-b0"])
def test_layers_learn_the_slower_the_nearer_they_are_to_the_input(encoder: str) -> None:
    model = models.build(Smp(encoder=encoder), NAMES)
    factors = {n: g["lr_factor"] for n, g in groups_of(Optim(layer_decay=0.5, head_lr_factor=3.0), model).items()}
    depth = len(model.traits.layers)
    for number, prefixes in enumerate(model.traits.layers):
        inside = {factor for name, factor in factors.items() if name.startswith(prefixes)}
        assert inside == {0.5 ** (depth - 1 - number)}, prefixes
    assert {factor for name, factor in factors.items() if not name.startswith("net.encoder.")} == {3.0}
    assert all(any(n.startswith(p) for p in model.traits.layers) for n in factors if n.startswith("net.encoder."))
    first, last = model.traits.layers[0][0], model.traits.layers[-1][0]
    assert {"resnet18": ("conv1.", "layer4.1."), "mit_b0": ("patch_embed1.", "block4.1.")}.get(
        encoder, ("_conv_stem.", "_blocks.15.")
    ) == (first.removeprefix("net.encoder."), last.removeprefix("net.encoder."))


def test_segformers_layers_cover_its_encoder() -> None:
    model = models.build(Segformer(size="b1"), NAMES)
    held = [sum(name.startswith(layer) for layer in model.traits.layers) for name, _ in model.named_parameters()]
    encoder = [name.startswith(model.traits.encoder_prefix) for name, _ in model.named_parameters()]
    assert held == [int(inside) for inside in encoder]
    assert len(model.traits.layers) == 8


@pytest.mark.parametrize("fields", [{"name": "adamw"}, {"name": "adam"}, {"name": "sgd", "nesterov": True}])
def test_optimizers_do_what_torch_does_and_their_states_come_back(fields: dict) -> None:
    """Three steps, a hand-over by name, two more: the weights of a plain torch optimizer's five steps."""
    cfg = Optim(lr=0.1, weight_decay=0.2, **fields)

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 2, bias=False))

    def walk(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            model(torch.linspace(-1, 1, 4) + 0.1 * step).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    plain = net()
    kinds = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2, momentum=0.9, nesterov=True),
    }
    walk(plain, kinds[fields["name"]](plain.parameters()), range(5))
    first, second = net(), net()
    before = optim.build(cfg, first, "", ())
    walk(first, before, range(3))
    after = optim.build(cfg, second, "0.", ())
    second.load_state_dict(first.state_dict())
    optim.load_tensors(second, after, {k: v.clone() for k, v in optim.tensors(first, before).items()})
    walk(second, after, range(3, 5))
    for ours, theirs in zip(second.parameters(), plain.parameters()):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)
