"""Models and data sets on the Hub: real clients, a Hub on loopback that can be written to, a proxy that spoils requests."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import forks
import numpy as np
import pytest
import torch
from conftest import UNET, plain_folder, prepare, read_back, tree, write_pair
from fault_proxy import Fault, spoiling
from hub_server import history, serving
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segdist import config, storage
from segdist.data import codec
from segdist.data import index as indices
from segdist.distributed import World
from segdist.doctor import run as doctor_run
from segdist.errors import DataError, UnavailableError, UserError
from segdist.launch import mirror, run
from segdist.publish import hub, push, push_data
from segdist.runs import checkpoints, segments, snapshot
from segdist.train.loop import fit
from segdist.train.validation import Validation

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
    monkeypatch.setattr(mirror, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": forks.popen}))
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
    return forks.run(["-m", "segdist", *arguments], env=os.environ | env, timeout=300)


def program(code: str) -> str:
    """What a program prints whose Hub is ours and which has no segdist."""
    code = f"import sys; sys.modules['segdist'] = None\n{code}"
    done = forks.run(["-c", code], bare=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pushed_model_is_read_by_its_library_and_its_card_by_the_hub(site: Site, trained_run: str) -> None:
    from huggingface_hub import ModelCard

    pushed = push.push(trained_run, "me/streets")
    assert pushed["url"] == f"{site.address}/me/streets"
    assert site.titles("me/streets") == [
        "initial commit",
        f"streets, after step {checkpoints.step_of(pushed['checkpoint'])}",
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

    card, report = ModelCard.load("me/streets"), checkpoints.evaluation_of(pushed["checkpoint"])
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
    found = [
        urlsplit(w["src"]).path for w in card.data.to_dict()["widget"]
    ]  # of a Hub that the client read once, at import
    assert found == [f"/me/streets/resolve/main/{name}" for name in examples]
    assert {*examples, "config.yaml", "segdist.json", "model.safetensors", "images/confusion.png"} <= site.files(
        "me/streets"
    )
    again = config.load(str(site.folder / "me/streets/config.yaml"), [])
    assert again == config.published(push.load_trained(trained_run, torch.device("cpu")).cfg)
    assert again.data.crop_size == (32, 48) and again.data.uri == "YOUR_DATA"


def test_an_smp_model_is_pushed_in_its_own_layout(site: Site, other_run: str) -> None:
    push.push(other_run, "lab/unet", private=False, verify=False)
    assert not history(site.folder / "lab/unet")["private"]
    said = program(
        "import segmentation_models_pytorch as smp\n"
        "net = smp.from_pretrained('lab/unet')\nprint(sum(p.double().sum().item() for p in net.parameters()))"
    )
    ours = push.load_trained(other_run, torch.device("cpu")).model.net
    assert float(said) == pytest.approx(sum(p.double().sum().item() for p in ours.parameters()), rel=1e-12)


def test_pushing_again_changes_nothing_and_says_so(site: Site, trained_run: str) -> None:
    first = push.push(trained_run, "me/streets", verify=False)
    assert first["changed"]
    again = push.push(trained_run, "me/streets", verify=False)
    assert again["commit"] == first["commit"] and not again["changed"]
    assert len(site.titles("me/streets")) == 2
    done = command("push", trained_run, "me/streets", "--no-verify")
    assert "unchanged on the Hub:" in done.stderr and "empty commit" not in done.stderr


def test_cards_count_epochs_as_the_run_did_and_tell_no_name_of_a_folder(
    site: Site, street_data: str, tmp_path: Path
) -> None:
    source = plain_folder(tmp_path / "secret-client", num=12)
    prepare(str(source), str(tmp_path / "secret-data"), names="a,b,c")
    data, run_uri = str(tmp_path / "secret-data"), str(tmp_path / "run")
    fit(config.from_tree(tree(data, run_uri), "test"), World(0, 1, torch.device("cpu")))
    push_data.push_data(data, "me/shapes")
    push.push(run_uri, "me/model", verify=False)
    for file in site.files("datasets/me/shapes") | {"../../../me/model/" + f for f in site.files("me/model")}:
        assert b"secret" not in (site.folder / "datasets/me/shapes" / file).read_bytes(), file
    assert b"secret" not in (site.folder / "datasets/me/shapes/HISTORY").read_bytes()
    assert indices.load("hf://datasets/me/shapes").name == "shapes"
    card = (site.folder / "me/model/README.md").read_text(encoding="utf-8")
    (row,) = [row for row in segments.read_metrics(run_uri) if row["kind"] == "train" and row["step"] == 4]
    best = checkpoints.step_of(checkpoints.resolve(run_uri))
    assert best is not None
    assert f"| steps | {best} of 4 ({row['epoch'] * best / 4:.1f} epochs) |" in card
    prepare(str(plain_folder(tmp_path / "other")), str(tmp_path / "other-data"), names="a,b,c")
    with pytest.raises(UserError, match="holds another dataset, not"):
        push_data.push_data(str(tmp_path / "other-data"), "me/shapes")


def test_the_picture_of_a_data_card_shows_samples_of_many_classes_with_all_their_colours(tmp_path: Path) -> None:
    """Eight of nine samples show one class alone."""
    for i in range(9):
        mask = np.full((40, 60), 0, np.uint8)
        if i == 7:
            mask[:20] = np.arange(1, 7, dtype=np.uint8).repeat(10)
            mask[20:22] = 255
        write_pair(tmp_path / "source", f"p{i}", np.full((40, 60, 3), 77, np.uint8), mask, "val" if i else "train")
    prepare(str(tmp_path / "source"), str(tmp_path / "data"), names="a,b,c,d,e,f,g")
    index = indices.load(str(tmp_path / "data"))
    picture = np.array(push_data._samples(str(tmp_path / "data"), index))
    below = picture[4 * (192 + 12) + 12 :]  # four rows of a fixed width, each as high as its images are
    colours = {tuple(c) for c in below.reshape(-1, 3).tolist()}
    assert {c.color for c in index.labels.classes} | {(0, 0, 0)} <= colours
    assert (picture[20:30, 20:280] == 77).all() and not (picture[20:30, 320:590] == 255).all(2).any()


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
        push.push(trained_run, "me/foreign", private=False, verify=False)


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        ("hf_nobody", "me/x", "does not accept the token"),
        (
            "hf_reader",
            "me/x",
            r"may not write there, because its role is Read.* http.*/settings/tokens.*role Write, or fine-grained",
        ),
        ("hf_mine", "somebody/x", "may not write there"),
        ("", "me/x", "needs a token"),
        ("hf_mine", "x", "the form OWNER/NAME"),
        ("hf_mine", "me/../x", "the form OWNER/NAME"),
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
    Fault("POST", "/commit/", "reset", times=1),
    Fault("POST", "/commit/", "412 x", times=1),
    Fault("POST", "/commit/", "409 x", times=1),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.method} {f.path} {f.do}")
def test_a_fault_on_the_way_costs_a_moment_and_no_commit(site: Site, tmp_path: Path, fault: Fault) -> None:
    folder = tmp_path / "export"
    (folder / "images").mkdir(parents=True)
    for name, data in (("model.safetensors", os.urandom(5000)), ("README.md", b"# it\n"), ("images/a.png", b"png")):
        (folder / name).write_bytes(data)
    hub.write_manifest(folder, {})
    shard = os.urandom(1000)
    with spoiling(site.address, fault) as address:
        site.point(address)
        repo = hub.Repo("me/streets")
        repo.open(private=True)
        repo.upload("train/0.parquet", shard)
        repo.commit(folder, "an export")
    assert fault.met > 0
    assert (site.folder / "me/streets/train/0.parquet").read_bytes() == shard
    assert site.titles("me/streets") == ["initial commit", "an export"]
    for path in ("model.safetensors", "README.md", "images/a.png"):
        assert (site.folder / "me/streets" / path).read_bytes() == (folder / path).read_bytes()


def test_of_two_writers_neither_mixes_its_files_with_the_others(site: Site, tmp_path: Path) -> None:
    """The other one commits between our look and our commit."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"only_{name}.bin").write_bytes(os.urandom(100))
        told = {"files": [f"only_{name}.bin", hub.MANIFEST]}
        (tmp_path / name / hub.MANIFEST).write_text(json.dumps(told), encoding="utf-8")
    mine, theirs = hub.Repo("me/two"), hub.Repo("me/two")
    mine.open(private=True)
    looked = mine._head

    def late() -> tuple[str | None, set[str]]:
        found = looked()
        if len(site.titles("me/two")) == 1:
            theirs.commit(tmp_path / "b", "theirs")
        return found

    mine._head = late  # type: ignore[method-assign]
    mine.commit(tmp_path / "a", "mine")
    assert site.titles("me/two") == ["initial commit", "theirs", "mine"]
    assert site.files("me/two") == {".gitattributes", hub.MANIFEST, "only_a.bin"}


