"""Data sets of the Hugging Face Hub, from a Hub of our own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pyarrow as pa
import pytest
from conftest import read_back
from hub_scenes import draw_hub, scene
from hub_server import COMMIT, Asked, commit_of, serving

from segdist.data import index
from segdist.data.importers.hub_rows import Cell, Place
from segdist.errors import DataError


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_hub(tmp_path_factory.mktemp("hub"))


def test_an_image_that_is_not_there_is_told_with_the_place_that_was_looked_at(tmp_path: Path) -> None:
    column = pa.chunked_array([pa.array([{"bytes": None, "path": "train/a.png"}])])
    cell = Cell(column, 0, Place("scenes", tmp_path), "train, column image")
    with pytest.raises(DataError) as error:
        cell.read()
    place = tmp_path.resolve() / "train" / "a.png"
    assert str(error.value) == (
        f"scenes: train, column image, row 0: its image 'train/a.png' does not exist at {place}. Add it, or remove the row"
    )


def in_a_process(url: str, home: Path, calls: dict[str, dict[str, Any]], **env: str) -> dict[str, Any]:
    """The outcome of every `prepare(...)`, in a process whose Hub is `url`: {name: {summary | error, said}}."""
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import prepare
from segdist import console
from segdist.errors import UserError
for name, call in json.loads(sys.argv[1]).items():
    said = []
    console.say = said.append
    try:
        out = {{"summary": prepare(layout=call.pop("layout", "hub"), **call)}}
    except UserError as error:
        out = {{"error": f"{{type(error).__name__}}: {{error}}"}}
    print("OUT", json.dumps({{name: out | {{"said": said}}}}))
"""
    settings = {
        "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", **env
    }  # fmt: skip
    done = forks.run(["-c", code, json.dumps(calls)], bare=True, env={**os.environ, **settings})
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
    with serving(hub) as (url, asked):
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
    assert any("mask value 0 ('unlabeled') as void because of its name" in line for line in found["said"])
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
    assert any("3 of 3 rows of 'test', which hold no image or no mask" in line for line in found["said"])


@pytest.mark.slow
def test_a_script_is_never_run_but_its_conversion_is_taken(outcomes: Outcomes, place: Path) -> None:
    found = outcomes[0]["scripted"]
    assert {k: v["samples"] for k, v in found["summary"]["splits"].items()} == {"train": 6, "val": 2}
    assert any("is made by a Python script, which is never run" in line for line in found["said"])
    loaded = index.load(str(place / "scripted"))
    assert commit_of(Path("scripted@refs_convert_parquet")) in loaded.source
    assert loaded.licence == "cc-by-4.0"
    assert outcomes[0]["scripted-again"]["summary"]["splits"] == found["summary"]["splits"]
    assert "was not converted to Parquet: leave out --revision" in outcomes[0]["scripted-main"]["error"]
    assert "the Hub has not converted it" in outcomes[0]["script-alone"]["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gated401", "gated. Accept its terms at https://huggingface.co/datasets/someone/gated401, and set HF_TOKEN"),
        ("gated403", "gated. Accept its terms at https://huggingface.co/datasets/someone/gated403, and set HF_TOKEN"),
        ("nothing", "someone/nothing: the Hub has no such dataset, or it is private"),
        ("two", "its configurations are ['city', 'country']. Choose one with --subset"),
        ("two-sea", "its configurations are ['city', 'country']. Choose one with --subset"),
        ("classes", "the columns are image; those of images: image. An image column and a mask column are needed"),
        ("many", "those of images: left, depth, objects. Choose them with --image-column and --mask-column"),
        ("many-wrong", "--image-column 'right' is not a column of images"),
        ("hostile", ": its image /etc/hostname is outside of the dataset"),
        ("empty", "holds no files that `datasets` reads"),
        ("bare", "nor the ID OWNER/NAME of a dataset on the Hub. https://huggingface.co/datasets/bare redirects to"),
        ("no-id", "neither a folder here nor the ID OWNER/NAME"),
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
def test_images_may_be_files_of_the_repository(outcomes: Outcomes, place: Path) -> None:
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
    assert "3000x3000 pixels (height x width) exceed --max-megapixels 8" in outcomes[0]["bomb"]["error"]


@pytest.mark.slow
def test_the_same_commit_is_the_same_source(outcomes: Outcomes) -> None:
    assert "nothing to do" in outcomes[0]["scenes-again"]["said"][-1]
    assert "holds another prepared dataset" in outcomes[0]["scenes-other"]["error"]


@pytest.mark.slow
def test_local_folders_are_read_as_datasets_reads_them(outcomes: Outcomes, place: Path, hub: Path) -> None:
    """Parquet, images with metadata, and save_to_disk, of one table or of several."""
    for name, num, num_splits in (("local", 12, 2), ("local-files", 6, 2), ("disk", 5, 2), ("disks", 9, 3)):
        found = samples(place / name)
        assert len(found) == num, name
        assert len(index.load(str(place / name)).splits) == num_splits, name
        if name != "local":
            assert all((found[f"train-{i:08d}"][1] == scene(i)[1]).all() for i in range(3)), name
    assert index.load(str(place / "local")).source == "datasets: scenes@v2"
    assert "outside of the dataset" in outcomes[0]["local-hostile"]["error"]
    assert "is made by a Python script" in outcomes[0]["local-script"]["error"]
    assert "holds no files that `datasets` reads" in outcomes[0]["local-empty"]["error"]


@pytest.mark.slow
def test_a_limit_downloads_the_beginning_only(hub: Path, tmp_path: Path) -> None:
    """And gives the samples that the whole would have begun with."""
    repo = hub / "datasets" / "someone"
    whole = sum(path.stat().st_size for path in (repo / "scenes").rglob("*.parquet"))
    calls = {"some": {"source": "someone/scenes", "dest": str(tmp_path / "some"), "limit": 3}}
    with serving(hub) as (url, asked):
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

    with serving(hub) as (url, asked):
        in_a_process(url, tmp_path / "home", calls("newest"))
        num = len(asked)
        found = in_a_process(
            url, tmp_path / "home", calls("newest", "limited", "pinned", "other", "unknown"), HF_HUB_OFFLINE="1"
        )
        assert len(asked) == num
    assert "nothing to do" in found["newest"]["said"][-1]
    for name in ("newest", "limited", "pinned"):
        assert f"using the newest version in the cache, commit {COMMIT}" in " ".join(found[name]["said"])
    assert index.load(str(tmp_path / "limited")).source.endswith(COMMIT)
    assert f"the cache holds commit {COMMIT}, which may not be 'v2'" in found["other"]["error"]
    assert "not in the cache, and HF_HUB_OFFLINE=1 forbids downloading it from the Hub" in found["unknown"]["error"]
