"""labelme's and COCO's files to a prepared data set: masks against hand-counted and independent ones, and every mistake."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import prepare
from PIL import Image

from segdist.data import codec, index
from segdist.data.importers import coco_masks
from segdist.data.source import Source
from segdist.errors import DataError, LabelError

SIZE = (12, 16)  # height, width


def samples_of(summary: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """sample_id -> (RGB image, raw mask) of everything that was prepared."""
    found = {}
    loaded = index.load(summary["uri"])
    for split in loaded.splits:
        source = Source(summary["uri"], loaded, split)
        for g in range(len(source.sizes)):
            group = source.fetch(g)
            for row in range(group.num_rows):
                s = group.sample(row)
                image = codec.decode_image(s.image).permute(1, 2, 0).numpy()
                found[s.sample_id] = (image, codec.decode_mask(s.mask, s.mask_codec, s.height, s.width))
    return found


def masks_of(summary: dict[str, Any]) -> dict[str, np.ndarray]:
    return {sample_id: mask for sample_id, (_, mask) in samples_of(summary).items()}


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def png(image: Image.Image) -> str:
    """A picture as base64 PNG."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def far_inside_and_outside(points: list[tuple[float, float]], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(inside, outside): pixels whose centre lies in the polygon, or out of it, and 1.5 px or more from its outline.

    By the winding angle that the outline sweeps around each centre: nothing of this is in the code under test.
    """
    inside, outside = np.zeros(size, bool), np.zeros(size, bool)
    edges = list(zip(points, points[1:] + points[:1]))
    for y, x in np.ndindex(*size):
        cx, cy = x + 0.5, y + 0.5
        angle, nearest = 0.0, math.inf
        for (x0, y0), (x1, y1) in edges:
            a, b = complex(x0 - cx, y0 - cy), complex(x1 - cx, y1 - cy)
            angle += math.atan2((a.conjugate() * b).imag, (a.conjugate() * b).real) if a and b else 0.0
            d = b - a
            t = min(1.0, max(0.0, -(a.real * d.real + a.imag * d.imag) / (abs(d) ** 2 or 1.0)))
            nearest = min(nearest, abs(a + t * d))
        if nearest >= 1.5:
            (inside if abs(angle) > math.pi else outside)[y, x] = True
    return inside, outside


# -- labelme ----------------------------------------------------------------------------------------------------------


def shape(label: str, points: list[list[float]], kind: str | None = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def box(label: str, x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    return shape(label, [[x0, y0], [x1, y1]], "rectangle")


def labelme(
    folder: Path, stem: str, shapes: list[dict[str, Any]], size: tuple[int, int] = SIZE, /, **more: Any
) -> Path:
    """One picture and its labelme file; `more` replaces fields of the file. Returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / f"{stem}.png").exists():
        picture(len(stem), size).save(folder / f"{stem}.png")
    tree = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"{stem}.png",
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    } | more
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def prepared(source: Path, layout: str = "labelme", **said: Any) -> dict[str, Any]:
    return prepare(str(source), f"{source}-out", layout, overwrite=True, **said)


def test_rectangles_and_polygons_hold_the_pixels_that_their_outline_runs_through(tmp_path: Path) -> None:
    """Counted by hand: corners (2, 3) and (5, 4) are 4 x 2 pixels; the triangle is a staircase."""
    labelme(tmp_path / "src", "a", [box("b", 5.9, 4.2, 2.1, 3.7), shape("a", [[8, 0], [12, 4], [8, 4]], None)])
    labelme(tmp_path / "src", "b", [])
    mask = masks_of(prepared(tmp_path / "src"))["a"]
    expected = np.zeros(SIZE, np.uint8)
    expected[3:5, 2:6] = 2
    for y in range(5):
        expected[y, 8 : 9 + y] = 1
    assert (mask == expected).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_polygon_is_what_a_pixel_centre_test_says_up_to_its_outline(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * math.pi, 9))
    points = [
        (30 + r * math.cos(a), 25 + r * math.sin(a)) for a, r in zip(angles, rng.uniform(4, 38, 9))
    ]  # some outside
    labelme(tmp_path / "src", "a", [shape("a", [list(p) for p in points])], (50, 60))
    labelme(tmp_path / "src", "b", [], (50, 60))
    mask = masks_of(prepared(tmp_path / "src"))["a"]
    inside, outside = far_inside_and_outside(points, (50, 60))
    assert inside.sum() > 100
    assert (mask[inside] == 1).all()
    assert (mask[outside] == 0).all()


