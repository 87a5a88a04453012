"""labelme's files to a prepared data set: masks against hand-counted and independent ones, and every mistake."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_files import SIZE, far_inside_and_outside, masks_of, noise, samples_of
from annotation_files import prepared as prepared_as
from annotation_files import refused as refused_as
from conftest import prepare
from PIL import Image

from segdist.errors import DataError


def prepared(source: Path, **said: Any) -> dict[str, Any]:
    return prepared_as(source, "labelme", **said)


def refused(source: Path, **said: Any) -> str:
    return refused_as(source, "labelme", **said)


def png(image: Image.Image) -> str:
    """An image as base64 PNG."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def shape(label: str, points: list[list[float]], kind: str | None = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def box(label: str, x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    return shape(label, [[x0, y0], [x1, y1]], "rectangle")


def labelme(
    folder: Path, stem: str, shapes: list[dict[str, Any]], size: tuple[int, int] = SIZE, /, **more: Any
) -> Path:
    """One image and its labelme file; `more` replaces fields of the file. Returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / f"{stem}.png").exists():
        noise(len(stem), size).save(folder / f"{stem}.png")
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


def test_images_may_lie_beside_above_or_inside_the_file(tmp_path: Path) -> None:
    source, inside = tmp_path / "src", noise(7)
    labelme(source, "beside", [box("a", 0, 0, 1, 1)])
    labelme(source / "shapes", "above", [box("a", 0, 0, 1, 1)], imagePath="..\\pictures\\above.png")
    (source / "pictures").mkdir()
    (source / "shapes" / "above.png").rename(source / "pictures" / "above.png")
    labelme(source, "inside", [box("a", 0, 0, 1, 1)], imagePath="C:\\elsewhere\\x.png", imageData=png(inside))
    (source / "inside.png").unlink()
    noise(9).save(source / "unlabelled.png")
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
    assert "other/p.json: this file is outside of train/ and val/" in refused(tmp_path / "src")
    (tmp_path / "src" / "other").rename(tmp_path / "src" / "val")
    assert "val/ and valid/ are both the split 'val'" in refused(tmp_path / "src")


def test_an_exif_rotation_is_applied_as_labelme_shows_the_image(tmp_path: Path) -> None:
    """labelme writes the size of the turned image."""
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
    with pytest.raises(DataError, match="holds another prepared dataset"):
        prepare(str(source), out, "labelme")


# -- mistakes in labelme's files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (shape("a", [[1, 1], [5, 5]]), "shape 1 ('a'): a polygon of 2 points cannot be drawn"),
        (shape("a", [[1, 1], [5, 5], [9, float("nan")]]), "the coordinate nan is not a number"),
        (shape("a", [[1, 1], [5, 5], [float("inf"), 1]]), "the coordinate inf is far outside of an image of 12x16"),
        (shape("a", [[1, 1], [5, 5], [1e9, 1]]), "the coordinate 1000000000.0 is far outside"),
        (shape("a", [[1, 1], [5, 5], [10**400, 1]]), "the coordinate 10000000000000000000 is far outside"),
        (shape("a", [[1, 1], [5, 5], ["7", 1]]), "the coordinate '7' is not a number"),
        (shape("a", [[1, 1], [5, 5], [5]]), "not a list of [x, y]"),
        (shape("a", [[1, 1]], "circle"), "a circle of 1 points cannot be drawn"),
        (shape("a", [[1, 1], [2, 2]], "blob"), "its shape_type 'blob' is unknown. Supported types are polygon, rectangle"),
        (shape("a", [[1, 1], [2, 2]], "mask", mask="@@"), "not base64"),
        (shape("a", [[1, 1], [2, 2]], "mask"), "not base64"),
        (shape("a", [[1, 1], [2, 2]], "mask", mask=png(noise())), "its mask is 12x16, but its points span 2x2"),
        ({"points": [[1, 1]]}, "shape 1 has no label"),
        (box("lead", 0, 0, 1, 1), "has the label 'lead', which is no class. Did you mean 'leaf'? Classes are background, leaf"),
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
        ({"imagePath": "gone.png"}, "gone.png does not exist"),
        ({"imagePath": None}, "names no image (imagePath) and holds none"),
        ({"imagePath": "good.png"}, "refers to the same image"),
        ({"imageData": "@@"}, "not base64"),
        ({"imageData": base64.b64encode(b"hello").decode()}, "not an image that can be read"),
        ({"imageWidth": 17}, "bad.png: the image is 12x16 but its mask is 12x17"),
        ({"imageHeight": None}, "height None and width 16 are not an image size"),
        (
            {"imageHeight": 10**6, "imageWidth": 10**6},
            "1000000x1000000 pixels (height x width) exceed --max-megapixels 200",
        ),
        ({"imageHeight": -5}, "height -5"),
        ({"shapes": None}, "not a labelme file"),
        ({"shapes": None, "annotations": []}, "For COCO's files use --format coco"),
    ],
)
def test_a_labelme_file_that_does_not_fit_its_image_is_named(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    noise().save(tmp_path / "secret.png")
    labelme(tmp_path / "src", "good", [box("leaf", 0, 0, 1, 1)])
    labelme(tmp_path / "src", "bad", [], **more)
    message = refused(tmp_path / "src")
    assert "bad." in message
    assert said in message


def test_an_embedded_image_is_no_bomb(tmp_path: Path) -> None:
    labelme(tmp_path / "src", "good", [box("leaf", 0, 0, 1, 1)])
    labelme(tmp_path / "src", "bad", [], imageData=png(Image.new("L", (3000, 3000))))
    assert "bad.json (imageData): 3000x3000 pixels (height x width) exceed" in refused(
        tmp_path / "src", max_megapixels=8
    )


def test_folders_that_are_not_labelmes_are_explained(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    assert "found no labelme files (*.json)" in refused(tmp_path / "src")
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
    assert "a.json: 8.33% of the image lies outside of all shapes, and no class is called `background`" in message
