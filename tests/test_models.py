from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SEGFORMER, UNET

from segdist import models
from segdist.config import Optim, Segformer, Smp
from segdist.errors import UserError
from segdist.models.segmenter import Segmenter, infer
from segdist.step import optim

NAMES = ["sky", "road", "car"]


def build(tree: dict, names: list[str] = NAMES) -> Segmenter:
    cfg = (Segformer if tree["name"] == "segformer" else Smp)(**tree)
    return models.build(cfg, names)


@pytest.mark.parametrize("tree", [SEGFORMER, UNET], ids=lambda t: t["name"])
@pytest.mark.parametrize("size", [(32, 64), (33, 47), (7, 90)])
def test_any_image_size_gives_logits_that_cover_it(tree: dict, size: tuple[int, int]) -> None:
    model = build(tree).eval()
    logits = model(torch.randn(1, 3, *size))
    stride = 4 if tree["name"] == "segformer" else 1
    assert logits.shape == (1, 3, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("tree", [SEGFORMER, UNET], ids=lambda t: t["name"])
def test_a_model_is_rebuilt_from_what_a_checkpoint_remembers(tree: dict) -> None:
    import json

    model = build(tree).eval()
    other = models.rebuild(json.loads(json.dumps(model.arch))).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), other(x))
    assert other.traits == model.traits


@pytest.mark.parametrize("tree", [SEGFORMER, UNET], ids=lambda t: t["name"])
def test_encoder_and_head_get_their_own_learning_rates_and_norms_no_decay(tree: dict) -> None:
    model = build(tree)
    optimizer = optim.build(
        Optim(lr=1.0, head_lr_factor=10.0, weight_decay=0.5), model, model.traits.encoder_prefix, ()
    )
    optim.set_lr(optimizer, 0.1)
    seen = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            seen[p] = group["lr"], group["weight_decay"]
    for name, p in model.named_parameters():
        encoder = name.startswith(("net.segformer.", "net.encoder."))
        assert seen.pop(p) == (pytest.approx(0.1 if encoder else 1.0), 0.5 if p.ndim > 1 else 0.0), name
    assert not seen


def test_the_learning_rate_warms_up_and_falls() -> None:
    cfg = Optim(lr=2.0, warmup_steps=3, poly_power=1.0)
    rates = [optim.lr_at(cfg, s, 11) for s in range(11)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[3:] == pytest.approx([2.0 * (1 - i / 8) for i in range(8)])


def test_segformer_takes_weights_of_another_class_count_and_says_what_is_new(tmp_path: Path) -> None:
    donor = build({**SEGFORMER, "size": "tiny"}, ["a", "b", "c", "d", "e"])
    donor.net.save_pretrained(tmp_path / "donor")
    model = build({"name": "segformer", "weights": str(tmp_path / "donor")})
    ours, theirs = model.state_dict(), donor.state_dict()
    same = {k for k in ours if ours[k].shape == theirs[k].shape and torch.equal(ours[k], theirs[k])}
    assert set(ours) - same == {"net.decode_head.classifier.weight", "net.decode_head.classifier.bias"}
    assert any(note.startswith("head replaced: 5 -> 3 classes") for note in model.notes)
    assert model.tensors["new"] == ["decode_head.classifier.bias", "decode_head.classifier.weight"]
    assert model.net.config.id2label == dict(enumerate(NAMES))


def test_a_segformer_encoder_alone_may_be_the_start_as_with_mit_b0(tmp_path: Path) -> None:
    from transformers import SegformerForImageClassification

    donor = build({**SEGFORMER, "size": "tiny"})
    classifier = SegformerForImageClassification(donor.net.config)
    classifier.save_pretrained(tmp_path / "mit")
    model = build({"name": "segformer", "weights": str(tmp_path / "mit")})
    for name, value in classifier.segformer.state_dict().items():
        assert torch.equal(model.net.segformer.state_dict()[name], value), name
    assert "head new, for 3 classes: the weights have none" in model.notes
    assert "decode_head.linear_fuse.weight" in model.tensors["new"]
    assert model.tensors["unused"] == ["classifier.bias", "classifier.weight"]


def test_unet_takes_weights_of_another_class_count_and_says_what_is_new(tmp_path: Path) -> None:
    tree = {**UNET, "encoder": "resnet18"}
    donor = build(tree, ["a", "b", "c", "d", "e"])
    donor.net.to(memory_format=torch.contiguous_format).save_pretrained(str(tmp_path / "donor"))
    model = build({**tree, "weights": str(tmp_path / "donor")})
    assert torch.equal(model.net.encoder.conv1.weight, donor.net.encoder.conv1.weight)
    assert any(note.startswith("head replaced: 5 -> 3 classes") for note in model.notes)
    assert model.tensors["new"] == ["segmentation_head.0.bias", "segmentation_head.0.weight"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "segformer", "weights": "/nowhere/at-all"}, "model.weights '/nowhere/at-all' could not be loaded"),
        ({"name": "segformer", "weights": "nobody/no-such-model"}, "could not be loaded"),
        ({"name": "unet", "encoder": "resnet35"}, "model.encoder 'resnet35' is unknown. Did you mean resnet"),
        ({"name": "unet", "weights": "/nowhere"}, "there is no such folder"),
        ({"name": "unet", "encoder": "resnet18", "weights": "imagenet"}, "model.weights imagenet"),
    ],
)
def test_weights_that_are_not_to_be_had_are_explained(tree: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        build(tree)
    assert message in str(error.value)


def test_unet_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    build({**UNET, "encoder": "resnet18"}).net.to(memory_format=torch.contiguous_format).save_pretrained(
        str(tmp_path / "donor")
    )
    with pytest.raises(UserError, match=r"Set model\.encoder=resnet18"):
        build({"name": "unet", "encoder": "resnet34", "weights": str(tmp_path / "donor")})


def test_inference_takes_uint8_and_leaves_no_graph() -> None:
    model = build(SEGFORMER).eval()
    logits = infer(model, torch.zeros(2, 3, 40, 36, dtype=torch.uint8))
    assert logits.shape[:2] == (2, 3)
    assert not logits.requires_grad
