"""Models and data sets on the Hub: real clients, a Hub on loopback that can be written to, a proxy that spoils requests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import UNET, plain_folder, prepare, read_back, tree
from fault_proxy import Fault, spoiling
from hub_server import history, serving
from PIL import Image

from segdist import checkpoint, config, hub, push, push_data, storage
from segdist.data import index as indices
from segdist.doctor import run as doctor_run
from segdist.errors import UnavailableError, UserError
from segdist.launch import mirror, run
from segdist.train import fit
from segdist.world import World

TOKENS = {"hf_mine": {"name": "me", "orgs": ["lab"]}, "hf_reader": {"name": "me", "role": "read"}}


class Site:
    """The Hub of a test: where its repositories lie, and how to point the clients of this process at it."""

    def __init__(self, folder: Path, address: str, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.address, self._patch = folder, address, patch
        patch.setenv("HF_TOKEN", "hf_mine")
        patch.setenv("HF_HUB_OFFLINE", "0")
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setenv("HF_HOME", str(folder / "home"))
        self.point(address)

    def point(self, address: str) -> None:
        """From now on requests go there."""
        import fsspec
        from huggingface_hub import HfFileSystem, constants

        self._patch.setenv("HF_ENDPOINT", address)  # for processes begun from here
        self._patch.setattr(constants, "ENDPOINT", address)
        self._patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        self._patch.setattr(constants, "HF_HUB_OFFLINE", False)
        self._patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        HfFileSystem.clear_instance_cache()
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        storage.hf._hub_of.cache_clear()

    def titles(self, repo: str) -> list[str]:
        return [commit["title"] for commit in history(self.folder / repo)["commits"]]

    def files(self, repo: str) -> set[str]:
        place = self.folder / repo
        return {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file() and p.name != "HISTORY"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    (tmp_path / "hub").mkdir()
    with serving(tmp_path / "hub", TOKENS) as (address, _):
        yield Site(tmp_path / "hub", address, monkeypatch)
    storage.hf._hub_of.cache_clear()


@pytest.fixture(scope="module")
def trained_run(street_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run, scored after steps 2 and 4."""
    uri = str(tmp_path_factory.mktemp("runs") / "streets")
    fit(config.from_tree(tree(street_data, uri), "test"), World(0, 1, torch.device("cpu")))
    return uri


@pytest.fixture(scope="module")
def other_run(street_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("runs") / "other")
    fit(config.from_tree(tree(street_data, uri, model=UNET), "test"), World(0, 1, torch.device("cpu")))
    return uri


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "segdist", *arguments], capture_output=True, text=True, env=os.environ | env, timeout=300
    )


def program(code: str) -> str:
    """What a program prints whose Hub is ours and which has no segdist."""
    code = f"import sys; sys.modules['segdist'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pushed_model_is_read_by_its_library_and_its_card_by_the_hub(site: Site, trained_run: str) -> None:
    from huggingface_hub import ModelCard

    pushed = push.push(trained_run, "me/streets")
    assert pushed["url"] == f"{site.address}/me/streets"
    assert site.titles("me/streets") == [
        "initial commit",
        f"streets, after step {checkpoint.step_of(pushed['checkpoint'])}",
    ]
    assert history(site.folder / "me/streets")["private"]
    said = program(
        "from transformers import AutoModelForSemanticSegmentation, AutoImageProcessor\n"
        "net = AutoModelForSemanticSegmentation.from_pretrained('me/streets')\n"
        "AutoImageProcessor.from_pretrained('me/streets')\n"
        "print(net.config.id2label[0], sum(p.double().sum().item() for p in net.parameters()))"
    ).split()
    ours = push.load_trained(trained_run, torch.device("cpu")).model.net
    assert said[0] == "sky"
    assert float(said[1]) == pytest.approx(sum(p.double().sum().item() for p in ours.parameters()), rel=1e-12)

    card, report = ModelCard.load("me/streets"), checkpoint.evaluation_of(pushed["checkpoint"])
    assert report is not None and len(report["confusion"]) == 7
    results = {r.metric_type: r.metric_value for r in card.data.eval_results or []}
    assert results["mean_iou"] == pytest.approx(report["miou"], abs=1e-6)
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.library_name == "transformers"
    assert "15 samples in `train`, 5 samples in `val`" in card.text
    for name, iou in report["iou"].items():
        assert f"| {name} | {'-' if np.isnan(iou or np.nan) and iou != 0 else format(iou, '.4f')} |" in card.text
    for file in site.files("me/streets"):
        if file.startswith("images/") and "example" not in file:
            assert f"({file})" in card.text
    examples = ["images/example-0.jpg", "images/example-1.jpg"]
    assert [w["src"] for w in card.data.to_dict()["widget"]] == [
        f"https://huggingface.co/me/streets/resolve/main/{name}" for name in examples
    ]
    assert {*examples, "config.yaml", "segdist.json", "model.safetensors", "images/confusion.png"} <= site.files(
        "me/streets"
    )
    again = config.load(str(site.folder / "me/streets/config.yaml"), [])
    assert again == push.load_trained(trained_run, torch.device("cpu")).cfg