def test_a_hub_that_stays_away_is_given_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_RETRY_SECONDS", 2.0)
    with spoiling(site.address, Fault("GET", "whoami", "503 x")) as address:
        site.point(address)
        with pytest.raises(UnavailableError, match=r"me/streets: the Hub does not answer \(503\)"):
            hub.Repo("me/streets").open(private=True)


def mirrored(street_data: str, tmp_path: Path, **hub_fields: object) -> config.Config:
    return config.from_tree(
        tree(street_data, str(tmp_path / "run"), hub={"repo_id": "me/streets", **hub_fields}), "test"
    )


def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(mirror.console, "say", told.append)
    return told


def test_a_run_is_mirrored_while_it_trains_and_at_its_end(
    site: Site, street_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first copy is refused, and tried again; the run waits at its first evaluation until one is there."""
    monkeypatch.setattr(mirror, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(mirror, "_PAUSES", (0.1,))
    told, score = heard(monkeypatch), Validation.score

    def slow(self: Validation, step: int) -> None:
        score(self, step)
        self._logger.writer.flush()
        until = time.monotonic() + 200
        while len(site.titles("me/streets")) == 1 and time.monotonic() < until:
            time.sleep(0.1)

    monkeypatch.setattr(Validation, "score", slow)
    with spoiling(site.address, Fault("POST", "/commit/", "403 x", times=1)) as address:
        site.point(address)
        summary, _ = run(mirrored(street_data, tmp_path))
        assert site.titles("me/streets")[1] == "run, after step 2"
        assert any("your token may not write there" in line and "training continues" in line for line in told)
        held = json.loads((site.folder / "me/streets/segdist.json").read_text(encoding="utf-8"))
        assert summary["state"] == held["run_state"] == "SUCCEEDED"
        assert held["checkpoint"] == summary["best_checkpoint"].rsplit("/", 1)[-1]
        assert told[-1] == "the best model is at me/streets on the Hub"
        before = len(site.titles("me/streets"))
        monkeypatch.setattr(mirror.Mirror, "_copy", None)  # it is finished, and there
        run(mirrored(street_data, tmp_path))
        assert len(site.titles("me/streets")) == before


def test_a_hub_that_is_away_at_the_start_stops_no_run(
    site: Site, street_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(storage, "_MIN_TRIES", 1)
    told = heard(monkeypatch)
    with spoiling(site.address, Fault("GET", "whoami", "503 x", times=1)) as address:
        site.point(address)
        summary, _ = run(mirrored(street_data, tmp_path))
    assert summary["state"] == "SUCCEEDED"
    assert "the Hub does not answer (503). Training starts" in told[0]
    assert site.titles("me/streets")[-1].startswith("run, after step ")


def test_a_hub_that_refuses_in_the_end_harms_no_run(
    site: Site, street_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_PAUSES", (0.1,))
    told = heard(monkeypatch)
    monkeypatch.setattr(mirror.Mirror, "_held", lambda self: monkeypatch.setenv("HF_TOKEN", "hf_revoked"))
    summary, _ = run(mirrored(street_data, tmp_path))
    assert summary["state"] == "SUCCEEDED"
    assert "does not accept the token" in told[-1]
    assert f"`segdist push {tmp_path}/run me/streets`" in told[-1]
    assert "hf_revoked" not in "".join(told)


def test_a_full_disk_and_a_copy_that_is_stopped_leave_nothing(
    site: Site, street_data: str, trained_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    one = mirror.Mirror(mirrored(street_data, tmp_path))
    ended, children = threading.Event(), []
    popen = subprocess.Popen

    def remember(*arguments: Any, **options: Any) -> Any:
        children.append(popen(*arguments, **options))
        threading.Timer(3, ended.set).start()
        return children[-1]

    monkeypatch.setattr(mirror.subprocess, "Popen", remember)
    before = set(tmp_path.iterdir())
    assert one._copy(trained_run, ended) == "stopped because the run ended"
    assert children[0].poll() is not None
    assert set(tmp_path.iterdir()) == before
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(mirror.subprocess, "Popen", lambda *a, **o: (_ for _ in ()).throw(full))
    assert "No space left" in str(one._copy(trained_run, threading.Event()))


def test_what_is_pushed_tells_nobody_where_it_came_from(
    site: Site, street_data: str, trained_run: str, tmp_path: Path
) -> None:
    """A run that began from another one, in folders with telling names."""
    place = tmp_path / "home-of-alice"
    cfg = tree(street_data, str(place / "secret-client" / "run"), model={"name": "segformer", "weights": trained_run})
    fit(config.from_tree(cfg, "test"), World(0, 1, torch.device("cpu")))
    push.push(str(place / "secret-client" / "run"), "me/streets", private=False, verify=False)
    card = (site.folder / "me/streets/README.md").read_text(encoding="utf-8")
    assert "| initial weights | `streets`, which was initialized from random |" in card
    assert "Fine-tuned from streets, which was trained from random weights" in card
    assert "config.yaml data.uri=YOUR_DATA model.weights=YOUR_WEIGHTS run.uri=YOUR_RUN" in card
    assert config.load(str(site.folder / "me/streets/config.yaml"), []).hub.repo_id is None
    for path in (site.folder / "me/streets").rglob("*"):
        if path.is_file() and path.name != "HISTORY":
            data = path.read_bytes()
            for told in ("secret-client", "home-of-alice", str(tmp_path), trained_run, street_data):
                assert told.encode() not in data, (path.name, told)


def photo(mode: str = "RGB", **options: object) -> bytes:
    """A JPEG that tells of its author."""
    exif = Image.Exif()
    exif[315], exif[271] = "Jane Doe", "SecretCam"
    pixels = np.random.default_rng(0).integers(0, 256, (61, 43, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(
        out, "JPEG", exif=exif, comment=b"Jane Doe", icc_profile=b"profile" * 12000, **options
    )
    return out.getvalue() + b"and behind its end, Jane Doe"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}, {"optimize": True}])
def test_an_image_without_its_metadata_has_the_same_pixels(mode: str, options: dict[str, object]) -> None:
    data = photo(mode, **options)
    plain = codec.strip_metadata(data)
    assert b"Jane" not in plain and b"SecretCam" not in plain and b"profile" in plain
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(plain))), np.array(Image.open(io.BytesIO(data))))
    for cut in (3, 200, len(data) // 2):
        with pytest.raises(DataError, match="JPEG is damaged"):
            codec.strip_metadata(data[:cut])


def test_a_png_without_its_metadata_has_the_same_pixels() -> None:
    out, told = io.BytesIO(), PngInfo()
    told.add_text("Author", "Jane Doe")
    told.add_itxt("where", "at Jane Doe's")
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)).save(out, "PNG", pnginfo=told)
    plain = codec.strip_metadata(out.getvalue())
    assert b"Jane" not in plain
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(plain))), np.arange(60).reshape(6, 10))


def test_a_card_that_somebody_edited_stays(site: Site, trained_run: str) -> None:
    push.push(trained_run, "me/streets", verify=False, licence="cc-by-4.0")
    card = site.folder / "me/streets/README.md"
    assert "license: cc-by-4.0" in card.read_text(encoding="utf-8")
    push.push(trained_run, "me/streets", verify=False)
    assert "license: cc-by-4.0" not in card.read_text(encoding="utf-8")  # nobody had edited it
    card.write_text("mine", encoding="utf-8")
    push.push(trained_run, "me/streets", verify=False)
    assert card.read_text(encoding="utf-8") == "mine"
    push.push(trained_run, "me/streets", verify=False, overwrite=True)
    assert "# streets" in card.read_text(encoding="utf-8")


@pytest.mark.parametrize("repo", ["me/foo..bar", "me/-x", "me/x.git", "me/a--b", "-me/x", "me/x.", "a/b/c"])
def test_names_that_the_hub_would_not_take_are_refused(repo: str) -> None:
    with pytest.raises(UserError, match="the form OWNER/NAME"):
        hub.Repo(repo)


def test_what_should_be_private_is_not_put_where_everybody_sees_it(site: Site, trained_run: str) -> None:
    push.push(trained_run, "me/open", private=False, verify=False)
    with pytest.raises(UserError, match="is public"):
        push.push(trained_run, "me/open", verify=False)


def test_a_mark_that_cannot_be_read_is_no_other_runs(site: Site, tmp_path: Path, trained_run: str) -> None:
    push.push(trained_run, "me/streets", verify=False)
    stale = site.folder / "me/streets/old.bin"
    stale.write_bytes(b"old")
    told = json.loads((site.folder / "me/streets/segdist.json").read_text(encoding="utf-8"))
    told["files"].append("old.bin")
    (site.folder / "me/streets/segdist.json").write_text(json.dumps(told), encoding="utf-8")
    with spoiling(site.address, Fault("GET", "segdist.json", "503 x", times=2)) as address:
        site.point(address)
        push.push(trained_run, "me/streets", verify=False)
    assert not stale.exists()


def test_a_long_try_does_not_use_up_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_RETRY_SECONDS", 0.2)
    tries: list[float] = []

    def upload() -> str:
        tries.append(time.monotonic())
        time.sleep(0.3)
        if len(tries) == 1:
            raise UnavailableError("reset")
        return "there"

    assert storage.with_retries(upload, print) == "there"


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

    assert told("me/new") == ("ok", "me/new: your token has write access. The repository will be created")
    assert not (site.folder / "me/new").exists()
    push.push(trained_run, "me/taken", verify=False)
    severity, text = told("me/taken")
    assert severity == "error" and "holds the model of another run" in text
    assert told("somebody/new")[0] == "error"
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "its role is Read" in told("me/new")[1]


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
    done = command("prepare", "me/roads", str(tmp_path / "again"), "--format", "hub")
    assert done.returncode == 0, done.stderr
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
        runs[name] = snapshot.load_model(checkpoints.resolve(str(tmp_path / name)))
    for key, tensor in runs["here"].items():
        assert torch.equal(tensor, runs["hub"][key]), key


def test_another_data_set_is_not_replaced(site: Site, street_data: str, tmp_path: Path) -> None:
    push_data.push_data(street_data, "me/streets")
    first = site.files("datasets/me/streets")
    prepare(str(plain_folder(tmp_path / "other")), str(tmp_path / "data"), names="a,b,c")
    with pytest.raises(UserError, match="holds another dataset"):
        push_data.push_data(str(tmp_path / "data"), "me/streets")
    assert site.files("datasets/me/streets") == first
    push_data.push_data(str(tmp_path / "data"), "me/streets", overwrite=True)
    shards = {f for f in site.files("datasets/me/streets") if f.endswith(".parquet")}
    assert len(shards) == 2 and not shards & first


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
