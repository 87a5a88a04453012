"""Releases of Segments.ai, and contracts from a web server."""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import prepare, read_back
from odd_pictures import written
from PIL import Image
from web_server import Answer, Web, serving

from segdist import console
from segdist.data import index
from segdist.data.importers.fetched import unsigned
from segdist.data.names import parse_names
from segdist.errors import DataError, LabelError, StorageError, UserError
from segdist.storage import http

SECRET = "?X-Amz-Signature=topsecret"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fetched files go; and no proxy, and no pauses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    for name in list(os.environ):
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    return tmp_path / "cache"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(console, "say", lines.append)
    return lines


def png(pixels: np.ndarray) -> bytes:
    return written(pixels, "PNG")


# -- contracts --------------------------------------------------------------------------------------------------------


def test_names_come_from_a_web_server_and_its_credential_is_not_told() -> None:
    with serving({"/id2label.json": b'{"0": "sky", "1": "road"}', "/names.txt": b"sky\nroad\n"}) as web:
        assert parse_names(f"{web.url}/id2label.json{SECRET}").names == ["sky", "road"]
        assert parse_names(f"{web.url}/names.txt{SECRET}", first=3).known_values == {0, 1, 2, 3, 4, 255}
        with pytest.raises(LabelError, match=r"there is no .*/nothing\.json") as error:
            parse_names(f"{web.url}/nothing.json{SECRET}")
    assert "secret" not in str(error.value)


# -- Segments.ai ------------------------------------------------------------------------------------------------------

CATEGORIES = [
    {"id": 1, "name": "road", "color": [128, 64, 128]},
    {"id": 4, "name": "tree", "color": [0, 90, 0, 255]},
    {"id": 300, "name": "sky", "color": None},
]
OBJECTS = {1: 1, 2: 4, 5: 1, 70000: 300}  # object id -> category id; 70000 needs the third byte


def bitmap(ids: np.ndarray) -> bytes:
    """As Segments.ai stores object ids: the bytes of little-endian 32-bit numbers as RGBA, opaque."""
    rgba = np.ascontiguousarray(ids.astype("<u4")).view(np.uint8).reshape(*ids.shape, 4).copy()
    rgba[..., 3] = 255
    return png(rgba)


def object_ids(i: int) -> np.ndarray:
    return np.random.default_rng(i).choice(np.array([0, *OBJECTS]), (8, 12))


Change = Callable[[dict[str, Any]], None]


