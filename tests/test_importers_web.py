"""Pictures and contracts from the web: releases of Segments.ai, and data sets of the Hugging Face Hub."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import prepare
from hub_server import COMMIT, Asked, commit_of
from hub_server import serving as serving_hub
from PIL import Image
from test_prepare import read_back
from web_server import Answer, Web, serving

from segdist import log
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
    monkeypatch.setattr(log, "say", lines.append)
    return lines


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


# -- contracts --------------------------------------------------------------------------------------------------------


def test_names_come_from_a_web_server_and_its_credential_is_not_told() -> None:
    with serving({"/id2label.json": b'{"0": "sky", "1": "road"}', "/names.txt": b"sky\nroad\n"}) as web:
        assert parse_names(f"{web.url}/id2label.json{SECRET}").names == ["sky", "road"]
        assert parse_names(f"{web.url}/names.txt{SECRET}", first=3).known == {0, 1, 2, 3, 4, 255}
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
    """A release of `num` samples whose pictures `web` serves; `change` may spoil it."""
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
    assert "1 PRELABELED, 1 REVIEWED without a bitmap, 1 SKIPPED, 1 UNLABELED of 12 samples" in told
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
        with pytest.raises(StorageError, match=r"map/5.png: the server refuses \(403\)") as error:
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
        for change, text in ((one_says, "7 samples have no metadata `split`"), (strange, "use train, val or test")):
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
    """Below the largest they are void, as the SDK reads them, and said once; above, bitmap and annotations do not fit."""

    def forget(number: int) -> Change:
        def change(tree: dict[str, Any]) -> None:
            for sample in samples_of(tree):
                annotations = sample["labels"]["ground-truth"]["attributes"]["annotations"]
                annotations[:] = [a for a in annotations if a["id"] != number]

        return change

    with serving({}) as web:
        prepare(release(tmp_path / "r.json", web, change=forget(2)), str(tmp_path / "out"), "segments")
        with pytest.raises(
            LabelError, match=r"s\d.png: .*/map/\d.png: \d+ pixels bear object ids up to 70000, .* end at 5"
        ):
            prepare(release(tmp_path / "r.json", web, change=forget(70000)), str(tmp_path / "other"), "segments")
    loaded = index.load(str(tmp_path / "out"))
    expected = sum(int(np.isin(object_ids(i), (0, 2)).sum()) for i in range(8))
    assert sum(split.void_pixels for split in loaded.splits.values()) == expected
    assert len([line for line in said if "without annotation" in line]) == 1


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
        (put("dataset", "samples", value={}), "no release of Segments.ai"),
        (put("dataset", "samples", 0, "name", value="s1.png"), "two samples are called 's1.png'"),
        (put("dataset", "task_attributes", value={}), "not understood as a release"),
        (
            put("dataset", "task_attributes", "categories", 0, "name", value="tree"),
            "class name 'tree' is declared twice",
        ),
        (put(*ATTRIBUTES, "annotations", 0, "category_id", value=9), "s0.png: object 1 is of category 9"),
        (put(*ATTRIBUTES, "annotations", 1, "id", value=1), "object 1 is of two categories, 1 and 4"),
        (put(*ATTRIBUTES, "annotations", 1, "id", value=2**40), "a bitmap has 24 bits"),
        (put(*IMAGE, value="/etc/passwd"), "s0.png: '/etc/passwd' is no address that is fetched"),
        (put(*IMAGE, value="file:///etc/passwd"), "no address that is fetched"),
        (put(*IMAGE, value="gs://bucket/a.png"), "no address that is fetched"),
        (put(*IMAGE, value=None), "no address that is fetched"),
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
    with pytest.raises(DataError, match="a folder; give the release file"):
        prepare(str(tmp_path), str(tmp_path) + "-out", "segments")
    with serving({}) as web, pytest.raises(DataError, match="no labelset 'mine'; it has ground-truth, model"):
        prepare(release(tmp_path / "r.json", web), str(tmp_path / "out"), "segments", subset="mine")


def test_a_bitmap_of_another_kind_is_told(tmp_path: Path) -> None:
    with serving({"/map/0.png": png(np.zeros((8, 12), np.uint8)), "/img/1.png": b"<Error>"}) as web:
        with pytest.raises(LabelError, match=r"s0.png: .*map/0.png: a bitmap of mode L"):
            prepare(release(tmp_path / "r.json", web, 3), str(tmp_path / "out"), "segments")
        with pytest.raises(DataError, match=r"s1.png: .*img/1.png: not an image"):
            prepare(
                release(tmp_path / "r.json", web, 3, change=lambda tree: samples_of(tree).pop(0)),
                str(tmp_path / "out"),
                "segments",
            )


# -- the Hub ----------------------------------------------------------------------------------------------------------


def scene(i: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1000 + i)
    return rng.integers(0, 256, (8, 12, 3), dtype=np.uint8), rng.integers(0, 4, (8, 12), dtype=np.uint8)


def palette_png(mask: np.ndarray) -> bytes:
    image, out = Image.fromarray(mask), io.BytesIO()
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    image.save(out, "PNG")
    return out.getvalue()


def index_png(i: int) -> bytes:
    return png(scene(i)[1])


def table_of(
    numbers: range,
    image: str = "image",
    mask: str = "mask",
    encode: Callable[[int], bytes] = index_png,
    **more: list[Any],
) -> Any:
    """A data set of scenes, with further columns; `encode` makes the mask's file."""
    import datasets

    pictures = {image: [png(scene(i)[0]) for i in numbers], mask: [encode(i) for i in numbers]}
    columns = {name: [{"bytes": data, "path": None} for data in found] for name, found in pictures.items()}
    made = datasets.Dataset.from_dict(columns | more)
    for name in pictures:
        made = made.cast_column(name, datasets.Image())
    return made