def test_an_smp_model_is_pushed_in_its_own_layout(site: Site, other_run: str) -> None:
    push.push(other_run, "lab/unet", private=False, verify=False)
    assert not history(site.folder / "lab/unet")["private"]
    said = program(
        "import segmentation_models_pytorch as smp\n"
        "net = smp.from_pretrained('lab/unet')\nprint(sum(p.double().sum().item() for p in net.parameters()))"
    )
    ours = push.load_trained(other_run, torch.device("cpu")).model.net
    assert float(said) == pytest.approx(sum(p.double().sum().item() for p in ours.parameters()), rel=1e-12)


def test_pushing_again_changes_nothing(site: Site, trained_run: str) -> None:
    first = push.push(trained_run, "me/streets", verify=False)
    assert push.push(trained_run, "me/streets", verify=False)["commit"] == first["commit"]
    assert len(site.titles("me/streets")) == 2


def test_images_of_the_data_are_shown_where_only_their_owner_sees_them(site: Site, trained_run: str) -> None:
    push.push(trained_run, "me/mine", verify=False)
    push.push(trained_run, "me/everyones", private=False, verify=False)
    push.push(trained_run, "me/shown", private=False, show_samples=True, verify=False)
    assert "images/samples.png" in site.files("me/mine") & site.files("me/shown")
    assert not {f for f in site.files("me/everyones") if "samples" in f or "example" in f}


