"""Initial weights from everywhere: what is read, what is refused, what becomes of the head, and whose licence they bear."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SEGFORMER, UNET
from fault_proxy import Fault, spoiling
from hub_server import COMMIT, serving
from pydantic import TypeAdapter
from safetensors.torch import load_file
from test_push import Site
from zoo import SMP, ZOO

from segdist import config, models, storage
from segdist.config import Config
from segdist.distributed import World
from segdist.errors import ConfigError, UnavailableError, UserError
from segdist.models import licences
from segdist.models.head import match
from segdist.models.segmenter import NO_ORIGIN, Segmenter
from segdist.publish.export import export
from segdist.runs import checkpoints, record, restore
from segdist.runs.restore import load_trained
from segdist.train.build import build_model
from segdist.train.loop import fit
from segdist.train.setup import inspect_run, open_run, resolve_auto

Make = Callable[..., Config]
ALONE = World(0, 1, torch.device("cpu"))
THEIRS = ["wall", "Traffic Light", "sky", "road", "car"]
OURS = ["sky", "traffic_light", "dog"]
NVIDIA = "---\nlicense: other\ntags:\n- vision\n---\n# SegFormer"


def build(tree: dict[str, Any], names: list[str] = OURS) -> Segmenter:
    return restore.build(TypeAdapter(config.Model).validate_python(tree), names)


def given(tree: dict[str, Any], weights: str, **more: Any) -> dict[str, Any]:
    """The same model with weights, whose own config says how large it is."""
    rest = {k: v for k, v in tree.items() if k != "size" and (k != "options" or "encoder" in tree)}
    return {**rest, "weights": weights, **more}


def saved(tree: dict[str, Any], folder: Path, names: list[str] = THEIRS, seed: int = 1) -> Segmenter:
    """A network as its library saves it, with segdist's own note of the classes where the library has none."""
    torch.manual_seed(seed)
    donor = models.build(TypeAdapter(config.Model).validate_python(tree), names)
    donor.net.to(memory_format=torch.contiguous_format).save_pretrained(str(folder))
    if "encoder" in tree:
        about = {"classes": [{"name": n} for n in names], "mean": donor.arch["mean"], "std": donor.arch["std"]}
        (folder / "segdist.json").write_text(json.dumps(about))
    return donor


def same(model: Segmenter, donor: Segmenter) -> set[str]:
    """Tensors that are alike in both."""
    ours, theirs = model.state_dict(), donor.state_dict()
    return {k for k in ours if k in theirs and ours[k].shape == theirs[k].shape and torch.equal(ours[k], theirs[k])}


@pytest.mark.parametrize("name", ZOO)
def test_the_classifiers_of_a_model_are_what_depends_on_the_number_of_classes(name: str) -> None:
    for aux in (
        (False, True) if name in SMP or ZOO[name]["name"] in ("beit", "dpt", "upernet", "segformer") else (False,)
    ):
        few, many = (build({**ZOO[name], "aux_head": aux}, names) for names in (OURS, THEIRS))
        a, b = few.state_dict(), many.state_dict()
        changed = {k for k in a if a[k].shape != b[k].shape}
        parts = {f"{head}.{part}" for head in few.classifiers for part in ("weight", "bias")}
        assert changed == parts & set(a)
        assert len(few.classifiers) == 1 + aux


@pytest.mark.parametrize("name", ZOO)
def test_rows_of_classes_with_the_same_name_stay_and_all_else_is_loaded(name: str, tmp_path: Path) -> None:
    donor = saved(ZOO[name], tmp_path)
    for transfer in ("none", "by_name"):
        model = build(given(ZOO[name], str(tmp_path), transfer_head=transfer))
        classifier = model.get_submodule(model.classifiers[0])
        heads = {f"{model.classifiers[0]}.{part}" for part, _ in classifier.named_parameters()}
        assert set(model.state_dict()) - same(model, donor) == heads
        old, new = donor.state_dict()[f"{model.classifiers[0]}.weight"], classifier.weight
        rows = {(k, j) for k in range(3) for j in range(5) if torch.equal(new[k], old[j])}
        assert rows == ({(0, 2), (1, 1)} if transfer == "by_name" else set())
        plain = sorted(key.removeprefix("net.") for key in heads)
        assert model.tensors["partly" if transfer == "by_name" else "new"] == plain
        kept = (
            ", 2 rows kept by name: sky, traffic_light; new: " if transfer == "by_name" else " (2 have the same names"
        )
        assert model.notes[1].startswith(f"head replaced: 5 -> 3 classes{kept}")
        if "encoder" not in ZOO[name]:
            assert model.net.config.id2label == dict(enumerate(OURS))
    assert models.rebuild(json.loads(json.dumps(model.arch))).load_state_dict(model.state_dict())