def push(repo: Path, files: dict[str, Any], readme: str = "") -> None:
    """Tables as Parquet, texts as they are."""
    for name, content in files.items():
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str | bytes):
            (repo / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        else:
            content.to_parquet(str(repo / name), batch_size=10)
    if readme:
        (repo / "README.md").write_text(readme, encoding="utf-8")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub's folder with data sets of all kinds."""
    root = tmp_path_factory.mktemp("hub")
    data = root / "datasets" / "someone"
    names = [f"scene{i}" for i in range(200)]
    card = "---\nlicense: cc-by-4.0\n---\n# Scenes\n"
    thirds = {
        f"data/train-{k:05d}-of-00003.parquet": table_of(
            range(60 * k, 60 * k + 60), "pixel_values", "label", id=names[60 * k : 60 * k + 60]
        )
        for k in range(3)
    }
    val = {"data/validation-00000-of-00001.parquet": table_of(range(180, 200), "pixel_values", "label", id=names[180:])}
    id2label = json.dumps({"0": "unlabeled", "1": "a", "2": "b", "3": "c"})
    push(data / "scenes", {**thirds, **val, "id2label.json": id2label}, card)
    push(data / "scenes@v2", {"train.parquet": table_of(range(4, 12)), "validation.parquet": table_of(range(4))})
    push(data / "only-train", {"train.parquet": table_of(range(40), id=[7] * 40, scene_category=[1] * 40)})
    import datasets

    bare = table_of(range(6))
    no_masks = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(scene(0)[0]), "path": None}] * 3, "mask": [None] * 3}, features=bare.features
    )
    push(
        data / "partial",
        {"train.parquet": bare, "valid.parquet": table_of(range(6, 8)), "test.parquet": no_masks},
    )
    push(data / "scripted", {"scripted.py": "raise SystemExit('never run')"}, card)
    push(data / "scripted@refs_convert_parquet", {
        "default/train/0000.parquet": table_of(range(6)), "default/validation/0000.parquet": table_of(range(6, 8)),
    })  # fmt: skip
    push(data / "script-alone", {"script-alone.py": "raise SystemExit('never run')"})
    for status in (401, 403):
        push(data / f"gated{status}", {"GATED": str(status), "train.parquet": bare})
    configs = "".join(f"- config_name: {c}\n  data_files: {c}/*.parquet\n" for c in ("city", "country"))
    push(data / "two", {"city/train.parquet": bare, "country/train.parquet": bare}, f"---\nconfigs:\n{configs}---\n")
    push(data / "classes", {"train.parquet": table_of(range(6)).remove_columns("mask")})
    objects = [{"bytes": index_png(i), "path": None} for i in range(6)]
    push(data / "many", {"train.parquet": table_of(range(6), "left", "depth", objects=objects)})
    kinds = {
        "colours": lambda i: png(scene(i)[0]),
        "palette": lambda i: palette_png(scene(i)[1]),
        "bomb": lambda i: png(np.zeros((3000, 3000), np.uint8)),
    }
    for kind, encode in kinds.items():
        push(data / kind, {"train.parquet": table_of(range(6), encode=encode)})
    table_of(range(5)).save_to_disk(str(root / "disk"))
    several = {"train": table_of(range(4)), "validation": table_of(range(4, 7)), "test": table_of(range(7, 9))}
    datasets.DatasetDict(several).save_to_disk(str(root / "disks"))
    hostile = datasets.Dataset.from_dict({
        "image": [{"bytes": None, "path": "/etc/hostname"}] * 6, "mask": [{"bytes": png(scene(0)[1]), "path": None}] * 6
    })  # fmt: skip
    push(data / "hostile", {"train.parquet": hostile})
    lines = ["file_name,mask_file_name"]
    for i in range(6):
        push(data / "files", {f"train/i{i}.png": png(scene(i)[0]), f"train/masks/m{i}.png": png(scene(i)[1])})
        lines.append(f"i{i}.png,masks/m{i}.png")
    push(data / "files", {"train/metadata.csv": "\n".join(lines)})
    push(data / "empty", {"notes.xyz": "nothing"})
    return root