def test_circles_lines_points_and_masks_are_drawn_as_labelme_does(tmp_path: Path) -> None:
    size = (60, 80)
    stamp = np.zeros((3, 4), bool)
    stamp[1, 1:] = True
    shapes = [
        shape("circle", [[20, 20], [20, 30]], "circle"),
        shape("line", [[40, 10], [70, 10]], "line"),
        shape("strip", [[40, 30], [60, 30], [60, 50]], "linestrip"),
        shape("point", [[12, 50]], "point"),
        shape("stamp", [[77, 57], [80, 59]], "mask", mask=png(Image.fromarray(stamp))),  # its last column is outside
        shape("turned", [[30, 40], [34, 44], [30, 48], [26, 44]], "oriented_rectangle"),
    ]
    labelme(tmp_path / "src", "a", shapes, size)
    labelme(tmp_path / "src", "b", [], size)
    summary = prepared(tmp_path / "src")
    mask = masks_of(summary)["a"]
    value = {n: i for i, n in enumerate(summary["classes"])}
    y, x = np.mgrid[: size[0], : size[1]]

    def close(name: str, distance: np.ndarray, radius: float, slack: float = 1.0) -> None:
        assert (mask[distance <= radius - slack] == value[name]).all(), name
        assert (mask[distance >= radius + slack] != value[name]).all(), name

    close("circle", np.hypot(x - 20, y - 20), 10)
    close("point", np.hypot(x - 12, y - 50), 5)
    close("turned", np.abs(x - 30) + np.abs(y - 44), 4)
    assert (mask == value["line"]).sum() == pytest.approx(30 * 10, rel=0.15)
    assert set(np.flatnonzero((mask == value["line"]).any(1))) <= set(range(4, 17))
    assert (mask == value["strip"]).sum() == pytest.approx(2 * 20 * 10 + 25, rel=0.2)
    assert np.argwhere(mask == value["stamp"]).tolist() == [[58, 78], [58, 79]]


def test_later_shapes_lie_above_and_ignored_ones_are_void(tmp_path: Path) -> None:
    shapes = [
        box("a", 0, 0, 9, 9),
        box("b", 5, 5, 11, 11),
        box("__ignore__", 8, 0, 9, 3),
        box("_background_", 0, 0, 1, 1),
    ]
    labelme(tmp_path / "src", "x", shapes)
    labelme(tmp_path / "src", "y", [box("a", 0, 0, 1, 1)])
    summary = prepared(tmp_path / "src")
    assert summary["classes"] == ["background", "a", "b"]
    expected = np.zeros(SIZE, np.uint8)
    expected[:10, :10], expected[5:, 5:12], expected[:4, 8:10], expected[:2, :2] = 1, 2, 255, 0
    assert (masks_of(summary)["x"] == expected).all()


def two_labels(folder: Path) -> Path:
    labelme(folder, "x", [box("crack", 0, 0, 3, 3), box("leaf", 4, 4, 7, 7)])
    labelme(folder, "y", [box("leaf", 0, 0, 1, 1)])
    return folder