def release_of(web: Web, num: int = 8, query: str = SECRET, change: Change = lambda tree: None) -> dict[str, Any]:
    """A release of `num` samples whose images `web` serves; `change` may spoil it."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(num):
        web.answers.setdefault(f"/img/{i}.png", [Answer(png(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)))])
        web.answers.setdefault(f"/map/{i}.png", [Answer(bitmap(object_ids(i)))])
        attributes = {
            "annotations": [{"id": k, "category_id": v} for k, v in OBJECTS.items()],
            "segmentation_bitmap": {"url": f"{web.url}/map/{i}.png{query}"},
        }
        label = {"label_status": ("LABELED", "REVIEWED")[i % 2], "attributes": attributes}
        image = {"image": {"url": f"{web.url}/img/{i}.png{query}"}}
        samples.append({"name": f"s{i}.png", "attributes": image, "metadata": {}, "labels": {"ground-truth": label}})
    tree = {
        "name": "v1.0",
        "created_at": "2026-01-02",
        "dataset": {
            "name": "flowers",
            "owner": "jane",
            "task_type": "segmentation-bitmap",
            "task_attributes": {"categories": copy.deepcopy(CATEGORIES)},
            "labelsets": [{"name": "ground-truth"}, {"name": "model"}],
            "samples": samples,
        },
    }
    change(tree)
    return tree


def release(path: Path, web: Web, num: int = 8, query: str = SECRET, change: Change = lambda tree: None) -> str:
    """The same in a file."""
    path.write_text(json.dumps(release_of(web, num, query, change)), encoding="utf-8")
    return str(path)


def samples_of(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return tree["dataset"]["samples"]


def label_of(tree: dict[str, Any], i: int = 0) -> dict[str, Any]:
    return samples_of(tree)[i]["labels"]["ground-truth"]


def test_a_release_comes_back_as_its_categories(tmp_path: Path, said: list[str]) -> None:
    def change(tree: dict[str, Any]) -> None:
        samples_of(tree)[0]["labels"]["ground-truth"] = None
        label_of(tree, 1)["label_status"] = "PRELABELED"
        label_of(tree, 2)["label_status"] = "SKIPPED"
        label_of(tree, 3)["attributes"]["segmentation_bitmap"]["url"] = None
        label_of(tree, 4)["label_status"] = "VERIFIED"

    with serving({}) as web:
        prepare(release(tmp_path / "r.json", web, 12, change=change), str(tmp_path / "out"), "segments")
        assert not any(f"{i}.png" in asked for asked in web.asked for i in ("/0", "/1.", "/2", "/3"))
    loaded = index.load(str(tmp_path / "out"))
    assert [(c.name, c.raw, c.color) for c in loaded.labels.classes][:2] == [
        ("road", (1,), (128, 64, 128)),
        ("tree", (4,), (0, 90, 0)),
    ]
    assert loaded.labels.void == (0,)
    assert loaded.source.startswith("Segments.ai jane/flowers, release v1.0")
    found = read_back(str(tmp_path / "out"), "train") | read_back(str(tmp_path / "out"), "val")
    assert sorted(found) == sorted(f"s{i}.png" for i in range(4, 12))
    for i in range(4, 12):
        expected = np.vectorize(lambda v: OBJECTS.get(int(v), 0))(object_ids(i))
        assert found[f"s{i}.png"][1].dtype == np.uint16
        assert (found[f"s{i}.png"][1] == expected).all()
        assert (found[f"s{i}.png"][0] == np.array(Image.open(io.BytesIO(web.answers[f"/img/{i}.png"][0].body)))).all()
    told = next(line for line in said if line.startswith("left out"))
    assert "left out of 12 samples: 1 PRELABELED, 1 REVIEWED without a bitmap, 1 SKIPPED, 1 UNLABELED" in told
    assert not any("secret" in line for line in said)


def test_a_release_lies_on_a_web_server_whose_credential_is_kept_secret(tmp_path: Path) -> None:
    with serving({}) as web:
        web.answers["/flowers-v1.json"] = [Answer(json.dumps(release_of(web)).encode())]
        prepare(f"{web.url}/flowers-v1.json{SECRET}", str(tmp_path / "out"), "segments")
        with pytest.raises(DataError, match=r"nothing\.json: this folder does not exist") as error:
            prepare(f"{web.url}/nothing.json{SECRET}", str(tmp_path / "other"), "segments")
    assert "secret" not in str(error.value)
    assert index.load(str(tmp_path / "out")).name == "flowers-v1"
    for path in tmp_path.rglob("*"):
        assert "secret" not in str(path)
        assert path.is_dir() or b"topsecret" not in path.read_bytes()


def test_another_signature_fetches_nothing_and_prepares_nothing_again(tmp_path: Path, said: list[str]) -> None:
    with serving({}) as web:
        prepare(release(tmp_path / "r.json", web), str(tmp_path / "out"), "segments")
        assert len(web.asked) == len(set(web.asked)) == 16
        again = release(tmp_path / "r.json", web, query="?X-Amz-Signature=other&X-Amz-Date=2026&Expires=1")
        prepare(again, str(tmp_path / "out"), "segments")
        assert len(web.asked) == 16
        assert "nothing to do" in said[-1]
        later = release(tmp_path / "r.json", web, change=lambda tree: tree.update(name="v2.0"))
        prepare(later, str(tmp_path / "v2"), "segments")
        assert len(web.asked) == 32  # another release may hold other labels at the same addresses


def test_what_chooses_a_file_stays_in_its_address() -> None:
    assert unsigned("https://h/a?id=5&X-Amz-Date=1&Signature=x&Expires=3&sig=z") == "https://h/a?id=5"
    assert unsigned("https://h/a?id=5") != unsigned("https://h/a?id=6")


def test_an_interrupted_fetch_goes_on_where_it_was(tmp_path: Path, cache: Path) -> None:
    with serving({"/map/5.png": [Answer(status=403), bitmap(object_ids(5))]}) as web:
        source = release(tmp_path / "r.json", web)
        with pytest.raises(StorageError, match=r"map/5.png: access denied \(403\)") as error:
            prepare(source, str(tmp_path / "out"), "segments")
        assert "secret" not in str(error.value)
        assert not list(cache.rglob(".tmp-*"))
        prepare(source, str(tmp_path / "out"), "segments")
        assert len(web.asked) == 17
    assert len([p for p in cache.rglob("*") if p.is_file()]) == 16


def test_a_limit_fetches_no_more_than_it_takes(tmp_path: Path) -> None:
    with serving({}) as web:
        source = release(tmp_path / "r.json", web, 40)
        summary = prepare(source, str(tmp_path / "out"), "segments", limit=2)
        assert {k: v["samples"] for k, v in summary["splits"].items()} == {"train": 2, "val": 2}
        assert len(web.asked) == 8


def test_samples_may_say_their_split(tmp_path: Path) -> None:
    def all_say(tree: dict[str, Any]) -> None:
        for i, sample in enumerate(samples_of(tree)):
            sample["metadata"] = {"split": ("train", "validation", "Test", "train")[i % 4]}

    def one_says(tree: dict[str, Any]) -> None:
        samples_of(tree)[3]["metadata"] = {"split": "train"}

    def strange(tree: dict[str, Any]) -> None:
        for sample in samples_of(tree):
            sample["metadata"] = {"split": "../../x"}

    with serving({}) as web:
        summary = prepare(release(tmp_path / "r.json", web, change=all_say), str(tmp_path / "out"), "segments")
        assert {k: v["samples"] for k, v in summary["splits"].items()} == {"train": 4, "val": 2, "test": 2}
        for change, text in ((one_says, "7 samples have no metadata `split`"), (strange, "must be train, val or test")):
            with pytest.raises(DataError, match=text):
                prepare(release(tmp_path / "r.json", web, change=change), str(tmp_path / "other"), "segments")


def test_a_category_may_be_0_and_may_be_the_only_one(tmp_path: Path) -> None:
    def zero(tree: dict[str, Any]) -> None:
        tree["dataset"]["task_attributes"]["categories"] = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
        for sample in samples_of(tree):
            sample["labels"]["ground-truth"]["attributes"]["annotations"] = [
                {"id": i, "category_id": i % 2} for i in OBJECTS
            ]

    def one(tree: dict[str, Any]) -> None:
        tree["dataset"]["task_attributes"]["categories"] = [{"id": 7, "name": "crack"}]
        for sample in samples_of(tree):
            sample["labels"]["ground-truth"]["attributes"]["annotations"] = [
                {"id": i, "category_id": 7} for i in OBJECTS
            ]

    with serving({}) as web:
        prepare(release(tmp_path / "r.json", web, change=zero), str(tmp_path / "zero"), "segments")
        prepare(release(tmp_path / "r.json", web, change=one), str(tmp_path / "one"), "segments")
        prepare(
            release(tmp_path / "r.json", web, change=one), str(tmp_path / "named"), "segments", names="rest=0,crack=7"
        )
    assert index.load(str(tmp_path / "zero")).labels.void == (2,)
    mask = read_back(str(tmp_path / "zero"), "train") | read_back(str(tmp_path / "zero"), "val")
    ids = object_ids(3)
    assert (mask["s3.png"][1] == np.where(ids == 0, 2, ids % 2)).all()
    for name, names in (("one", ["background", "crack"]), ("named", ["rest", "crack"])):
        loaded = index.load(str(tmp_path / name))
        assert loaded.labels.names == names
        assert sum(split.class_pixels[0] for split in loaded.splits.values()) == sum(
            int((object_ids(i) == 0).sum()) for i in range(8)
        )


def test_object_ids_without_annotation(tmp_path: Path, said: list[str]) -> None:
    """Below the largest they are void, as the SDK reads them; above, bitmap and annotations do not fit."""

    def forget(number: int) -> Change:
        def change(tree: dict[str, Any]) -> None:
            for sample in samples_of(tree):
                annotations = sample["labels"]["ground-truth"]["attributes"]["annotations"]
                annotations[:] = [a for a in annotations if a["id"] != number]

        return change

    with serving({}) as web:
        prepare(release(tmp_path / "r.json", web, change=forget(2)), str(tmp_path / "out"), "segments")
        with pytest.raises(
            LabelError, match=r"s\d.png: .*/map/\d.png: \d+ pixels have object IDs up to 70000, .* end at 5"
        ):
            prepare(release(tmp_path / "r.json", web, change=forget(70000)), str(tmp_path / "other"), "segments")
    loaded = index.load(str(tmp_path / "out"))
    expected = sum(int(np.isin(object_ids(i), (0, 2)).sum()) for i in range(8))
    assert sum(split.void_pixels for split in loaded.splits.values()) == expected
    assert len([line for line in said if "pixels have object IDs without annotation; they are void" in line]) == 3
    assert "warning: 5 more bitmaps with object IDs without annotation, 8 in all" in said


def put(*keys: Any, value: Any) -> Change:
    """A change of one place in the release."""

    def change(tree: Any) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change


ATTRIBUTES = ("dataset", "samples", 0, "labels", "ground-truth", "attributes")
IMAGE = ("dataset", "samples", 0, "attributes", "image", "url")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put("dataset", "task_type", value="vector"), "a release of task 'vector'"),
        (put("dataset", "samples", value=[]), "no sample has a finished label"),
        (put("dataset", "samples", value={}), "not a release of Segments.ai"),
        (put("dataset", "samples", 0, "name", value="s1.png"), "two samples are named 's1.png'"),
        (put("dataset", "task_attributes", value={}), "not a valid release"),
        (
            put("dataset", "task_attributes", "categories", 0, "name", value="tree"),
            "class name 'tree' is declared twice",
        ),
        (put(*ATTRIBUTES, "annotations", 0, "category_id", value=9), "s0.png: object 1 has category 9"),
        (put(*ATTRIBUTES, "annotations", 1, "id", value=1), "object 1 has two categories, 1 and 4"),
        (put(*ATTRIBUTES, "annotations", 1, "id", value=2**40), "a bitmap has 24 bits"),
        (put(*IMAGE, value="/etc/passwd"), "s0.png: '/etc/passwd' is not a URI that can be fetched"),
        (put(*IMAGE, value="file:///etc/passwd"), "not a URI that can be fetched"),
        (put(*IMAGE, value="gs://bucket/a.png"), "not a URI that can be fetched"),
        (put(*IMAGE, value=None), "not a URI that can be fetched"),
    ],
)
def test_a_spoilt_release_is_told(tmp_path: Path, change: Change, text: str) -> None:
    with serving({}) as web:
        source = release(tmp_path / "r.json", web, change=change)
        with pytest.raises(UserError, match=text) as error:
            prepare(source, str(tmp_path / "out"), "segments")
    assert "r.json" in str(error.value)
    assert not (tmp_path / "out" / "index.json").exists()


def test_what_is_no_release_is_told(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("<html>", encoding="utf-8")
    with pytest.raises(DataError, match=r"r.json: not JSON"):
        prepare(str(tmp_path / "r.json"), str(tmp_path / "out"), "segments")
    with pytest.raises(DataError, match=r"this is a folder\. Give the release file"):
        prepare(str(tmp_path), str(tmp_path) + "-out", "segments")
    with serving({}) as web, pytest.raises(DataError, match=r"no labelset 'mine'\. It has ground-truth, model"):
        prepare(release(tmp_path / "r.json", web), str(tmp_path / "out"), "segments", subset="mine")


def test_a_bitmap_of_another_kind_is_told(tmp_path: Path) -> None:
    with serving({"/map/0.png": png(np.zeros((8, 12), np.uint8)), "/img/1.png": b"<Error>"}) as web:
        with pytest.raises(LabelError, match=r"s0.png: .*map/0.png: this is a bitmap of mode L"):
            prepare(release(tmp_path / "r.json", web, 3), str(tmp_path / "out"), "segments")
        with pytest.raises(DataError, match=r"s1.png: .*img/1.png: not an image"):
            prepare(
                release(tmp_path / "r.json", web, 3, change=lambda tree: samples_of(tree).pop(0)),
                str(tmp_path / "out"),
                "segments",
            )
