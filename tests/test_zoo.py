"""Every architecture goes the whole road: steps, scores, commit, restore, export, and its own library reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import transformers
import yaml
from PIL import Image
from pydantic import TypeAdapter
from zoo import EVERY, SMP, ZOO

from segdist import config, models
from segdist.config import NEEDS_TWO_IMAGES, Config
from segdist.config.models import MODELS, UNSUPPORTED
from segdist.distributed import World
from segdist.errors import ConfigError, UserError
from segdist.models.catalogue import entries
from segdist.models.segmenter import Segmenter, infer
from segdist.publish.export import export
from segdist.runs import checkpoints, snapshot
from segdist.runs.restore import load_trained
from segdist.train.loop import fit

Make = Callable[..., Config]
ALONE = World(0, 1, torch.device("cpu"))
NAMES = ["a", "b", "c"]


def built(name: str, **fields: Any) -> Segmenter:
    torch.manual_seed(0)
    return models.build(TypeAdapter(config.Model).validate_python({**ZOO[name], **fields}), NAMES)


@pytest.mark.parametrize("name", EVERY)
def test_a_run_learns_commits_comes_back_and_is_exported(name: str, make_config: Make, tmp_path: Path) -> None:
    """The export, in the hands of its own library alone, gives the same logits for an image that needs no padding."""
    cfg = make_config(model=ZOO[name], optim={"layer_decay": 0.9}, train={"num_steps": 4}, eval={"every_steps": 2})
    wishes = iter([None, None, "stop"])  # steps come after an evaluation, too
    fit(cfg, ALONE, notice=lambda: next(wishes, None))  # type: ignore[arg-type, return-value]
    assert fit(cfg, ALONE)["state"] == "SUCCEEDED"
    trained = load_trained(cfg.run.uri, ALONE.device)
    stored = snapshot.load_model(checkpoints.resolve(cfg.run.uri))
    assert all(torch.equal(value, stored[key]) for key, value in trained.model.state_dict().items())

    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    side = trained.model.traits.most or 128
    pixels = pixels[:side, :side]
    ours = infer(trained.model, torch.from_numpy(pixels).permute(2, 0, 1)[None])
    layout = export(trained, str(tmp_path / "export"), verify=name in ("dpt", "pan", "mobilevit"))["layout"]
    about = json.loads((tmp_path / "export" / "segdist.json").read_text())
    assert about["sides"] in (tmp_path / "export" / "README.md").read_text()
    assert about["classes"] and about["metrics"]["miou"] is not None
    if name in SMP:
        assert layout == "segmentation_models_pytorch"
        net = smp.from_pretrained(str(tmp_path / "export")).eval()
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
        theirs = net((x - mean) / std)
    else:
        assert layout == "transformers"
        net = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "export").eval()
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "export")
        theirs = net(**processor(Image.fromarray(pixels), return_tensors="pt")).logits
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() <= 1e-4 * ours.abs().max()


@pytest.mark.parametrize("name", EVERY)
def test_an_image_of_any_size_gets_logits_of_its_own(name: str) -> None:
    model = built(name).eval()
    most = model.traits.most or 999
    for size in ((33, 47), (64, 64), (48, 64), (130, 70)):
        if max(size) > most:
            with pytest.raises(ConfigError, match=rf"takes only {most}x{most} px\. Set data\.crop_size"):
                model(torch.zeros(1, 3, *size))
            continue
        logits = model(torch.zeros(1, 3, *size))
        assert tuple(logits.shape) == (1, 3, *(-(-side // model.traits.stride) for side in size))


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_takes_part_and_belongs_to_one_layer_or_the_head(name: str) -> None:
    for aux in (False, True) if name in SMP or built(name).arch["name"] in ("beit", "dpt", "upernet") else (False,):
        model = built(name, aux_head=aux).train()
        outputs = model(torch.zeros(2, 3, 64, 64))
        assert isinstance(outputs, tuple) == aux
        sum(out.square().sum() for out in (outputs if aux else (outputs,))).backward()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, key
                held = sum(key.startswith(layer) for layer in model.traits.layers)
                assert held == key.startswith(model.traits.encoder_prefix), key
        assert len(model.traits.layers) > 3


@pytest.mark.parametrize("name", EVERY)
def test_computing_activations_again_changes_no_bit(name: str) -> None:
    states = []
    for again in (False, True):
        model = built(name).train()
        if again:
            model.enable_activation_checkpointing()
        torch.manual_seed(1)
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        states.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_names_of_the_config_are_those_that_can_be_built_and_are_listed() -> None:
    known = {*models.smp.FAMILIES, *models.hf.FAMILIES, "segformer"}
    assert {entry.name for entry in entries()} == known == set(MODELS)
    assert {entry.name for entry in entries() if entry.needs_pairs} == NEEDS_TWO_IMAGES
    assert {tree["name"] for tree in ZOO.values()} == known
    assert known > NEEDS_TWO_IMAGES


@pytest.mark.long
def test_what_the_list_says_of_a_model_is_what_it_does() -> None:
    for entry in entries():
        tree = yaml.safe_load(entry.example)
        cfg = TypeAdapter(config.Model).validate_python(tree)
        assert (cfg.name, tree["name"]) == (entry.name, entry.name)
        assert all(1e6 < count < 1e9 for count in entry.parameters.values())
    listed = {entry.name: entry for entry in entries()}
    for name, tree in ZOO.items():
        traits, entry = built(name).traits, listed[tree["name"]]
        assert traits.align_corners == entry.align_corners
        assert traits.stride == entry.stride, name
    assert listed["segformer"].parameters["b0"] == sum(
        p.numel() for p in models.build(config.Segformer(size="b0"), list("abcdefghijklmnopqrs")).parameters()
    )
    note = listed["segformer"].weights[0]["licence"]["note"]
    assert note.startswith("research and evaluation only")


def test_every_segmenter_of_transformers_is_trained_or_refused_with_a_reason() -> None:
    from transformers.models.auto import modeling_auto as auto

    known = {name.replace("-", "_") for name in auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES}
    others = {
        name.replace("-", "_")
        for kind in ("UNIVERSAL", "INSTANCE", "IMAGE")
        for name in getattr(auto, f"MODEL_FOR_{kind}_SEGMENTATION_MAPPING_NAMES")
    }
    assert known - set(MODELS) == {"tipsv2_dpt"}
    assert not set(UNSUPPORTED) & set(MODELS)
    assert set(UNSUPPORTED) == others | {"tipsv2_dpt"}
    assert {near for _, names in UNSUPPORTED.values() for near in names} <= set(MODELS)


def test_every_architecture_of_smp_is_trained() -> None:
    found = {
        name
        for name, kind in vars(smp).items()
        if isinstance(kind, type) and issubclass(kind, smp.base.SegmentationModel)
    }
    assert {family.kind for family in models.smp.FAMILIES.values()} == found


@pytest.mark.parametrize("name", ["mask2former", "Mask2Former", "eomt-dinov3", "tipsv2_dpt", "detr"])
def test_an_architecture_that_people_ask_for_is_refused_with_its_reason(name: str, make_config: Make) -> None:
    with pytest.raises(
        ConfigError, match=rf"`model\.name`: {name} is not supported, because .*\. Use (upernet|dpt) or "
    ):
        make_config(model={"name": name})


@pytest.mark.parametrize("name", [p for p in EVERY if ZOO[p.values[0]]["name"] not in NEEDS_TWO_IMAGES])
def test_what_does_not_need_pairs_trains_on_single_images(name: str) -> None:
    model = built(name).train()
    model(torch.randn(1, 3, 64, 64)).square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("name", [n for n in ZOO if ZOO[n]["name"] in NEEDS_TWO_IMAGES])
def test_what_needs_pairs_says_so_before_the_first_step(name: str, make_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"Set train\.micro_batch_size=2 or more"):
        make_config(model=ZOO[name], train={"micro_batch_size": 1})
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        built(name).train()(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "unetplusplus", "encoder": "mit_b0"}, "cannot be used in a unetplusplus"),
        (
            {"name": "unet", "options": {"decoder_chanels": [8]}},
            "decoder_chanels: unet has no such option. .*decoder_channels",
        ),
        ({"name": "beit", "options": {"hidden_size": 30, "num_attention_heads": 7}}, "cannot build a beit"),
        ({"name": "beit", "options": {"hiden_size": 32}}, "hiden_size: beit has no such field. See BeitConfig"),
        ({"name": "mobilevit", "aux_head": True}, "mobilevit has no auxiliary head"),
    ],
)
def test_what_cannot_be_built_is_named(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.build(TypeAdapter(config.Model).validate_python(tree), NAMES)


def test_a_model_of_one_size_is_refused_larger_validation_images(make_config: Make) -> None:
    tree = {**ZOO["data2vec_vision"], "options": {**ZOO["data2vec_vision"]["options"], "image_size": 32}}
    with pytest.raises(ConfigError, match=r"an image of 32x48 px does not fit a model that takes only 32x32 px"):
        fit(make_config(model=tree, data={"crop_size": [32, 32]}), ALONE)
    sliding = make_config(
        model=tree, data={"crop_size": [32, 32]}, eval={"mode": "sliding", "every_steps": 2}, train={"num_steps": 2}
    )
    assert fit(sliding, ALONE)["state"] == "SUCCEEDED"