@pytest.mark.parametrize("tree", [SEGFORMER, UNET], ids=lambda t: t["name"])
def test_a_head_for_the_same_classes_is_kept_and_one_for_others_is_not(tree: dict[str, Any], tmp_path: Path) -> None:
    donor = saved(tree, tmp_path, OURS)
    assert same(build(given(tree, str(tmp_path))), donor) == set(donor.state_dict())
    other = build(given(tree, str(tmp_path)), ["dog", "sky", "road"])  # as many
    heads = {f"{other.classifiers[0]}.{part}" for part in ("weight", "bias")}
    assert f"{other.classifiers[0]}.weight" in set(donor.state_dict()) - same(other, donor) <= heads


def test_what_becomes_of_a_head_is_one_sentence() -> None:
    def said(theirs: list[str] | None, num: int | None, ours: list[str], by_name: bool = True) -> str:
        return match(theirs, num, ours, by_name, "weights X").summary

    assert (
        said(THEIRS, 5, ["a"] * 2)
        == "head replaced: 5 -> 2 classes, no row kept: it has wall, Traffic Light, sky, road, car; new: a, a"
    )
    doubled = said(["SKY", "sky ", "dog"], 3, OURS)
    assert doubled.startswith("head replaced: 3 -> 3 classes, 1 row kept by name: dog; new: sky")
    assert doubled.endswith("; not kept, because several classes have the name: sky")
    assert match(["dog"], 1, ["Dog", "dog"], True, "").rows == {}
    assert said(None, 3, OURS, by_name=False) == "head kept: it also has 3 classes, but no class names"
    assert said(None, None, OURS, by_name=False) == "head new, for 3 classes: the weights have none"
    with pytest.raises(UserError, match="by_name: weights X has no head"):
        said(None, None, OURS)
    with pytest.raises(UserError, match="weights X does not name its classes"):
        said(None, 5, OURS)


def test_names_that_are_numbers_alone_are_no_names(tmp_path: Path) -> None:
    saved(SEGFORMER, tmp_path, [f"LABEL_{i}" for i in range(5)])
    with pytest.raises(UserError, match="does not name its classes"):
        build(given(SEGFORMER, str(tmp_path), transfer_head="by_name"))


