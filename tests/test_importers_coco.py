"""COCO's files to a prepared data set: masks against hand-counted and independent ones, and every mistake."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_files import (
    CAT,
    DOG,
    SIZE,
    SKY,
    coco,
    compressed,
    entry,
    far_inside_and_outside,
    images_in,
    instances,
    masks_of,
    noise,
    note,
    panoptic,
    prepared,
    rect,
    refused,
    runs,
)
from conftest import prepare
from PIL import Image

from segdist.data import index
from segdist.data.importers import coco_masks
from segdist.errors import DataError


def test_the_smaller_object_lies_above_and_crowds_are_void_below_all(tmp_path: Path) -> None:
    small, list_of_runs, crowd = (np.zeros(SIZE, bool) for _ in range(3))
    small[3:5, 3:6], list_of_runs[10:, 12:], crowd[0:4, :] = True, True, True
    source = instances(
        tmp_path / "src",
        note(1, 18, compressed(small)),  # first in the file, and still above the larger cat
        note(1, 17, rect(2, 2, 10, 9)),
        note(1, 17, runs(list_of_runs)),
        note(1, 18, runs(crowd), iscrowd=1),
        note(1, 18, rect(8, 6, 12, 7), iscrowd=1),  # smaller than the cat, and below it all the same
        note(1, 18, rect(0, 6, 1, 8) + rect(0, 10, 1, 12)),  # two parts of one object
    )
    summary = prepared(source, "coco")
    expected = np.zeros(SIZE, np.uint8)
    expected[0:4] = expected[6, 8:12] = 255
    expected[2:9, 2:10], expected[3:5, 3:6], expected[10:, 12:] = 17, 18, 17
    expected[6:8, 0] = expected[10:12, 0] = 18
    found = masks_of(summary)
    assert (found["a"] == expected).all()
    assert (found["b"] == 0).all()
    assert summary["classes"] == ["background", "cat", "dog"]
    assert {k: v["samples"] for k, v in summary["splits"].items()} == {"train": 2, "val": 1}
    assert index.load(summary["uri"]).licence == "not stated"


@pytest.mark.parametrize("seed", range(4))
def test_cocos_polygon_is_what_a_pixel_centre_test_says_up_to_its_outline(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * math.pi, 9))
    points = [(8 + r * math.cos(a), 6 + r * math.sin(a)) for a, r in zip(angles, rng.uniform(4, 12, 9))]  # some outside
    source = instances(tmp_path / "src", note(1, 17, [[c for p in points for c in p]]))
    mask = masks_of(prepared(source, "coco"))["a"]
    inside, outside = far_inside_and_outside(points, SIZE)
    assert inside.sum() > 5
    assert (mask[inside] == 17).all()
    assert (mask[outside] == 0).all()


def test_runs_are_read_as_cocos_own_code_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        mask = rng.random((7 + i, 40 - i)) < rng.random()
        mask[:] = i == 1 if i < 2 else mask  # wholly off, wholly on
        plain, packed = runs(mask)["counts"], compressed(mask)["counts"]
        assert coco_masks._uncompressed(packed) == plain


def test_raw_values_of_16_bits_and_ids_that_begin_at_0(tmp_path: Path) -> None:
    """Label Studio counts from 0, so the background takes the first free value; 255 may be a category too."""
    categories = [{"id": 0, "name": "crack"}, {"id": 1, "name": "leaf"}, {"id": 255, "name": "far"}]
    images_in(tmp_path / "src" / "images", "a.png", "b.png")
    notes = [note(1, 0, rect(0, 0, 2, 2)), note(2, 255, rect(4, 4, 9, 9)), note(2, 1, rect(0, 0, 9, 4), iscrowd=1)]
    coco(tmp_path / "src" / "result.json", [entry(1, "images\\a.png"), entry(2, "images/b.png")], notes, categories)
    summary = prepared(tmp_path / "src", "coco")
    assert summary["classes"] == ["background", "crack", "leaf", "far"]
    found = masks_of(summary)
    assert found["images/a"].dtype == np.uint16
    assert (found["images/a"][0, 0], found["images/a"][11, 11]) == (0, 2)
    assert (found["images/b"][5, 5], found["images/b"][0, 0]) == (255, 65535)
    loaded = index.load(summary["uri"])
    assert [c.raw for c in loaded.labels.classes] == [(2,), (0,), (1,), (255,)]
    assert sum(s.void_pixels for s in loaded.splits.values()) == 36


def test_roboflows_folders_and_its_heading_of_categories(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "cracks", "supercategory": "none"},
        {"id": 1, "name": "crack", "supercategory": "cracks"},
    ]
    for split in ("train", "valid", "test"):
        images_in(tmp_path / "src" / split, "a.jpg")
        path = tmp_path / "src" / split / "_annotations.coco.json"
        coco(path, [entry(0, "a.jpg")], [note(0, 1, rect(0, 0, 2, 2))], categories, licenses=[{"name": "CC BY 4.0"}])
    summary = prepared(tmp_path / "src", "coco")
    assert {k: v["samples"] for k, v in summary["splits"].items()} == {"train": 1, "val": 1, "test": 1}
    assert summary["classes"] == ["background", "crack"]
    assert index.load(summary["uri"]).licence == "CC BY 4.0"


def test_cvats_one_file_and_a_file_as_source_are_split_by_name(tmp_path: Path) -> None:
    names = [f"drive/{i}.png" for i in range(10)]
    images_in(tmp_path / "src" / "images" / "default", *names)
    notes = [note(i, 17, rect(0, 0, 2, 2)) for i in range(10)]
    path = coco(
        tmp_path / "src" / "annotations" / "instances_default.json",
        [entry(i, n) for i, n in enumerate(names)],
        notes,
        [CAT],
    )
    both = [prepare(str(s), str(tmp_path / f"out{i}"), "coco") for i, s in enumerate((tmp_path / "src", path))]
    assert set(both[0]["splits"]) == {"train", "val"}
    assert both[0]["splits"]["train"]["samples"] + both[0]["splits"]["val"]["samples"] == 10
    assert sorted(masks_of(both[0])) == sorted(n.removesuffix(".png") for n in names)
    assert sorted(masks_of(both[1])) == sorted(masks_of(both[0]))


def test_a_category_called_background_is_the_background(tmp_path: Path) -> None:
    source = instances(
        tmp_path / "src", note(1, 17, rect(0, 0, 2, 2)), categories=[CAT, DOG, {"id": 3, "name": "Background"}]
    )
    summary = prepared(source, "coco")
    assert summary["classes"] == ["Background", "cat", "dog"]
    assert masks_of(summary)["a"][11, 11] == 3


def test_names_rename_categories_by_their_ids(tmp_path: Path) -> None:
    source = instances(tmp_path / "src", note(1, 17, rect(0, 0, 2, 2)))
    assert prepared(source, "coco", names="rest=0,pet=17,wolf=18")["classes"] == ["rest", "pet", "wolf"]
    assert "unknown mask value 18 (4 pixels)" in refused(source, "coco", names="rest=0,pet=17")


@pytest.mark.parametrize("beside", ["annotations", "."])
def test_panoptic_colours_number_segments_whose_categories_are_the_classes(tmp_path: Path, beside: str) -> None:
    ids = np.zeros(SIZE, np.int64)
    ids[0:3], ids[3:6, :8], ids[6:9], ids[9:, :4] = 5, 70_000, 300, 16_777_215
    segments = [
        {"id": 5, "category_id": 17, "iscrowd": 0},
        {"id": 70_000, "category_id": 200, "iscrowd": 0},
        {"id": 300, "category_id": 17, "iscrowd": 1},
        {"id": 16_777_215, "category_id": 17},
    ]
    summary = prepared(panoptic(tmp_path / "src", ids, segments, beside), "coco")
    expected = np.full(SIZE, 255, np.uint8)
    expected[0:3], expected[3:6, :8], expected[9:, :4] = 17, 200, 17
    assert (masks_of(summary)["a"] == expected).all()
    loaded = index.load(summary["uri"])
    assert [(c.name, c.color) for c in loaded.labels.classes] == [("cat", (1, 2, 3)), ("sky", (70, 130, 180))]
    assert "CC BY 4.0" in loaded.licence


def test_a_panoptic_image_and_its_segments_are_both_the_source(tmp_path: Path) -> None:
    ids = np.full(SIZE, 5)
    source = panoptic(tmp_path / "src", ids, [{"id": 5, "category_id": 17}])
    prepare(str(source), str(tmp_path / "out"), "coco")
    panoptic(source, ids, [{"id": 5, "category_id": 200}])
    with pytest.raises(DataError, match="holds another prepared dataset"):
        prepare(str(source), str(tmp_path / "out"), "coco")


def test_what_stuff_does_not_cover_was_not_labelled(tmp_path: Path) -> None:
    source = instances(tmp_path / "src", note(1, 17, rect(0, 0, 2, 2)), note(1, 17, rect(1, 0, 3, 2)))
    for path in (source / "annotations").iterdir():
        path.rename(path.with_name(path.name.replace("instances", "stuff")))
    summary = prepared(source, "coco")
    assert summary["classes"] == ["cat", "dog"]
    expected = np.full(SIZE, 255, np.uint8)
    expected[0:2, 0:3] = 17
    assert (masks_of(summary)["a"] == expected).all()


@pytest.mark.parametrize(
    ("folder", "values", "names"),
    [
        ("stuffthingmaps/{}", (0, 12, 181, 255), ["person", "stop sign", "wood", "void"]),
        ("annotations/{}", (90 - 1, 91, 92, 255), ["toothbrush", "banner", "blanket", "void"]),
        ("annotations/stuff_{}_pixelmaps", (92, 182, 183, 0), ["banner", "wood", "other", "void"]),
        ("stuff_{}_pixelmaps", (92, 182, 183, 0), ["banner", "wood", "other", "void"]),
    ],
)
def test_cocostuffs_maps_are_named_after_their_authors_list(
    tmp_path: Path, folder: str, values: tuple[int, ...], names: list[str]
) -> None:
    """The four quarters of each mask, by name; copies that other tools lay beside them are left out."""
    mask = np.repeat(np.array(values, np.uint8), 3)[:, None] * np.ones((1, SIZE[1]), np.uint8)
    for name in ("train2017", "val2017"):
        images_in(tmp_path / "src" / name, "a.jpg")
        where = tmp_path / "src" / folder.format(name)
        where.mkdir(parents=True)
        Image.fromarray(mask).save(where / "a.png")
        Image.fromarray(mask).save(where / "a_labelTrainIds.png")
    summary = prepared(tmp_path / "src", "coco")
    contract = index.load(summary["uri"]).labels
    said = [*contract.names, "void"]
    table = contract.table(np.uint8)
    assert [said[min(int(table[v]), len(said) - 1)] for v in values] == names
    assert (masks_of(summary)["a"] == mask).all()
    assert contract.num_classes == (92 if "pixelmaps" in folder else 171)


def test_one_of_several_kinds_of_annotation_must_be_chosen(tmp_path: Path) -> None:
    source = instances(tmp_path / "src", note(1, 17, rect(0, 0, 2, 2)))
    panoptic(source, np.full(SIZE, 5), [{"id": 5, "category_id": 200}])
    (source / "annotations" / "captions_train2017.json").write_text("{}", encoding="utf-8")
    message = refused(source, "coco")
    assert "instances (annotations/instances_train2017.json, annotations/instances_val2017.json); panoptic (" in message
    assert message.endswith("--subset instances|panoptic")
    assert "captions" not in message
    assert prepared(source, "coco", subset="instances")["classes"] == ["background", "cat", "dog"]
    assert prepared(source, "coco", subset="panoptic")["classes"] == ["cat", "sky"]
    assert "--subset 'stuff' is not available. Available kinds: instances" in refused(source, "coco", subset="stuff")


def test_a_part_of_cocos_images_will_do_and_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = instances(tmp_path / "src", note(1, 17, rect(0, 0, 2, 2)))
    assert prepared(source, "coco")["splits"]["train"]["samples"] == 2
    said = capfd.readouterr().err.replace("\n", " ")
    assert "1 of 2 images" in said
    assert "have no annotations: they are background throughout" in said
    (source / "train2017" / "b.jpg").unlink()
    assert prepared(source, "coco")["splits"]["train"]["samples"] == 1
    assert "warning: 1 of 2 images of" in capfd.readouterr().err.replace("\n", " ")
    (source / "train2017" / "a.jpg").unlink()
    assert "none of its 2 images exists, for example a.jpg" in refused(source, "coco")


# -- mistakes in COCO's files -----------------------------------------------------------------------------------------


def half() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[:6] = True
    return mask


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"segmentation": [[1, 1, 5, 5]]}, "a polygon of 2 points has no area"),
        ({"segmentation": [[1, 1, 5, 5, 6]]}, "its segmentation is not [[x, y, x, y, ...], ...]"),
        ({"segmentation": [1, 1, 5, 5, 6, 2]}, "its segmentation is not [[x, y, x, y, ...], ...]"),
        ({"segmentation": [[1, 1, 5, float("nan"), 6, 2]]}, "the coordinate nan is not a number"),
        ({"segmentation": [[1, 1, 5, 1e12, 6, 2]]}, "the coordinate 1000000000000.0 is far outside of an image of 12x16"),
        ({"segmentation": [[1, 1, 5, None, 6, 2]]}, "the coordinate None is not a number"),
        ({"segmentation": []}, "1 annotations have a box but no segmentation (first: 77)"),
        ({"segmentation": {"size": [12, 17], "counts": [204]}}, "its RLE has size [12, 17], but the image has [12, 16]"),
        ({"segmentation": {"size": [12, 16], "counts": [100]}}, "its RLE does not fill the image of 192 pixels"),
        ({"segmentation": {"size": [12, 16], "counts": [200, -8]}}, "its RLE does not fill the image"),
        ({"segmentation": {"size": [12, 16], "counts": [10**30]}}, "its RLE does not fill the image"),
        ({"segmentation": {"size": [12, 16], "counts": "\u00ff"}}, "its RLE cannot be read"),
        ({"segmentation": {"size": [12, 16], "counts": "P" * 99}}, "its RLE cannot be read"),
        ({"segmentation": {"size": [12, 16]}}, "its RLE cannot be read"),
        ({"segmentation": {"size": [12, 16], "counts": []}}, "its RLE does not fill the image"),
        ({"category_id": 99}, "annotation 77 has the category 99, which is not listed in `categories`"),
        ({"image_id": 99}, "annotation 77 belongs to image 99, which is not listed in `images`"),
        ({"image_id": [1]}, "annotation 77 belongs to image [1], which is not listed in `images`"),
        ({"segments_info": []}, "Rename the file to panoptic_SET.json"),
    ],
)  # fmt: skip
def test_an_annotation_that_cannot_be_drawn_is_named(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    broken = note(1, 17, runs(half()), id=77) | wrong
    if "segments_info" in wrong:
        del broken["segmentation"]
    message = refused(instances(tmp_path / "src", note(1, 17, rect(0, 0, 2, 2)), broken), "coco")
    assert "instances_train2017.json: " in message
    assert "77" in message
    assert said in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": [entry(1, "../a.jpg")]}, "file_name '../a.jpg' of image 1 leads out of the dataset"),
        ({"images": [entry(1, "/etc/passwd")]}, "leads out of the dataset"),
        ({"images": [entry(1, "a.jpg"), entry(2, "./a.jpg")]}, "images 1 and 2 have the same file_name a.jpg"),
        ({"images": [entry(1, "a.jpg"), entry(1, "b.jpg")]}, "a.jpg and b.jpg both have image ID 1"),
        ({"images": [{"id": 1}]}, "needs an `id` and a `file_name`"),
        ({"images": {}}, "`images` is not a list of objects"),
        ({"images": [entry(1, "a.jpg", width=17)]}, "a.jpg: the image is 12x16 but its mask is 12x17"),
        ({"images": [entry(1, "a.jpg", width=10**9, height=10**9)]}, "exceed --max-megapixels 200"),
        ({"images": [entry(1, "a.jpg", width=None)]}, "height 12 and width None are not an image size"),
        ({"images": [entry(1, "a.jpg", width=True)]}, "height 12 and width True are not an image size"),
        ({"categories": [{"id": 70_000, "name": "cat"}]}, "category 'cat' has ID 70000, but masks hold 0..65535"),
        ({"categories": [{"id": "1", "name": "cat"}]}, "needs an integer `id` and a string `name`"),
        ({"categories": [CAT, CAT | {"name": "lynx"}]}, "categories 'cat' and 'lynx' share ID 17"),
        ({"categories": [CAT, SKY | {"name": "cat"}]}, "class name 'cat' is declared twice"),
        ({"categories": [CAT | {"name": "lynx"}]}, "category 17 is 'cat', but it is 'lynx' in"),
        ({"categories": [{"id": i, "name": f"c{i}"} for i in range(300, 600)]}, "a dataset has 2 to 255 classes"),
        ({"annotations": "[]"}, "`annotations` is not a list of objects"),
    ],
)  # fmt: skip
def test_a_coco_file_that_contradicts_itself_or_its_images_is_named(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    source = instances(tmp_path / "src", categories=[CAT])
    whole = {"images": [entry(1, "a.jpg")], "annotations": [], "categories": [CAT]}
    noise().save(tmp_path / "a.jpg")
    for name in ("train2017", "val2017"):
        tree = whole | (change if name == "train2017" else {"images": [entry(3, "c.jpg")]})
        (source / "annotations" / f"instances_{name}.json").write_text(json.dumps(tree), encoding="utf-8")
    assert said in refused(source, "coco")


def test_folders_that_are_not_cocos_are_explained(tmp_path: Path) -> None:
    source = tmp_path / "src"
    images_in(source / "train2017", "a.jpg")
    assert "found no COCO annotations" in refused(source, "coco")
    path = source / "annotations" / "instances_train2017.json"
    path.parent.mkdir()
    for text, said in (
        ("{", "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ("{}", "not a COCO file"),
        ('{"shapes": []}', "use --format labelme"),
    ):
        path.write_text(text, encoding="utf-8")
        message = refused(source, "coco")
        assert "instances_train2017.json" in message
        assert said in message


def test_sets_that_are_neither_for_training_nor_validation_or_both_are_refused(tmp_path: Path) -> None:
    source = instances(tmp_path / "src", note(1, 17, rect(0, 0, 2, 2)))
    notes = source / "annotations"
    (notes / "instances_val2017.json").rename(notes / "instances_minival.json")
    images_in(source / "minival", "c.jpg")
    assert "whether 'minival' is for training or validation" in refused(source, "coco")
    (notes / "instances_minival.json").rename(notes / "instances_train2014.json")
    images_in(source / "train2014", "c.jpg")
    assert "another set is also for train" in refused(source, "coco")
    (notes / "instances_train2014.json").rename(source / "instances_train2017.json")
    assert "both hold instances annotations of 'train2017'. Move one elsewhere, or give one file" in refused(
        source, "coco"
    )


def test_panoptic_masks_that_do_not_fit_their_json_are_named(tmp_path: Path) -> None:
    source = panoptic(tmp_path / "src", np.full(SIZE, 9), [{"id": 5, "category_id": 17}])
    assert "panoptic_train2017/a.png: segment 9 (192 pixels; 1 such segments in all) is not in" in refused(
        source, "coco"
    )
    masks = source / "annotations" / "panoptic_train2017"
    Image.new("L", SIZE[::-1]).save(masks / "a.png")
    assert "a.png: this PNG of mode L is not a panoptic mask" in refused(source, "coco")
    (masks / "a.png").unlink()
    assert "the panoptic mask a.png does not exist" in refused(source, "coco")
    panoptic(source, np.full(SIZE, 5), [{"id": 5, "category_id": 4}])
    assert "has the category 4" in refused(source, "coco")
    panoptic(source, np.full(SIZE, 5), [{"id": "5", "category_id": 17}])
    assert "has no integer `id`" in refused(source, "coco")


def test_a_map_without_its_image_is_told_and_an_image_without_its_map_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("train2017", "val2017"):
        images_in(tmp_path / "src" / "images" / name, "a.jpg")
        for stem in "ab":
            where = tmp_path / "src" / "stuffthingmaps" / name
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros(SIZE, np.uint8)).save(where / f"{stem}.png")
    assert prepared(tmp_path / "src", "coco")["splits"]["train"]["samples"] == 1
    assert "warning: 1 of 2 masks in stuffthingmaps/train2017 have no image" in capfd.readouterr().err.replace(
        "\n", " "
    )
    images_in(tmp_path / "src" / "images" / "train2017", "z.jpg")
    assert "z.jpg: this image has no mask stuffthingmaps/train2017/z.png" in refused(tmp_path / "src", "coco")