def test_labels_txt_and_names_fix_the_order_of_classes_by_name(tmp_path: Path) -> None:
    source = two_labels(tmp_path / "src")
    assert prepared(source)["classes"] == ["background", "crack", "leaf"]
    (source / "labels.txt").write_text("__ignore__\n_background_\nleaf\ncrack\n", encoding="utf-8-sig")
    summary = prepared(source)
    assert summary["classes"] == ["background", "leaf", "crack"]
    assert masks_of(summary)["x"][0, 0] == 2
    (source / "labels.txt").write_text("leaf\ncrack\nfrog\n", encoding="utf-8")  # as the window's --labels has it
    assert prepared(source)["classes"] == ["background", "leaf", "crack", "frog"]
    summary = prepared(source, names="leaf=7,background=300,crack=1")
    assert summary["classes"] == ["leaf", "background", "crack"]
    mask = masks_of(summary)["x"]
    assert (mask[0, 0], mask[4, 4], mask[11, 11]) == (1, 7, 300)


def test_pictures_may_lie_beside_above_or_inside_the_file(tmp_path: Path) -> None:
    source, inside = tmp_path / "src", picture(7)
    labelme(source, "beside", [box("a", 0, 0, 1, 1)])
    labelme(source / "shapes", "above", [box("a", 0, 0, 1, 1)], imagePath="..\\pictures\\above.png")
    (source / "pictures").mkdir()
    (source / "shapes" / "above.png").rename(source / "pictures" / "above.png")
    labelme(source, "inside", [box("a", 0, 0, 1, 1)], imagePath="C:\\elsewhere\\x.png", imageData=png(inside))
    (source / "inside.png").unlink()
    picture(9).save(source / "unlabelled.png")
    found = samples_of(prepared(source, names="background,a"))
    assert sorted(found) == ["beside", "inside", "shapes/above"]
    assert (found["inside"][0] == np.array(inside)).all()


def test_train_and_val_folders_are_the_splits(tmp_path: Path) -> None:
    for split, num in (("train", 3), ("valid", 2)):
        for i in range(num):
            labelme(tmp_path / "src" / split, f"p{i}", [box("a", 0, 0, i, i)])
    summary = prepared(tmp_path / "src")
    assert {k: v["samples"] for k, v in summary["splits"].items()} == {"train": 3, "val": 2}
    labelme(tmp_path / "src" / "other", "p", [])
    assert "other/p.json: this file lies outside of train/ and val/" in refused(tmp_path / "src")
    (tmp_path / "src" / "other").rename(tmp_path / "src" / "val")
    assert "val/ and valid/ are both the split 'val'" in refused(tmp_path / "src")


def test_an_exif_rotation_is_applied_as_labelme_shows_the_picture(tmp_path: Path) -> None:
    """labelme writes the size of the turned picture."""
    source = tmp_path / "src"
    labelme(source, "b", [box("a", 0, 0, 1, 1)])
    labelme(source, "a", [box("a", 0, 0, 1, 1)], imagePath="a.jpg")
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[:, 6:] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees: the right half lies below then
    Image.fromarray(pixels).save(source / "a.jpg", exif=exif, quality=95)
    image, _ = samples_of(prepared(source))["a"]
    assert image.shape[:2] == SIZE
    assert image[:4].mean() < 20 < 180 < image[8:].mean()


def test_a_changed_shape_is_another_source_and_the_index_of_an_own_folder_is_passed_over(tmp_path: Path) -> None:
    source = two_labels(tmp_path / "src")
    out = str(source / "prepared")
    prepare(str(source), out, "labelme")
    prepare(str(source), out, "labelme")
    labelme(source, "y", [box("leaf", 0, 0, 2, 2)])
    with pytest.raises(DataError, match="holds another prepared data set"):
        prepare(str(source), out, "labelme")


# -- mistakes in labelme's files --------------------------------------------------------------------------------------


