"""Figures: the confusion matrix, and overlays on which thin things can be seen."""

from __future__ import annotations

import numpy as np
import pytest

from segdist.data.labels import plain
from segdist.evaluation.figures import _largest_confusions, confusion, overlay


def cell_color(picture: np.ndarray, num_classes: int, row: int, column: int) -> np.ndarray:
    """The colour near a cell's corner, where no figure stands."""
    cell = min(90, max(5, 640 // num_classes))
    blue = np.argwhere((picture == (8, 69, 148)).all(2))  # the first class is all right: its cell is the deepest blue
    top, left = blue.min(0)
    return picture[top + row * cell + 1, left + column * cell + 1].astype(int)


def counts_of(num_classes: int) -> np.ndarray:
    """All right but: class 1 is half taken for class 0, and the last class has no pixels."""
    counts = np.diag(np.full(num_classes, 100))
    counts[1, 0], counts[1, 1] = 50, 50
    counts[-1] = 0
    return counts


@pytest.mark.parametrize("num_classes", [3, 11, 40, 83, 150, 255])
def test_right_is_blue_wrong_is_red_and_an_absent_class_grey(num_classes: int) -> None:
    picture = np.asarray(confusion(counts_of(num_classes), [f"class {k}" for k in range(num_classes)]))
    assert picture.shape[0] <= 1800 and picture.shape[1] <= 2500
    right, wrong, nothing, absent = (
        cell_color(picture, num_classes, *at) for at in ((0, 0), (1, 0), (0, 2), (num_classes - 1, 1))
    )
    assert right.tolist() == [8, 69, 148]
    assert wrong[0] > wrong[1] + 50 and wrong[0] > wrong[2] + 50
    assert nothing.tolist() == [255, 255, 255]
    assert absent.tolist() == [225, 225, 225]


def test_the_largest_confusions_stand_beside_it_by_pixels() -> None:
    counts = np.array([[900, 90, 10], [5, 5, 0], [0, 200, 9800]])
    lines = _largest_confusions(counts, counts / counts.sum(1, keepdims=True), ["sky", "road", "car"])
    assert lines == [
        "200 px: car predicted as road (2.0% of the true class)",
        "90 px: sky predicted as road (9.0% of the true class)",
        "10 px: sky predicted as car (1.0% of the true class)",
        "5 px: road predicted as sky (50% of the true class)",
    ]
    assert _largest_confusions(np.eye(2, dtype=int), np.eye(2), ["a", "b"]) == ["none"]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("turned", [False, True])
def test_thin_things_keep_their_colour_and_thick_ones_have_a_border(width: int, turned: bool) -> None:
    classes = np.zeros((60, 80), np.uint8)
    classes[30:] = 1
    classes[:, 20 : 20 + width] = 2
    classes[10:20, 50:60] = 2
    classes = classes.T if turned else classes
    drawn = overlay_pixels(classes, ["sky", "road", "pole"])
    white = (drawn == 255).all(2)
    pole = np.zeros_like(white)
    (pole.T if turned else pole)[:, 20 : 20 + width] = True
    assert not white[pole].any()
    assert len(np.unique(drawn[pole], axis=0)) == 1
    assert np.count_nonzero(white) == (80 - width) + 39  # the horizon, and around the square, whose one corner has two


def overlay_pixels(classes: np.ndarray, names: list[str]) -> np.ndarray:
    """uint8 (H, W, 3): the overlay of an even grey image, each pixel as it was before the enlargement."""
    drawn = np.asarray(overlay(np.full((*classes.shape, 3), 100, np.uint8), classes, plain(names)))
    zoom = drawn.shape[0] // len(classes)
    return drawn[::zoom, : classes.shape[1] * zoom : zoom]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (9, 3)])
def test_the_smallest_images_have_an_overlay_too(size: tuple[int, int]) -> None:
    assert overlay_pixels(np.zeros(size, np.uint8), ["sky", "road"]).shape == (*size, 3)


def test_names_that_are_too_long_widen_nothing_without_end() -> None:
    short, long = (confusion(np.eye(3, dtype=int), ["a", "b", name]) for name in ("c", "c" * 500))
    assert long.width < short.width + 300
