from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from segdist import config
from segdist.config.reading import parse_yaml
from segdist.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "sweeps")
MINIMAL = {"run": {"uri": "r"}, "data": {"uri": "d"}, "model": {"name": "unet"}, "train": {"num_steps": 10}}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_config_loads(path: Path) -> None:
    config.load(path)


def test_what_is_shown_loads_again_as_the_same_config(tmp_path: Path) -> None:
    cfg = config.load(CONFIGS[0], ["train.num_steps=777", "data.image_size=[10, 20]"])
    assert config.load(written(tmp_path, config.explain(cfg))) == cfg


def test_every_field_has_help_and_is_read_somewhere() -> None:
    read = {
        node.attr
        for path in (ROOT / "segdist").rglob("*.py")
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    for model in ({"name": "unet"}, {"name": "segformer", "size": "b0"}):
        for key, _, field in config.fields(config.from_tree({**MINIMAL, "model": model}, "x")):
            assert field.description, key
            name = key.rsplit(".", 1)[1]
            assert name in read or key == "model.name", f"{key} is never read"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("optim: {learning_rate: 1}", "unknown key `optim.learning_rate`; the nearest valid key is `optim.lr`"),
        ("train: {num_step: 1}", "unknown key `train.num_step`; the nearest valid key is `train.num_steps`"),
        (
            "model: {name: unet, size: b0}",
            "`model.size` is not a field of this model.name. Remove it, or set model.name to one of segformer",
        ),
        ("optimizer: {lr: 1}", "unknown key `optimizer`; the nearest valid key is `optim`"),
        ("data: {uri: d, num_workers: 3}", "unknown key `data.num_workers`"),
        ("train: {num_steps: '10'}", '`train.num_steps`: Input should be a valid integer; it is "10"'),
        ("train: {num_steps: 10, global_batch_size: 10, micro_batch_size: 4}", "10 is not a multiple of"),
        ("optim: {warmup_steps: 10}", "optim.warmup_steps 10 must be below train.num_steps 10"),
        ("model: {name: resnet}", "`model.name` must be one of segformer, unet, "),
        ("model: {name: segformer}", "set either model.size"),
        ("train: {}", "`train.num_steps` is missing"),
        (
            "train: {num_steps: 9, strategy: exact, precision: fp16}",
            "Set train.precision=bf16 or fp32, or train.strategy=ddp",
        ),
        ("train: {num_steps: 9, strategy: deepspeed, precision: fp16}", "or train.strategy=ddp for fp16"),
        ("train: {num_steps: 9, zero_offload: true}", "train.zero_offload needs train.strategy=deepspeed"),
        ("train: {num_steps: 9, strategy: deepspeed, compile: true}", "train.compile is not tested"),
        (
            "{train: {num_steps: 9, strategy: deepspeed}, optim: {freeze_encoder_steps: 3}}",
            "deepspeed cannot unfreeze the encoder during a run. Set train.strategy=ddp",
        ),
        (
            "{train: {num_steps: 9, strategy: deepspeed, zero_stage: 3}, optim: {ema_decay: 0.9}}",
            "Set train.zero_stage=2, or train.strategy=ddp",
        ),
        ("optim: {freeze_encoder_steps: 10}", "optim.freeze_encoder_steps 10 must be below train.num_steps 10"),
        ("optim: {nesterov: true}", "optim.nesterov needs optim.name=sgd"),
        ("optim: {step_at: [0.9, 0.6]}", "optim.step_at [0.9, 0.6] must increase"),
        ("loss: {class_weights: [0, 0]}", "must not be negative, nor all 0"),
        (
            "loss: {class_weights: median}",
            "loss.class_weights 'median': give a list of numbers, one for each class, or enet",
        ),
        (
            "loss: {cross_entropy: 0, dice: 1, class_weights: enet}",
            "no effect without loss.cross_entropy or loss.focal or loss.ohem",
        ),
        (
            "loss: {cross_entropy: 0, dice: 1, label_smoothing: 0.1}",
            "label_smoothing has no effect without loss.cross_entropy",
        ),
        ("loss: {ohem_threshold: 0.5}", "loss.ohem_threshold has no effect without loss.ohem. Remove it"),
        ("loss: {aux_weight: 1}", "loss.aux_weight has no effect without model.aux_head=true"),
        (
            "{loss: {aux_weight: 0}, model: {name: segformer, size: tiny, aux_head: true}}",
            "model.aux_head is not trained with loss.aux_weight=0",
        ),
        (
            "optim: {step_at: [6, 9]}",
            "optim.step_at [6, 9]: give fractions of the run, such as [0.6, 0.9], not steps",
        ),
        ("train: {num_steps: 9, zero_stage: 3}", "train.zero_stage=3 needs train.strategy=deepspeed"),
        (
            "train: {num_steps: 9, global_batch_size: 8, micro_batch_size: 3}",
            "Set micro_batch_size to one of 1, 2, 4, 8, or change global_batch_size",
        ),
        ("loss: {cross_entropy: 0}", "all terms have weight 0"),
        ("loss: {class_weights: [1, -1]}", "must not be negative"),
        ("data: {uri: d, scale_range: [2, 1]}", "data.scale_range [2.0, 1.0] must be [min, max]"),
    ],
)
def test_a_mistake_names_file_key_and_remedy(tmp_path: Path, extra: str, message: str) -> None:
    path = written(tmp_path, yaml.safe_dump({**MINIMAL, **yaml.safe_load(extra)}))
    with pytest.raises(ConfigError) as error:
        config.load(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump(MINIMAL) + "optim: {lr: 6e-5}\n")
    assert config.load(path).optim.lr == 6e-5
    assert config.load(path, ["optim.lr=2E-4"]).optim.lr == 2e-4


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump(MINIMAL) + "optim: {lr: 1, lr: 2}\n")
    with pytest.raises(ConfigError, match="duplicate key 'lr'"):
        config.load(path)


def test_a_merged_mapping_may_be_overridden_but_holds_no_key_twice() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}") == {
        "a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}
    }  # fmt: skip
    with pytest.raises(yaml.YAMLError, match="duplicate key 'x'"):
        parse_yaml("a: &a {y: 2}\nb: {<<: *a, x: 3, x: 4}")


@pytest.mark.parametrize("override", ["train.num_steps", "=3", "train.num_steps.x=3", "data.crop_size=[1"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        config.load(written(tmp_path, yaml.safe_dump(MINIMAL)), [override])


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.from_tree(MINIMAL, "x").train.seed = 1  # type: ignore[misc]


def test_places_are_free_and_recipes_are_identity() -> None:
    keys = set(config.identity_of(config.from_tree(MINIMAL, "x")))
    assert {"optim.lr", "train.seed", "train.micro_batch_size", "model.encoder", "data.crop_size"} <= keys
    assert not {"run.uri", "data.uri", "io.loader_threads", "eval.every_steps", "train.strategy"} & keys


def test_a_missing_or_unreadable_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read"):
        config.load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="invalid YAML"):
        config.load(written(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match="mapping of sections"):
        config.load(written(tmp_path, "- 1"))


def test_a_removed_key_loads_with_its_old_default_and_is_named_otherwise() -> None:
    old = {**MINIMAL, "data": {"uri": "d", "lanes_per_slot": None}}
    other = {**MINIMAL, "data": {"uri": "d", "lanes_per_slot": 4}}
    assert config.from_tree(old, "x") == config.from_tree(other, "x", stored=True) == config.from_tree(MINIMAL, "x")
    with pytest.raises(ConfigError, match=r"x: `data.lanes_per_slot` was removed.* It is 4, .* Remove the key"):
        config.from_tree(other, "x")