def refused(source: Path, layout: str = "labelme", **said: Any) -> str:
    """The message for preparing the source, and proof that nothing counts as prepared."""
    with pytest.raises((DataError, LabelError)) as error:
        prepare(str(source), f"{source}-refused", layout, **said)
    assert not Path(f"{source}-refused", "index.json").exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (shape("a", [[1, 1], [5, 5]]), "shape 1 ('a'): a polygon of 2 points cannot be drawn"),
        (shape("a", [[1, 1], [5, 5], [9, float("nan")]]), "the coordinate nan is not a number"),
        (shape("a", [[1, 1], [5, 5], [float("inf"), 1]]), "the coordinate inf is far outside of a picture of 16x12"),
        (shape("a", [[1, 1], [5, 5], [1e9, 1]]), "the coordinate 1000000000.0 is far outside"),
        (shape("a", [[1, 1], [5, 5], [10**400, 1]]), "the coordinate 10000000000000000000 is far outside"),
        (shape("a", [[1, 1], [5, 5], ["7", 1]]), "the coordinate '7' is not a number"),
        (shape("a", [[1, 1], [5, 5], [5]]), "not a list of [x, y]"),
        (shape("a", [[1, 1]], "circle"), "a circle of 1 points cannot be drawn"),
        (shape("a", [[1, 1], [2, 2]], "blob"), "its shape_type 'blob' is unknown; known are polygon, rectangle"),
        (shape("a", [[1, 1], [2, 2]], "mask", mask="@@"), "not base64"),
        (shape("a", [[1, 1], [2, 2]], "mask"), "not base64"),
        (shape("a", [[1, 1], [2, 2]], "mask", mask=png(picture())), "its mask is 16x12, but its points span 2x2"),
        ({"points": [[1, 1]]}, "shape 1 has no label"),
        (box("lead", 0, 0, 1, 1), "has the label 'lead', which is no class; did you mean 'leaf'? Classes are background, leaf"),
    ],
)  # fmt: skip
def test_a_shape_that_cannot_be_drawn_is_named_with_its_file(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    labelme(tmp_path / "src", "good", [box("leaf", 0, 0, 1, 1)])
    labelme(tmp_path / "src", "bad", [wrong])
    message = refused(tmp_path / "src", names="background,leaf,a")
    assert "bad.json: shape 1" in message
    assert said in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"imagePath": "../secret.png"}, "imagePath '../secret.png' leads out of"),
        ({"imagePath": "..\\..\\secret.png"}, "leads out of"),
        ({"imagePath": "/etc/passwd"}, "leads out of"),
        ({"imagePath": "C:\\photos\\bad.png"}, "or save the file with imageData"),
        ({"imagePath": "gone.png"}, "there is no picture"),
        ({"imagePath": None}, "names no picture (imagePath) and holds none"),
        ({"imagePath": "good.png"}, "names the same picture"),
        ({"imageData": "@@"}, "not base64"),
        ({"imageData": base64.b64encode(b"hello").decode()}, "not an image that can be read"),
        ({"imageWidth": 17}, "bad.png: the image is 12x16 but its mask is 12x17"),
        ({"imageHeight": None}, "height None and width 16 are not the size of a picture"),
        ({"imageHeight": 10**6, "imageWidth": 10**6}, "1000000x1000000 pixels exceed --max-megapixels 200"),
        ({"imageHeight": -5}, "height -5"),
        ({"shapes": None}, "not a labelme file"),
        ({"shapes": None, "annotations": []}, "for COCO's files say --format coco"),
    ],
)
def test_a_labelme_file_that_does_not_fit_its_picture_is_named(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    picture().save(tmp_path / "secret.png")
    labelme(tmp_path / "src", "good", [box("leaf", 0, 0, 1, 1)])
    labelme(tmp_path / "src", "bad", [], **more)
    message = refused(tmp_path / "src")
    assert "bad." in message
    assert said in message


def test_an_embedded_picture_is_no_bomb(tmp_path: Path) -> None:
    labelme(tmp_path / "src", "good", [box("leaf", 0, 0, 1, 1)])
    labelme(tmp_path / "src", "bad", [], imageData=png(Image.new("L", (3000, 3000))))
    assert "bad.json (imageData): 3000x3000 pixels exceed" in refused(tmp_path / "src", max_megapixels=8)


def test_folders_that_are_not_labelmes_are_explained(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    assert "no labelme files (*.json) are there" in refused(tmp_path / "src")
    path = labelme(tmp_path / "src", "a", [])
    assert "hold no labelled shapes" in refused(tmp_path / "src")
    for text in ("{", "[" * 100_000, "\xff"):
        path.write_bytes(text.encode("latin-1"))
        assert "a.json: broken JSON" in refused(tmp_path / "src")


def test_names_without_a_background_are_fine_until_a_pixel_needs_it(tmp_path: Path) -> None:
    for stem in "ab":
        labelme(tmp_path / "src", stem, [box("road", 0, 0, 15, 5), box("sky", 0, 6, 15, 11)])
    assert prepared(tmp_path / "src", names="road,sky")["classes"] == ["road", "sky"]
    labelme(tmp_path / "src", "a", [box("road", 0, 0, 15, 5), box("sky", 0, 6, 15, 10)])
    message = refused(tmp_path / "src", names="road,sky")
    assert "a.json: 8.33% of the picture lies outside of all shapes, and no class is called `background`" in message


# -- COCO -------------------------------------------------------------------------------------------------------------

CAT, DOG, SKY = {"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 200, "name": "sky"}


def images_in(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name)


def entry(number: int, file_name: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "height": SIZE[0], "width": SIZE[1]} | more


def note(image: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    """An annotation with an outline; boxes and areas of a kind that nothing may rely on."""
    note.count += 1  # type: ignore[attr-defined]
    outline = {"id": note.count, "image_id": image, "category_id": category, "segmentation": segmentation}  # type: ignore[attr-defined]
    return outline | {"bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0} | more


note.count = 0  # type: ignore[attr-defined]


def rect(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    """Whole corners: exactly the pixels [y0:y1, x0:x1]."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def runs(mask: np.ndarray) -> dict[str, Any]:
    """The uncompressed RLE of a mask, written down here."""
    flat, counts, value, length = mask.T.ravel(), [], False, 0
    for pixel in flat:
        if pixel != value:
            counts.append(length)
            value, length = bool(pixel), 0
        length += 1
    return {"size": list(mask.shape), "counts": [*counts, length]}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's own compressed RLE."""
    from pycocotools import mask as api

    rle = api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def coco(path: Path, images: list[Any], notes: list[Any], categories: list[Any], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = {"images": images, "annotations": notes, "categories": categories} | more
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def instances(folder: Path, *notes: dict[str, Any], categories: Any = (CAT, DOG), **more: Any) -> Path:
    """Two sets, train2017 with images a (of `notes`) and b, val2017 with c."""
    images_in(folder / "train2017", "a.jpg", "b.jpg")
    images_in(folder / "val2017", "c.jpg")
    where = folder / "annotations"
    images = [entry(1, "a.jpg", **more), entry(2, "b.jpg")]
    coco(where / "instances_train2017.json", images, list(notes), list(categories))
    coco(where / "instances_val2017.json", [entry(3, "c.jpg")], [note(3, 18, rect(0, 0, 2, 2))], list(categories))
    return folder


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


def panoptic(folder: Path, ids: np.ndarray, segments: list[dict[str, Any]], beside: str = "annotations") -> Path:
    """A panoptic set of two images, a with `ids` (H, W) and b all void, and a third for validation."""
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], 2).astype(np.uint8)
    black = np.zeros((*SIZE, 3), np.uint8)
    categories = [CAT | {"color": [1, 2, 3], "isthing": 1}, SKY | {"color": [70, 130, 180], "isthing": 0}]
    for name, stems in (("train2017", "ab"), ("val2017", "c")):
        images_in(folder / "images" / name, *(f"{s}.jpg" for s in stems))
        where = folder / beside / f"panoptic_{name}"
        where.mkdir(parents=True, exist_ok=True)
        notes = []
        for s in stems:
            Image.fromarray(colors if s == "a" else black).save(where / f"{s}.png")
            info = segments if s == "a" else []
            notes.append({"image_id": ord(s), "file_name": f"{s}.png", "segments_info": info})
        images = [entry(ord(s), f"{s}.jpg") for s in stems]
        info = {"url": "http://cocodataset.org"}
        coco(folder / "annotations" / f"panoptic_{name}.json", images, notes, categories, info=info)
    return folder


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


def test_a_panoptic_picture_and_its_segments_are_both_the_source(tmp_path: Path) -> None:
    ids = np.full(SIZE, 5)
    source = panoptic(tmp_path / "src", ids, [{"id": 5, "category_id": 17}])
    prepare(str(source), str(tmp_path / "out"), "coco")
    panoptic(source, ids, [{"id": 5, "category_id": 200}])
    with pytest.raises(DataError, match="holds another prepared data set"):
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
    assert "--subset 'stuff' is not there; there is instances" in refused(source, "coco", subset="stuff")


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
    assert "none of its 2 images is there, such as a.jpg; looked in" in refused(source, "coco")


# -- mistakes in COCO's files -----------------------------------------------------------------------------------------


def half() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[:6] = True
    return mask


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"segmentation": [[1, 1, 5, 5]]}, "a polygon of 2 points has no area"),
        ({"segmentation": [[1, 1, 5, 5, 6]]}, "its outline is not [[x, y, x, y, ...], ...]"),
        ({"segmentation": [1, 1, 5, 5, 6, 2]}, "its outline is not [[x, y, x, y, ...], ...]"),
        ({"segmentation": [[1, 1, 5, float("nan"), 6, 2]]}, "the coordinate nan is not a number"),
        ({"segmentation": [[1, 1, 5, 1e12, 6, 2]]}, "the coordinate 1000000000000.0 is far outside of a picture of 16x12"),
        ({"segmentation": [[1, 1, 5, None, 6, 2]]}, "the coordinate None is not a number"),
        ({"segmentation": []}, "1 annotations have no outline, only a box (the first is 77)"),
        ({"segmentation": {"size": [12, 17], "counts": [204]}}, "its RLE is of size [12, 17], but the picture of [12, 16]"),
        ({"segmentation": {"size": [12, 16], "counts": [100]}}, "its RLE does not fill the picture of 192 pixels"),
        ({"segmentation": {"size": [12, 16], "counts": [200, -8]}}, "its RLE does not fill the picture"),
        ({"segmentation": {"size": [12, 16], "counts": [10**30]}}, "its RLE does not fill the picture"),
        ({"segmentation": {"size": [12, 16], "counts": "\u00ff"}}, "its RLE cannot be read"),
        ({"segmentation": {"size": [12, 16], "counts": "P" * 99}}, "its RLE cannot be read"),
        ({"segmentation": {"size": [12, 16]}}, "its RLE cannot be read"),
        ({"segmentation": {"size": [12, 16], "counts": []}}, "its RLE does not fill the picture"),
        ({"category_id": 99}, "annotation 77 has the category 99, which `categories` does not list"),
        ({"image_id": 99}, "annotation 77 belongs to image 99, which `images` does not list"),
        ({"image_id": [1]}, "annotation 77 belongs to image [1], which `images` does not list"),
        ({"segments_info": []}, "call the file panoptic_SET.json"),
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
        ({"images": [entry(1, "../a.jpg")]}, "file_name '../a.jpg' of image 1 leads out of the data set"),
        ({"images": [entry(1, "/etc/passwd")]}, "leads out of the data set"),
        ({"images": [entry(1, "a.jpg"), entry(2, "./a.jpg")]}, "images 1 and 2 have one file_name, a.jpg"),
        ({"images": [entry(1, "a.jpg"), entry(1, "b.jpg")]}, "two images have the id 1: a.jpg and b.jpg"),
        ({"images": [{"id": 1}]}, "needs an `id` and a `file_name`"),
        ({"images": {}}, "`images` is not a list of objects"),
        ({"images": [entry(1, "a.jpg", width=17)]}, "a.jpg: the image is 12x16 but its mask is 12x17"),
        ({"images": [entry(1, "a.jpg", width=10**9, height=10**9)]}, "exceed --max-megapixels 200"),
        ({"images": [entry(1, "a.jpg", width=None)]}, "height 12 and width None are not the size of a picture"),
        ({"images": [entry(1, "a.jpg", width=True)]}, "height 12 and width True are not the size"),
        ({"categories": [{"id": 70_000, "name": "cat"}]}, "category 'cat' has the id 70000; masks hold 0..65535"),
        ({"categories": [{"id": "1", "name": "cat"}]}, "needs a whole number `id` and a `name`"),
        ({"categories": [CAT, CAT | {"name": "lynx"}]}, "categories 'cat' and 'lynx' share the id 17"),
        ({"categories": [CAT, SKY | {"name": "cat"}]}, "class name 'cat' is declared twice"),
        ({"categories": [CAT | {"name": "lynx"}]}, "category 17 is 'cat', but 'lynx' in"),
        ({"categories": [{"id": i, "name": f"c{i}"} for i in range(300, 600)]}, "a data set has 2 to 255 classes"),
        ({"annotations": "[]"}, "`annotations` is not a list of objects"),
    ],
)  # fmt: skip
def test_a_coco_file_that_contradicts_itself_or_its_images_is_named(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    source = instances(tmp_path / "src", categories=[CAT])
    whole = {"images": [entry(1, "a.jpg")], "annotations": [], "categories": [CAT]}
    picture().save(tmp_path / "a.jpg")
    for name in ("train2017", "val2017"):
        tree = whole | (change if name == "train2017" else {"images": [entry(3, "c.jpg")]})
        (source / "annotations" / f"instances_{name}.json").write_text(json.dumps(tree), encoding="utf-8")
    assert said in refused(source, "coco")


def test_folders_that_are_not_cocos_are_explained(tmp_path: Path) -> None:
    source = tmp_path / "src"
    images_in(source / "train2017", "a.jpg")
    assert "no annotations of COCO are there" in refused(source, "coco")
    path = source / "annotations" / "instances_train2017.json"
    path.parent.mkdir()
    for text, said in (
        ("{", "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ("{}", "not a COCO file"),
        ('{"shapes": []}', "say --format labelme"),
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
    assert "is 'minival' for training or validation?" in refused(source, "coco")
    (notes / "instances_minival.json").rename(notes / "instances_train2014.json")
    images_in(source / "train2014", "c.jpg")
    assert "there is another set for train" in refused(source, "coco")
    (notes / "instances_train2014.json").rename(source / "instances_train2017.json")
    assert "are both instances of 'train2017'; move one elsewhere, or give the file itself" in refused(source, "coco")


def test_panoptic_masks_that_do_not_fit_their_json_are_named(tmp_path: Path) -> None:
    source = panoptic(tmp_path / "src", np.full(SIZE, 9), [{"id": 5, "category_id": 17}])
    assert "panoptic_train2017/a.png: segment 9 (192 pixels; 1 such in all) is not in" in refused(source, "coco")
    masks = source / "annotations" / "panoptic_train2017"
    Image.new("L", SIZE[::-1]).save(masks / "a.png")
    assert "a.png: this PNG of mode L is no panoptic mask" in refused(source, "coco")
    (masks / "a.png").unlink()
    assert "the panoptic mask a.png is not there" in refused(source, "coco")
    panoptic(source, np.full(SIZE, 5), [{"id": 5, "category_id": 4}])
    assert "has the category 4" in refused(source, "coco")
    panoptic(source, np.full(SIZE, 5), [{"id": "5", "category_id": 17}])
    assert "has no whole number `id`" in refused(source, "coco")


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