def in_a_process(url: str, home: Path, calls: dict[str, dict[str, Any]], **env: str) -> dict[str, Any]:
    """The outcome of every `prepare(...)`, in a process whose Hub is `url`: {name: {summary | error, said}}."""
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import prepare
from segdist import log
from segdist.errors import UserError
for name, call in json.loads(sys.stdin.read()).items():
    said = []
    log.say = said.append
    try:
        out = {{"summary": prepare(layout=call.pop("layout", "hub"), **call)}}
    except UserError as error:
        out = {{"error": f"{{type(error).__name__}}: {{error}}"}}
    print("OUT", json.dumps({{name: out | {{"said": said}}}}))
"""
    settings = {
        "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", **env
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(calls), capture_output=True, text=True, timeout=200,
        env={**os.environ, **settings},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith("OUT "):
            found |= json.loads(line[4:])
    for name, out in found.items():
        print(name, out)
    assert "Traceback" not in done.stderr
    return found | {"stderr": done.stderr}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def outcomes(hub: Path, place: Path) -> Iterator[tuple[dict[str, Any], Asked]]:
    """All that one process makes of that Hub."""

    def call(source: str, name: str, **more: Any) -> dict[str, Any]:
        return {name: {"source": source, "dest": str(place / name), **more}}

    data = hub / "datasets" / "someone"
    calls = {
        **call("someone/scenes", "scenes"),
        **call("someone/scenes", "v2", revision="v2"),
        **call("hf://datasets/someone/scenes@v2", "v2-pinned", limit=1),
        **call("someone/scenes", "named", names="a,b,c,d", limit=2),
        **call("someone/scenes", "named-by-hub", names="someone/scenes", limit=2),
        **call("someone/only-train", "only-train"),
        **call("someone/only-train", "only-train-some", limit=3),
        **call("someone/only-train", "only-train-named", names=f"hf://datasets/someone/scenes@{COMMIT}/id2label.json"),
        **call("someone/partial", "partial"),
        **call("bare", "bare"),
        **call("someone/scripted", "scripted"),
        **call("someone/scripted", "scripted-again"),
        **call("someone/scripted", "scripted-main", revision=COMMIT),
        **call("someone/script-alone", "script-alone"),
        **call("someone/gated401", "gated401"),
        **call("someone/gated403", "gated403"),
        **call("someone/nothing", "nothing"),
        **call("someone/scenes", "no-revision", revision="v9"),
        **call("someone/two", "two"),
        **call("someone/two", "two-city", subset="city"),
        **call("someone/two", "two-sea", subset="sea"),
        **call("someone/classes", "classes"),
        **call("someone/many", "many"),
        **call("someone/many", "many-said", image_column="left", mask_column="objects"),
        **call("someone/many", "many-wrong", image_column="right"),
        **call("someone/hostile", "hostile"),
        **call("someone/files", "files"),
        **call("someone/files", "files-some", limit=2),
        **call("someone/empty", "empty"),
        **call("someone/colours", "colours"),
        **call("someone/palette", "palette"),
        **call("someone/bomb", "bomb", max_megapixels=8),
        "scenes-again": {"source": "someone/scenes", "dest": str(place / "scenes")},
        "scenes-other": {"source": "someone/scenes", "dest": str(place / "scenes"), "limit": 2},
        **call(str(data / "scenes@v2"), "local"),
        **call(str(data / "files"), "local-files"),
        **call(str(hub / "disk"), "disk"),
        **call(str(hub / "disks"), "disks"),
        **call(str(data / "hostile"), "local-hostile"),
        **call(str(data / "scripted"), "local-script"),
        **call(str(data / "empty"), "local-empty"),
        **call("no such/thing/at all", "no-id"),
    }
    with serving_hub(hub) as (url, asked):
        yield in_a_process(url, place / "home", calls), asked


Outcomes = tuple[dict[str, Any], Asked]


def samples(uri: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """sample_id -> (image, mask) over all splits."""
    return {k: v for split in index.load(str(uri)).splits for k, v in read_back(str(uri), split).items()}


@pytest.mark.slow
def test_a_data_set_of_the_hub_comes_back_pixel_for_pixel(outcomes: Outcomes, place: Path) -> None:
    found = outcomes[0]["scenes"]
    assert {k: v["samples"] for k, v in found["summary"]["splits"].items()} == {"train": 180, "val": 20}
    for name, (image, mask) in samples(place / "scenes").items():
        i = int(name.removeprefix("scene"))
        assert (image == scene(i)[0]).all() and (mask == scene(i)[1]).all()
    loaded = index.load(str(place / "scenes"))
    assert loaded.licence == "cc-by-4.0"
    assert loaded.source == f"Hugging Face Hub someone/scenes@{COMMIT}"
    assert loaded.labels.names == ["a", "b", "c"] and set(loaded.labels.void) == {0, 255}
    assert any("void, by its name: 0 ('unlabeled')" in line for line in found["said"])
    assert outcomes[0]["stderr"].count("Generating") == outcomes[0]["stderr"].count("Downloading") == 0


@pytest.mark.slow
def test_a_revision_is_another_data_set(outcomes: Outcomes, place: Path) -> None:
    for name, num in (("v2", 8), ("v2-pinned", 1)):
        assert outcomes[0][name]["summary"]["splits"]["train"]["samples"] == num
        assert index.load(str(place / name)).source.endswith(commit_of(Path("scenes@v2")))
    assert "Revision 'v9' doesn't exist" in outcomes[0]["no-revision"]["error"]


@pytest.mark.slow
def test_names_that_are_given_win(outcomes: Outcomes, place: Path) -> None:
    assert outcomes[0]["named"]["summary"]["classes"] == ["a", "b", "c", "d"]
    assert outcomes[0]["named-by-hub"]["summary"]["classes"] == ["a", "b", "c"]
    assert outcomes[0]["only-train-named"]["summary"]["classes"] == ["a", "b", "c"]


@pytest.mark.slow
def test_one_split_is_divided_and_rows_without_names_are_numbered(outcomes: Outcomes, place: Path) -> None:
    found = samples(place / "only-train")
    assert sorted(found) == [f"train-{i:08d}" for i in range(40)]
    assert (found["train-00000007"][1] == scene(7)[1]).all()
    assert set(outcomes[0]["only-train"]["summary"]["splits"]) == {"train", "val"}
    assert outcomes[0]["only-train"]["summary"]["classes"] == [f"class {i}" for i in range(4)]
    for split in ("train", "val"):  # a limit takes the first ones of the same division
        whole, some = (sorted(read_back(str(place / name), split)) for name in ("only-train", "only-train-some"))
        assert some == whole[:3]
    some = samples(place / "only-train-some")
    assert all((mask == found[name][1]).all() for name, (_, mask) in some.items())


@pytest.mark.slow
def test_rows_without_a_mask_are_left_out_aloud(outcomes: Outcomes) -> None:
    found = outcomes[0]["partial"]
    assert {k: v["samples"] for k, v in found["summary"]["splits"].items()} == {"train": 6, "val": 2}
    assert any("3 of 3 rows of 'test' hold no image or no mask" in line for line in found["said"])


@pytest.mark.slow
def test_a_script_is_never_run_but_its_conversion_is_taken(outcomes: Outcomes, place: Path) -> None:
    found = outcomes[0]["scripted"]
    assert {k: v["samples"] for k, v in found["summary"]["splits"].items()} == {"train": 6, "val": 2}
    assert any("is made by a Python script, which is never run" in line for line in found["said"])
    loaded = index.load(str(place / "scripted"))
    assert commit_of(Path("scripted@refs_convert_parquet")) in loaded.source
    assert loaded.licence == "cc-by-4.0"
    assert outcomes[0]["scripted-again"]["summary"]["splits"] == found["summary"]["splits"]
    assert "has no conversion: leave --revision out" in outcomes[0]["scripted-main"]["error"]
    assert "the Hub has not converted it" in outcomes[0]["script-alone"]["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gated401", "gated; accept its terms at https://huggingface.co/datasets/someone/gated401, and set HF_TOKEN"),
        ("gated403", "gated; accept its terms at https://huggingface.co/datasets/someone/gated403, and set HF_TOKEN"),
        ("nothing", "someone/nothing: the Hub has no such data set, or it is private"),
        ("two", "its configurations are ['city', 'country']; choose one with --subset"),
        ("two-sea", "its configurations are ['city', 'country']; choose one with --subset"),
        ("classes", "its columns are image; of pictures: image. An image and a mask are needed"),
        ("many", "of pictures: left, depth, objects. Say which ones to take with --image-column and --mask-column"),
        ("many-wrong", "--image-column 'right' is none of these"),
        ("hostile", ": its picture lies at /etc/hostname, outside of the data set"),
        ("empty", "holds no files that `datasets` reads"),
        ("bare", "nor the id OWNER/NAME of a data set on the Hub; https://huggingface.co/datasets/bare leads to"),
        ("no-id", "neither a folder here nor the id OWNER/NAME"),
    ],
)
def test_what_cannot_be_taken_is_explained(outcomes: Outcomes, place: Path, name: str, text: str) -> None:
    assert text in outcomes[0][name].get("error", "no error")
    assert not (place / name / "index.json").exists()


@pytest.mark.slow
def test_subsets_and_columns_are_chosen(outcomes: Outcomes, place: Path) -> None:
    assert index.load(str(place / "two-city")).source.endswith(", configuration city")
    found = samples(place / "many-said")
    assert (found["train-00000003"][0] == scene(3)[0]).all() and (found["train-00000003"][1] == scene(3)[1]).all()


@pytest.mark.slow
def test_pictures_may_be_files_of_the_repository(outcomes: Outcomes, place: Path) -> None:
    found = samples(place / "files")
    assert len(found) == 6
    for i in range(6):
        assert (found[f"train-{i:08d}"][1] == scene(i)[1]).all()
    some = samples(place / "files-some")
    assert 0 < len(some) <= 4
    assert all((mask == found[name][1]).all() for name, (_, mask) in some.items())
    assert any("as a whole: its files are not Parquet" in line for line in outcomes[0]["files-some"]["said"])


@pytest.mark.slow
def test_columns_are_looked_at_before_anything_is_downloaded(outcomes: Outcomes) -> None:
    assert not any("downloading" in line for line in outcomes[0]["many"]["said"])
    assert any("downloading" in line for line in outcomes[0]["many-said"]["said"])


@pytest.mark.slow
def test_masks_are_decoded_by_our_rules(outcomes: Outcomes, place: Path) -> None:
    """A palette gives indices, not colours; RGB asks for colours; a bomb is refused before it is decoded."""
    assert (samples(place / "palette")["train-00000002"][1] == scene(2)[1]).all()
    assert "its pixels are colours, not class values" in outcomes[0]["colours"]["error"]
    assert "3000x3000 pixels exceed --max-megapixels 8" in outcomes[0]["bomb"]["error"]


@pytest.mark.slow
def test_the_same_commit_is_the_same_source(outcomes: Outcomes) -> None:
    assert "nothing to do" in outcomes[0]["scenes-again"]["said"][-1]
    assert "holds another prepared data set" in outcomes[0]["scenes-other"]["error"]


@pytest.mark.slow
def test_local_folders_are_read_as_datasets_reads_them(outcomes: Outcomes, place: Path, hub: Path) -> None:
    """Parquet, pictures with metadata, and save_to_disk, of one table or of several."""
    for name, num, num_splits in (("local", 12, 2), ("local-files", 6, 2), ("disk", 5, 2), ("disks", 9, 3)):
        found = samples(place / name)
        assert len(found) == num, name
        assert len(index.load(str(place / name)).splits) == num_splits, name
        if name != "local":
            assert all((found[f"train-{i:08d}"][1] == scene(i)[1]).all() for i in range(3)), name
    assert index.load(str(place / "local")).source == "datasets: scenes@v2"
    assert "outside of the data set" in outcomes[0]["local-hostile"]["error"]
    assert "is made by a Python script" in outcomes[0]["local-script"]["error"]
    assert "holds no files that `datasets` reads" in outcomes[0]["local-empty"]["error"]


@pytest.mark.slow
def test_a_limit_downloads_the_beginning_only(hub: Path, tmp_path: Path) -> None:
    """And gives the samples that the whole would have begun with."""
    repo = hub / "datasets" / "someone"
    whole = sum(path.stat().st_size for path in (repo / "scenes").rglob("*.parquet"))
    calls = {"some": {"source": "someone/scenes", "dest": str(tmp_path / "some"), "limit": 3}}
    with serving_hub(hub) as (url, asked):
        found = in_a_process(url, tmp_path / "home", calls)
    assert {k: v["samples"] for k, v in found["some"]["summary"]["splits"].items()} == {"train": 3, "val": 3}
    assert sorted(samples(tmp_path / "some")) == sorted(
        [*(f"scene{i}" for i in range(3)), *(f"scene{180 + i}" for i in range(3))]
    )
    assert not any("train-00001" in path or "train-00002" in path for path in asked)
    assert asked.num_bytes < whole


@pytest.mark.slow
def test_without_the_hub_the_cache_is_taken_aloud_and_of_no_other_revision(hub: Path, tmp_path: Path) -> None:
    def calls(*names: str) -> dict[str, dict[str, Any]]:
        known: dict[str, dict[str, Any]] = {
            "newest": {},
            "limited": {"limit": 2},
            "pinned": {"revision": COMMIT},
            "other": {"revision": "v2"},
            "unknown": {"source": "someone/two", "subset": "city"},
        }
        return {
            n: {"source": "someone/scenes", "dest": str(tmp_path / n), "names": "a,b,c,d", **known[n]} for n in names
        }

    with serving_hub(hub) as (url, asked):
        in_a_process(url, tmp_path / "home", calls("newest"))
        num = len(asked)
        found = in_a_process(
            url, tmp_path / "home", calls("newest", "limited", "pinned", "other", "unknown"), HF_HUB_OFFLINE="1"
        )
        assert len(asked) == num
    assert "nothing to do" in found["newest"]["said"][-1]
    for name in ("newest", "limited", "pinned"):
        assert f"taking the newest version that the cache holds, commit {COMMIT}" in " ".join(found[name]["said"])
    assert index.load(str(tmp_path / "limited")).source.endswith(COMMIT)
    assert f"the cache holds commit {COMMIT}, which need not be 'v2'" in found["other"]["error"]
    assert "not in the cache, and HF_HUB_OFFLINE=1 forbids to ask the Hub" in found["unknown"]["error"]