def test_what_another_run_or_somebody_else_put_there_stays(site: Site, trained_run: str, other_run: str) -> None:
    push.push(trained_run, "me/streets", verify=False)
    with pytest.raises(UserError, match=r"holds the model of another run \(streets\).*--overwrite"):
        push.push(other_run, "me/streets", verify=False)
    (site.folder / "me/streets/NOTES.md").write_text("mine", encoding="utf-8")
    push.push(other_run, "me/streets", overwrite=True, verify=False)
    files = site.files("me/streets")
    assert "preprocessor_config.json" not in files  # which only the first export had
    assert {"NOTES.md", "model.safetensors", "config.json"} <= files
    foreign = site.folder / "me/foreign"
    foreign.mkdir()
    (foreign / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds files that segdist did not write \(pytorch_model.bin\)"):
        push.push(trained_run, "me/foreign", verify=False)


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        ("hf_nobody", "me/x", "does not know the token"),
        ("hf_reader", "me/x", "may not write there"),
        ("hf_mine", "somebody/x", "may not write there"),
        ("", "me/x", "needs a token"),
        ("hf_mine", "x", "give OWNER/NAME"),
        ("hf_mine", "me/../x", "give OWNER/NAME"),
    ],
)
def test_who_may_not_write_learns_it_before_any_work(
    site: Site, trained_run: str, monkeypatch: pytest.MonkeyPatch, token: str, repo: str, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(push, "load_trained", None)
    with pytest.raises(UserError, match=words) as caught:
        push.push(trained_run, repo)
    assert token == "" or token not in str(caught.value)


FAULTS = [
    Fault("GET", "whoami", "503 x", times=1),
    Fault("GET", "whoami", "429 x", times=1),
    Fault("POST", "repos/create", "503 x", times=1),
    Fault("POST", "repos/create", "lost", times=1),
    Fault("GET", "api/models/me/streets", "503 x", times=1),
    Fault("POST", "preupload", "429 x", times=1),
    Fault("POST", "objects/batch", "503 x", times=1),
    Fault("PUT", "/lfs/", "lost", times=1),
    Fault("PUT", "/lfs/", "500 x", times=1),
    Fault("POST", "/commit/", "503 x", times=1),
    Fault("POST", "/commit/", "lost", times=1),
    Fault("POST", "/commit/", "412 x", times=1),
    Fault("POST", "/commit/", "409 x", times=1),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.method} {f.path} {f.do}")
def test_a_fault_on_the_way_costs_a_moment_and_no_commit(site: Site, tmp_path: Path, fault: Fault) -> None:
    folder = tmp_path / "export"
    (folder / "images").mkdir(parents=True)
    for name, data in (("model.safetensors", os.urandom(5000)), ("README.md", b"# it\n"), ("images/a.png", b"png")):
        (folder / name).write_bytes(data)
    with spoiling(site.address, fault) as address:
        site.point(address)
        repo = hub.Repo("me/streets")
        repo.open(private=True)
        repo.commit(folder, "an export")
    assert fault.met > 0
    assert site.titles("me/streets") == ["initial commit", "an export"]
    for path in ("model.safetensors", "README.md", "images/a.png"):
        assert (site.folder / "me/streets" / path).read_bytes() == (folder / path).read_bytes()


def test_of_two_writers_neither_mixes_its_files_with_the_others(site: Site, tmp_path: Path) -> None:
    """The other one commits between our look and our commit."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"only_{name}.bin").write_bytes(os.urandom(100))
        told = {"files": [f"only_{name}.bin", hub.MARK]}
        (tmp_path / name / hub.MARK).write_text(json.dumps(told), encoding="utf-8")
    mine, theirs = hub.Repo("me/two"), hub.Repo("me/two")
    mine.open(private=True)
    looked = mine._head_now

    def late() -> tuple[str | None, set[str]]:
        found = looked()
        if len(site.titles("me/two")) == 1:
            theirs.commit(tmp_path / "b", "theirs")
        return found

    mine._head_now = late  # type: ignore[method-assign]
    mine.commit(tmp_path / "a", "mine")
    assert site.titles("me/two") == ["initial commit", "theirs", "mine"]
    assert site.files("me/two") == {".gitattributes", hub.MARK, "only_a.bin"}


def test_a_hub_that_stays_away_is_given_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PATIENCE_SECONDS", 2.0)
    with spoiling(site.address, Fault("GET", "whoami", "503 x")) as address:
        site.point(address)
        with pytest.raises(UnavailableError, match=r"me/streets: the Hub does not answer \(503\)"):
            hub.Repo("me/streets").open(private=True)


def test_a_run_is_mirrored_while_it_trains_and_at_its_end(
    site: Site, street_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_LOOK_SECONDS", 0.2)
    copied: list[str] = []
    real = mirror.Mirror._copy

    def copy(self: mirror.Mirror, uri: str, ended: object) -> str | None:
        problem = real(self, uri, ended)  # type: ignore[arg-type]
        copied.append(f"{uri.rsplit('/', 1)[-1]}: {problem}")
        return problem

    monkeypatch.setattr(mirror.Mirror, "_copy", copy)
    cfg = config.from_tree(tree(street_data, str(tmp_path / "run"), hub={"repo_id": "me/streets"}), "test")
    told: list[str] = []
    monkeypatch.setattr(mirror.log, "say", told.append)
    summary, _ = run(cfg)
    held = json.loads((site.folder / "me/streets/segdist.json").read_text(encoding="utf-8"))
    assert summary["state"] == held["run_state"] == "SUCCEEDED"
    assert copied[-1] == "run: None"
    assert held["checkpoint"] == summary["best_checkpoint"].rsplit("/", 1)[-1]
    assert f"copying the best model to {site.address}/me/streets" in told
    before = len(copied)
    run(cfg)  # it is finished, and there
    assert len(copied) == before
    assert told[-1] == f"the best model is at {site.address}/me/streets"


def test_a_dead_hub_harms_no_run(site: Site, street_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_PAUSES", (0.1,))
    cfg = config.from_tree(tree(street_data, str(tmp_path / "run"), hub={"repo_id": "me/streets"}), "test")
    told: list[str] = []
    monkeypatch.setattr(mirror.log, "say", told.append)
    monkeypatch.setattr(mirror.Mirror, "_is_there", lambda self, summary: monkeypatch.setenv("HF_TOKEN", "hf_revoked"))
    summary, _ = run(cfg)
    assert summary["state"] == "SUCCEEDED"
    assert "does not know the token" in told[-1]
    assert f"`segdist push {tmp_path}/run me/streets`" in told[-1]
    assert "hf_revoked" not in "".join(told)


def test_a_run_that_could_not_be_mirrored_does_not_begin(
    site: Site, street_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    cfg = config.from_tree(tree(street_data, str(tmp_path / "run"), hub={"repo_id": "me/streets"}), "test")
    with pytest.raises(UserError, match="may not write there"):
        run(cfg)
    assert not (tmp_path / "run").exists()


def test_doctor_says_whether_the_hub_will_take_the_model(
    site: Site, street_data: str, trained_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(repo: str) -> tuple[str, str]:
        cfg = config.from_tree(tree(street_data, str(tmp_path / "run"), hub={"repo_id": repo}), "test")
        monkeypatch.setattr(doctor_run, "_rehearse", lambda cfg: ("not now", 1))
        found = [f for f in doctor_run.examine(cfg) if f.topic == "hub"]
        return found[0].severity, found[0].text

    assert told("me/new") == ("ok", "me/new: your token may write there; it will be created")
    assert not (site.folder / "me/new").exists()
    push.push(trained_run, "me/taken", verify=False)
    severity, text = told("me/taken")
    assert severity == "error" and "holds the model of another run" in text
    assert told("somebody/new")[0] == "error"
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "may only read" in told("me/new")[1]


def test_a_pushed_data_set_is_the_same_to_segdist_to_datasets_and_to_prepare(site: Site, tmp_path: Path) -> None:
    """Raw values that are no class numbers, in 16 bits, and void of two values."""
    source = plain_folder(tmp_path / "source", num=12)
    rng = np.random.default_rng(0)
    for i in range(12):
        mask = rng.choice(np.array([7, 300, 9, 0], np.uint16), (8, 12))
        Image.fromarray(mask).save(source / "masks" / f"p{i}.png")
    data = str(tmp_path / "data")
    prepare(str(source), data, names="road=7,sky=300", void=[0, 9])
    pushed = push_data.push_data(data, "me/roads")
    assert pushed["url"].endswith("me/roads")

    ours, labels = read_back(data, "train"), indices.load(data).labels
    there = read_back("hf://datasets/me/roads", "train")
    shared = indices.load("hf://datasets/me/roads").labels
    assert shared.names == ["road", "sky"] and shared.void == (255,)
    prepare("me/roads", str(tmp_path / "again"), layout="hub")
    again = read_back(str(tmp_path / "again"), "train")
    assert ours.keys() == there.keys() == again.keys()
    for name, (image, mask) in ours.items():
        classes = labels.table(mask.dtype)[mask]
        for other_image, other_mask in (there[name], again[name]):
            np.testing.assert_array_equal(image, other_image)
            np.testing.assert_array_equal(classes, other_mask)
    said = json.loads(
        program(
            "import datasets, json, numpy as np\n"
            "data = datasets.load_dataset('me/roads')\n"
            "rows = {r['sample_id']: (np.array(r['mask']).tolist(), r['image'].size) for r in data['train']}\n"
            "print(json.dumps([rows, {k: len(v) for k, v in data.items()}]))"
        ).splitlines()[-1]
    )
    for name, (mask, size) in said[0].items():
        np.testing.assert_array_equal(there[name][1], np.array(mask))
        assert size == [12, 8]
    assert said[1] == {name: split.num_samples for name, split in indices.load(data).splits.items()}
    id2label = json.loads((site.folder / "datasets/me/roads/id2label.json").read_text(encoding="utf-8"))
    assert id2label == {"0": "road", "1": "sky"}


def test_training_on_a_pushed_data_set_gives_the_same_weights(site: Site, street_data: str, tmp_path: Path) -> None:
    push_data.push_data(street_data, "me/streets")
    runs = {}
    for name, data in (("here", street_data), ("hub", "hf://datasets/me/streets")):
        cfg = config.from_tree(tree(data, str(tmp_path / name), train={"num_steps": 2}), "test")
        fit(cfg, World(0, 1, torch.device("cpu")))
        runs[name] = checkpoint.load_model(checkpoint.resolve(str(tmp_path / name)))
    for key, tensor in runs["here"].items():
        assert torch.equal(tensor, runs["hub"][key]), key


def test_another_data_set_is_not_replaced(site: Site, street_data: str, tmp_path: Path) -> None:
    push_data.push_data(street_data, "me/streets")
    first = site.files("datasets/me/streets")
    prepare(str(plain_folder(tmp_path / "other")), str(tmp_path / "data"), names="a,b,c")
    with pytest.raises(UserError, match="holds another data set"):
        push_data.push_data(str(tmp_path / "data"), "me/streets")
    assert site.files("datasets/me/streets") == first
    push_data.push_data(str(tmp_path / "data"), "me/streets", overwrite=True)
    shards = {f for f in site.files("datasets/me/streets") if f.endswith(".parquet")}
    assert len(shards) == 2 and not shards & first


def test_a_full_disk_is_told_before_the_copy(site: Site, street_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_data.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="set TMPDIR to a folder with more room"):
        push_data.push_data(street_data, "me/streets")


def test_the_command_pushes_runs_and_data(site: Site, street_data: str, trained_run: str, tmp_path: Path) -> None:
    done = command("push", trained_run, "me/model", "--no-verify", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["repo_id"] == "me/model"
    source = plain_folder(tmp_path / "source")
    done = command("prepare", str(source), str(tmp_path / "data"), "--names", "a,b,c", "--push", "me/data", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pushed"]["repo_id"] == "me/data"
    refused = command("prepare", str(source), str(tmp_path / "no"), "--push", "somebody/data")
    assert refused.returncode == 2 and "may not write there" in refused.stderr
    assert not (tmp_path / "no").exists()