@pytest.mark.parametrize("tree", [SEGFORMER, UNET], ids=lambda t: t["name"])
def test_a_pytorch_bin_is_read_but_never_its_code(tree: dict[str, Any], tmp_path: Path) -> None:
    donor = saved(tree, tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(held, tmp_path / "pytorch_model.bin")
    assert len(same(build(given(tree, str(tmp_path))), donor)) == len(donor.state_dict()) - 2

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    for write in (torch.save, lambda tree, path: path.write_bytes(pickle.dumps(tree))):
        write({**held, "bomb": Bomb()}, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match=r"model.weights .* could not be loaded"):
            build(given(tree, str(tmp_path)))
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tree", [SEGFORMER, UNET], ids=lambda t: t["name"])
@pytest.mark.parametrize("name", ["tf_model.h5", "model.pt", "weights.ckpt"])
def test_weights_of_other_kinds_are_refused(tree: dict[str, Any], name: str, tmp_path: Path) -> None:
    saved(tree, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(UserError, match=rf"it holds .*{name}.*but neither model.safetensors nor pytorch_model.bin"):
        build(given(tree, str(tmp_path)))


def test_code_of_a_repository_is_not_run(tmp_path: Path) -> None:
    saved(SEGFORMER, tmp_path)
    library = json.loads((tmp_path / "config.json").read_text())
    library["auto_map"] = {"AutoModelForSemanticSegmentation": "own.Own", "AutoConfig": "own.OwnConfig"}
    (tmp_path / "config.json").write_text(json.dumps(library))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    build(given(SEGFORMER, str(tmp_path)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tree", [SEGFORMER, UNET], ids=lambda t: t["name"])
def test_weights_in_several_files_are_put_together(tree: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    donor = saved(tree, tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    shards = {f"model-{i}.safetensors": {k: held[k] for k in sorted(held)[i::2]} for i in (0, 1)}
    for name, part in shards.items():
        save_file(part, tmp_path / name, {"format": "pt"})
    place = {key: name for name, part in shards.items() for key in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": place}))
    assert len(same(build(given(tree, str(tmp_path))), donor)) == len(donor.state_dict()) - 2
    for outside in ("../elsewhere.safetensors", str(tmp_path.parent / "elsewhere.safetensors"), "..", ".", ""):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(held, outside)}))
        with pytest.raises(UserError, match="lies outside its folder"):
            build(given(tree, str(tmp_path)))
    for nothing in ({}, {"weight_map": [1]}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(nothing))
        with pytest.raises(UserError, match="has no weight_map"):
            build(given(tree, str(tmp_path)))


def test_what_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder, and it is not a Hub ID"):
        build(given(SEGFORMER, str(tmp_path / "a" / "b")))
    saved(UNET, tmp_path)
    with pytest.raises(UserError, match=r"model\.revision 'v1' pins a Hub ID"):
        build(given(UNET, str(tmp_path), revision="v1"))
    with pytest.raises(UserError, match="hold no encoder of a Segformer"):
        build(given(SEGFORMER, str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=r"could not be loaded: model\.safetensors"):
        build(given(UNET, str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="names no encoder_name"):
        build(given(UNET, str(tmp_path)))


@pytest.mark.parametrize(
    "tree", [SEGFORMER, pytest.param({**UNET, "aux_head": True}, marks=pytest.mark.long)], ids=["segformer", "unet"]
)
def test_runs_checkpoints_and_exports_are_weights_and_pass_on_where_theirs_began(
    tree: dict[str, Any], make_config: Make, tmp_path: Path
) -> None:
    """The first run begins from a folder whose card has a licence; the last one's checkpoint still names it."""
    saved(tree | {"aux_head": False}, tmp_path / "donor")
    (tmp_path / "donor" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    first = make_config(model=given(tree, str(tmp_path / "donor")), train={"num_steps": 2})
    fit(first, ALONE)
    origin = {
        "source": str(tmp_path / "donor"), "revision": None, "through": [],
        "licence": {"name": "cc-by-4.0", "link": None, "note": None, "id": None},
    }  # fmt: skip
    state = record.load(first.run.uri)
    assert state is not None and state["initial"] == origin
    best = checkpoints.resolve(first.run.uri)
    assert checkpoints.load_state(best)["initial"] == origin
    log = "".join(p.read_text() for p in (Path(first.run.uri) / "logs").iterdir())
    assert "head replaced: 5 -> " in log and "tensors loaded (" in log and "tensors unused (2): " in log

    model = load_trained(first.run.uri, ALONE.device)
    export(model, str(tmp_path / "export"))
    for weights, through in ((first.run.uri, best), (best, best), (str(tmp_path / "export"), str(tmp_path / "export"))):
        begun = build(given({**tree, "aux_head": False}, weights), model.labels.names)
        assert same(begun, model.model) == {k for k in model.model.state_dict() if k.startswith("net.")}
        told = origin if weights != str(tmp_path / "export") else origin | {"source": "donor"}  # which tells no places
        assert begun.origin == told | {"through": [through]}
        assert begun.notes[1] == f"head kept: it has the same {model.labels.num_classes} classes"
    second = make_config(
        run={"uri": str(tmp_path / "second")}, model=tree, train={"num_steps": 3, "init_from": first.run.uri}
    )
    wishes = iter(["stop"])
    fit(second, ALONE, notice=lambda: next(wishes, None))  # type: ignore[arg-type, return-value]
    fit(second, ALONE)  # what continues remembers it, too
    assert checkpoints.load_state(checkpoints.resolve(second.run.uri))["initial"] == origin | {"through": [best]}
    with pytest.raises(UserError, match=r"model\.revision applies to Hub IDs only"):
        build(given(tree, first.run.uri, revision="main"))


NARROW = {"decoder_channels": [64, 48, 32, 16, 16], "decoder_attention_type": "scse"}


def test_weights_of_smp_bring_the_options_that_their_network_was_made_with(make_config: Make, tmp_path: Path) -> None:
    tree = {**UNET, "options": NARROW}
    run = make_config(model=tree, train={"num_steps": 2}, eval={"num_samples": 1})
    fit(run, ALONE)
    model = load_trained(run.run.uri, ALONE.device)
    export(model, str(tmp_path / "export"))
    donor = saved(tree, tmp_path / "donor", OURS)
    for weights, theirs, names in (
        (run.run.uri, model.model, model.labels.names),
        (str(tmp_path / "export"), model.model, model.labels.names),
        (str(tmp_path / "donor"), donor, OURS),
    ):
        for options in ({}, {"decoder_attention_type": "scse"}):
            begun = build({**UNET, "weights": weights, "options": options}, names)
            assert same(begun, theirs) == set(theirs.state_dict()) and not begun.tensors["new"]
            assert begun.arch["options"] == NARROW
        models.rebuild(json.loads(json.dumps(begun.arch))).load_state_dict(begun.state_dict())
        for key, value in (("decoder_channels", [256, 128, 64, 32, 16]), ("decoder_interpolation", "bilinear")):
            with pytest.raises(UserError, match=rf"model\.options\.{key} is .* have .*\. Leave it out"):
                build({**UNET, "weights": weights, "options": {key: value}}, names)
        with pytest.raises(UserError, match=r"Set model\.name=unet|holds a unet, .*model: \{name: unet,"):
            build({**UNET, "name": "unetplusplus", "weights": weights}, names)


def test_a_parents_head_keeps_rows_by_name(make_config: Make, tmp_path: Path) -> None:
    old = make_config(train={"num_steps": 2})
    fit(old, ALONE)
    parent = load_trained(old.run.uri, ALONE.device)
    names = ["moon", *reversed(parent.labels.names)]
    child = make_config(
        run={"uri": str(tmp_path / "child")},
        model={**SEGFORMER, "transfer_head": "by_name"},
        train={"init_from": old.run.uri},
    )
    model = restore.begin(child, names, checkpoints.resolve(old.run.uri))
    new, before = (m.net.decode_head.classifier.weight for m in (model, parent.model))
    assert torch.equal(new[1:], before.flip(0))
    assert not (new[0] == before).flatten(1).all(1).any()
    assert f"{len(names) - 1} rows kept by name" in model.notes[1]
    assert model.origin == NO_ORIGIN | {"through": [checkpoints.resolve(old.run.uri)]}


def test_a_run_that_recorded_no_origin_is_asked_what_its_config_says() -> None:
    state = {"config": {"model": {"name": "segformer", "weights": "nvidia/mit-b2"}}}
    assert restore.initial_of(state)["licence"]["note"] == "research and evaluation only, not for commercial use"
    assert restore.initial_of({"config": {"model": {"name": "unet", "weights": None}}}) == NO_ORIGIN


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_rows_by_name_need_weights_with_a_head(weights: str | None, make_config: Make) -> None:
    with pytest.raises(ConfigError, match="by_name needs weights with a head"):
        make_config(model={**UNET, "weights": weights, "transfer_head": "by_name"})
    make_config(model={**UNET, "weights": weights, "transfer_head": "by_name"}, train={"init_from": "there"})


@pytest.mark.parametrize(
    ("repo", "readme", "name", "note"),
    [
        ("nvidia/mit-b0", NVIDIA, "NVIDIA Source Code License for SegFormer", "research and evaluation only"),
        ("nvidia/mit-b0", None, "NVIDIA Source Code License for SegFormer", "research and evaluation only"),
        ("smp-hub/mit_b3.imagenet", "# no card", "NVIDIA Source Code License for SegFormer", "research and evaluation"),
        (
            "nvidia/mit-b0",
            "---\nlicense: other\nlicense_name: nv\nlicense_link: L\n---",
            "nv",
            "research and evaluation",
        ),
        ("someone/copy", "---\nlicense: mit\n---\n", "mit", None),
        ("someone/copy", "---\nlicense: other\n---\n", "other", None),
        ("someone/copy", "---\nlicense: [\n---\n", None, None),
        ("someone/copy", "a --- b --- c", None, None),
        ("someone/copy", None, None, None),
    ],
)
def test_a_licence_is_read_from_the_card_or_known(
    repo: str, readme: str | None, name: str | None, note: str | None
) -> None:
    found = licences.of(repo, readme)
    assert (found and found["name"]) == name
    assert ((found and found["note"]) or "").startswith(note or "") and bool(found and found["note"]) == bool(note)


@pytest.mark.parametrize(
    ("repo", "said", "name", "hub_id"),
    [
        ("me/net", "mit", "mit", "mit"),
        ("me/net", "[mit]", "mit", "mit"),
        ("me/net", "[mit, apache-2.0]", "mit and apache-2.0", None),
        ("me/net", "[mit, other]\nlicense_name: own", "mit and own", None),
        ("me/net", "other\nlicense_name: own", "own", None),
        ("me/net", "other\nlicense_name: [own]", "other", None),
        ("me/net", "[mit, null, 3]", "mit", "mit"),
        ("microsoft/beit-base", "other", "apache-2.0", "apache-2.0"),
        (None, "mit", "mit", None),  # a folder's card: the Hub never saw it
    ],
)
def test_licences_of_a_card_are_taken_one_by_one_and_an_id_of_the_hub_is_known_as_one(
    repo: str | None, said: str, name: str, hub_id: str | None
) -> None:
    found = licences.of(repo, f"---\nlicense: {said}\n---\n")
    assert found is not None and (found["name"], found["id"]) == (name, hub_id)


@pytest.mark.parametrize("said", ["{a: b}", "[]", "[[mit]]", "3", "' '"])
def test_what_is_no_licence_in_a_card_is_none(said: str) -> None:
    assert licences.of("me/net", f"---\nlicense: {said}\n---\n") is None


def test_only_what_is_needed_is_taken_from_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    donor = saved(SEGFORMER, tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "optimizer.safetensors").write_bytes(b"huge")
    asked: list[str] = []
    read = storage.read
    monkeypatch.setattr(storage, "read", lambda uri: asked.append(uri.rsplit("/", 1)[1]) or read(uri))
    assert len(same(build(given(SEGFORMER, f"file://{tmp_path}")), donor)) == len(donor.state_dict()) - 2
    assert set(asked) == {"config.json", "model.safetensors"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A Hub for the clients of this process, with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving(tmp_path / "hub") as (address, _):
        yield Site(tmp_path / "hub", address, monkeypatch)
    storage.hf._hub_of.cache_clear()


BY_ID = {"name": "segformer", "weights": "me/net"}


def renewed(site: Site) -> Segmenter:
    """Other weights in me/net, by a commit of their own; the older ones stay at theirs."""
    folder = site.folder / "me" / "net"
    older = {"private": False, "commits": [{"id": COMMIT, "title": "first"}]}
    shutil.copytree(folder, kept := folder.with_name(f"net@{COMMIT}"))
    (kept / "HISTORY").write_text(json.dumps(older), encoding="utf-8")
    donor = published(site, seed=2)
    newer = {"private": False, "commits": [*older["commits"], {"id": "f" * 40, "title": "second"}]}
    (folder / "HISTORY").write_text(json.dumps(newer), encoding="utf-8")
    return donor


def published(site: Site, seed: int = 1) -> Segmenter:
    """A network on the Hub, as me/net, with all files that tell something of it."""
    folder = site.folder / "me" / "net"
    donor = saved(SEGFORMER, folder, OURS, seed)
    about = {"classes": [{"name": name} for name in reversed(OURS)]}  # against config.json: who reads it is seen
    scale = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "do_normalize": True}
    for name, tree in (("segdist.json", about), ("preprocessor_config.json", scale)):
        (folder / name).write_text(json.dumps(tree), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n", encoding="utf-8")
    return donor


@pytest.mark.parametrize(
    "name", ["config.json", "segdist.json", "preprocessor_config.json", "README.md", "model.safetensors"]
)
def test_a_file_that_the_hub_did_not_give_is_not_one_that_is_not_there(site: Site, name: str) -> None:
    """Once it answers with an error that huggingface_hub itself does not try again."""
    published(site)
    with spoiling(site.address, fault := Fault("HEAD", f"/{name}", "520 x", times=1)) as address:
        site.point(address)
        model = build(BY_ID)
    assert fault.met > 1
    assert model.traits.mean == (0.5, 0.5, 0.5)
    # the names of segdist.json are in another order
    assert model.notes[1].startswith("head replaced: 3 -> 3 classes (3 have the same names")
    assert (model.origin["licence"] or {})["id"] == "cc-by-4.0"


def test_an_outage_of_the_hub_is_told_as_one_and_its_cache_serves_without_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    donor = published(site)
    (site.folder / "me" / "net" / "segdist.json").unlink()
    monkeypatch.setattr("segdist.storage._RETRY_SECONDS", 0.0)
    with spoiling(site.address, Fault("HEAD", "/README.md", "520 x")) as address:
        site.point(address)
        with pytest.raises(
            UnavailableError, match=r"model\.weights 'me/net' could not be loaded: .*does not answer \(520\)"
        ):
            build(BY_ID)
        (site.folder / "me" / "net" / "README.md").unlink()
    site.point(site.address)
    assert build(BY_ID).notes[1] == "head kept: it has the same 3 classes"
    # what is known not to exist is no question then
    with spoiling(site.address, Fault("HEAD", ".", "520 x")) as address:
        site.point(address)
        assert same(build(BY_ID), donor) == set(donor.state_dict())
        with pytest.raises(UnavailableError, match="does not answer"):
            build({**BY_ID, "weights": "me/other"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(build(BY_ID), donor) == set(donor.state_dict())
    shutil.rmtree(Path(constants.HF_HUB_CACHE) / "models--me--net" / ".no_exist")  # as snapshot_download leaves it
    assert same(build(BY_ID), donor) == set(donor.state_dict())
    with pytest.raises(UserError, match=r"me/other.*cannot be reached"):
        build({**BY_ID, "weights": "me/other"})


def test_the_licence_of_an_encoder_may_be_missing_and_then_somebody_hears_of_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from segdist.models.weights import origin_of_hub

    published(site)
    monkeypatch.setattr("segdist.storage._RETRY_SECONDS", 0.0)
    with spoiling(site.address, Fault("HEAD", "/README.md", "520 x")) as address:
        site.point(address)
        assert origin_of_hub("me/net", None)["licence"] is None
    assert "The licence of me/net may be missing" in capsys.readouterr().err
    site.point(site.address)
    assert origin_of_hub("me/net", None)["licence"]["name"] == "cc-by-4.0"


def dies(cfg: Config) -> None:
    """An attempt at a run that ends in its second step, before its first commit."""
    asked: list[None] = []

    def notice() -> None:
        asked.append(None)
        if len(asked) == 2:
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        fit(cfg, ALONE, notice=notice)
    assert checkpoints.newest(cfg.run.uri, print) is None


LATE = {"checkpoint": {"every_steps": 100}, "eval": {"every_steps": 100, "num_samples": 1}}


def test_all_ranks_and_later_attempts_begin_from_the_commit_that_the_first_rank_saw(
    site: Site, make_config: Make
) -> None:
    donor = published(site)
    cfg = make_config(model=BY_ID, **LATE)
    found = inspect_run(cfg, 2)
    run = open_run(resolve_auto(found.cfg, found.index, ALONE), found, ALONE)
    dies(cfg)
    other = renewed(site)
    rank = build_model(cfg, run, None)  # as one that comes late
    changed = {k for k in set(donor.state_dict()) - same(donor, other) if k.startswith(donor.traits.encoder_prefix)}
    assert changed and changed <= same(build(BY_ID), other)  # who asks anew gets the new ones
    assert changed <= same(rank, donor) and rank.origin["revision"] == COMMIT
    fit(cfg, ALONE)
    state = checkpoints.load_state(checkpoints.resolve(cfg.run.uri))
    assert (state["initial"]["revision"], state["pinned"]) == (COMMIT, {"revision": COMMIT})


@pytest.mark.parametrize("field", ["model.weights", "train.init_from"])
def test_later_attempts_begin_from_the_checkpoint_that_was_the_best_one_then(
    field: str, make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = make_config(run={"uri": str(tmp_path / "old")})
    fit(old, ALONE)
    second, first = checkpoints.committed(old.run.uri)[:2]  # after steps 4 and 3

    def best(uri: str) -> None:
        told = {"step": 4, "miou": 0.5, "checkpoint": f"checkpoints/{uri.rsplit('/', 1)[1]}"}
        storage.write(f"{old.run.uri}/best.json", json.dumps(told).encode())

    def begun(name: str, again: bool) -> str:
        by_weights = {"model": given(SEGFORMER, old.run.uri)}
        cfg = make_config(
            run={"uri": str(tmp_path / name)},
            **(by_weights if field == "model.weights" else {"train": {"init_from": old.run.uri}}), **LATE,
        )  # fmt: skip
        best(first)
        dies(cfg)
        best(second)
        if not again:
            storage.delete(first)
        fit(cfg, ALONE)
        return checkpoints.load_state(checkpoints.resolve(cfg.run.uri))["initial"]["through"][-1]

    assert begun("new", again=True) == first
    assert begun("newer", again=False) == second  # a run does not end with what it began from
    assert "starts again from the weights that exist now" in capsys.readouterr().err
