from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from segdist.data import labels, unknown_values
from segdist.data import names as names_of
from segdist.data.labels import Class, Labels
from segdist.data.presets import CONTRACTS
from segdist.errors import LabelError


def test_one_table_applies_the_contract() -> None:
    contract = Labels((Class("a", (0, 7), (1, 1, 1)), Class("b", (300,), (2, 2, 2))), void=(9,))
    assert contract.table(np.uint8)[[0, 7, 9]].tolist() == [0, 0, 255]
    assert contract.table(np.uint16)[[0, 7, 9, 300]].tolist() == [0, 0, 255, 1]


def test_a_contract_survives_its_json() -> None:
    contract = labels.plain(["a", "b", "c"], void=(255, 254))
    assert Labels.from_json(json.loads(json.dumps(contract.to_json()))) == contract


@pytest.mark.parametrize(
    ("names", "void", "message"),
    [
        ("a", [255], "declares 1"),
        ("a,a", [255], "'a' is declared twice"),
        ("a=1,b=1", [255], "raw value 1 is declared twice: 'a' and 'b'"),
        ("a=x,b=1", [255], "cannot read 'a=x'"),
        ("a=1,b=70000", [255], "outside 0..65535"),
        ("missing.txt", [255], "no such file: missing.txt"),
    ],
)
def test_a_wrong_contract_is_refused(names: str, void: list[int], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        names_of.parse_names(names, void)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x1b[31mred", "nul\0", "a\u2028b", "\udc80"])
def test_class_names_hold_no_control_characters(name: str) -> None:
    with pytest.raises(LabelError, match=r"class name .* contains a control character"):
        labels.plain(["a", name])


def test_names_come_from_every_usual_file(tmp_path: Path) -> None:
    files = {
        "names.txt": "sky\nroad\n",
        "list.json": '["sky", "road"]',
        "id2label.json": '{"1": "road", "0": "sky"}',
        "contract.yaml": "classes: [{name: sky, raw: [0]}, {name: road, raw: [1]}]",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        contract = names_of.parse_names(str(tmp_path / name), [255])
        assert contract.names == ["sky", "road"], name
        assert contract.table(np.uint8)[[0, 1, 255]].tolist() == [0, 1, 255], name


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([0, 255], "Did you mean class 1"),
        ([0, 1, 255], "--void 255"),
        ([0, 1, 2], "numbered from 1"),
        ([0, 1, 9], r"unknown mask value 9 \(1 pixels\)"),
        (list(range(40)), "JPEG-compressed"),
    ],
)
def test_an_unknown_value_names_file_count_and_likely_cause(mask: list[int], message: str) -> None:
    contract = labels.plain(["a", "b"], void=())
    with pytest.raises(LabelError, match=message) as error:
        unknown_values.check(labels.histogram(np.array(mask, np.uint8)), contract, "masks/x.png")
    assert "masks/x.png" in str(error.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_counting_a_large_mask_takes_little_memory(dtype: type) -> None:
    mask = np.random.default_rng(0).integers(0, 256, (2500, 1700)).astype(dtype)
    tracemalloc.start()
    counts = labels.histogram(mask)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * mask.size
    assert counts[:256].tolist() == [(mask == v).sum() for v in range(256)]
    assert counts.sum() == mask.size


@pytest.mark.parametrize(
    ("names", "void", "values", "message"),
    [
        ("a=0,b=300", [], [0, 255], "16-bit masks clipped"),
        ("a=1,b=2", [], [0, 1, 2], "--void 0"),
        ("a,b,c,d", [], [0, 50, 100, 150], "multiples of 50"),
        ("a=24,b=26", [0], [0, 24, 24001, 26002], "instance IDs"),
    ],
)
def test_the_cause_is_told_from_the_values(names: str, void: list[int], values: list[int], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        unknown_values.check(labels.histogram(np.array(values, np.uint16)), names_of.parse_names(names, void), "x.png")


@pytest.mark.parametrize(
    ("names", "edges"),
    [
        (",".join(f"c{i}" for i in range(150)), range(150, 250)),
        ("background=0,object=255", (17, 90, 128, 200, 240)),
        ("background=0,object=1", (17, 90, 128, 200, 240)),
    ],
)
def test_soft_edges_are_recognised_by_their_many_values_in_few_pixels(names: str, edges: Iterable[int]) -> None:
    mask = np.array([0] * 5000 + [255] * 5000 + list(edges), np.uint8)
    with pytest.raises(LabelError, match="anti-aliased") as error:
        unknown_values.check(labels.histogram(mask), names_of.parse_names(names, []), "x.png")
    assert "--void" not in str(error.value)


@pytest.mark.parametrize(("num", "proposed"), [(2, "--void 2,3"), (3, "--void 2,3,4"), (4, ""), (8, "")])
def test_void_is_proposed_for_all_of_few_values_or_not_at_all(num: int, proposed: str) -> None:
    mask = np.arange(num + 2, dtype=np.uint8)
    with pytest.raises(LabelError, match="--names name=value") as error:
        unknown_values.check(labels.histogram(mask), labels.plain(["a", "b"], void=()), "x.png")
    assert ("--void" in str(error.value)) == bool(proposed)
    assert str(error.value).endswith(proposed)


def test_names_may_begin_at_one_with_void_below() -> None:
    contract = names_of.parse_names("wall,building", first=1)
    assert contract.table(np.uint8)[[0, 1, 2, 255]].tolist() == [255, 0, 1, 255]
    assert contract.known_values == {0, 1, 2, 255}


@pytest.mark.parametrize("name", sorted(CONTRACTS))
def test_a_preset_is_whole(name: str) -> None:
    contract = names_of.parse_names(name)
    raw = np.array(sorted(contract.known_values), np.uint16)
    classes = contract.table(np.uint16)[raw]
    assert set(classes.tolist()) - {255} == set(range(contract.num_classes))
    assert (classes == 255).sum() == len(contract.void)
    assert Labels.from_json(json.loads(json.dumps(contract.to_json()))) == contract


def test_known_contracts_hold_their_authors_facts() -> None:
    """A few that are easily got wrong: the first and last class, values that differ from class numbers, colours."""
    classes = {name: {c.name: (c.raw, c.color) for c in contract.classes} for name, contract in CONTRACTS.items()}
    assert {name: len(c) for name, c in classes.items()} == {
        "ade20k": 150, "camvid": 11, "cityscapes": 19, "pets": 3, "pets-binary": 2, "voc": 21,
    }  # fmt: skip
    assert classes["ade20k"]["wall"] == ((1,), (120, 120, 120))
    assert classes["ade20k"]["flag"] == ((150,), (92, 0, 255))
    assert classes["cityscapes"]["road"] == ((7,), (128, 64, 128))
    assert classes["cityscapes"]["bicycle"] == ((33,), (119, 11, 32))
    assert classes["cityscapes"]["train"] == ((31,), (0, 80, 100))
    assert classes["voc"]["tv monitor"] == ((20,), (0, 64, 128))
    assert classes["pets"]["border"][0] == (3,)


def test_an_id2label_says_void_by_name(tmp_path: Path) -> None:
    path = tmp_path / "id2label.json"
    path.write_text('{"0": "unlabeled", "1": "road", "2": "sky"}')
    contract = names_of.parse_names(str(path))
    assert contract.names == ["road", "sky"]
    assert contract.table(np.uint8)[:3].tolist() == [255, 0, 1]


def test_a_contract_by_colours_comes_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text("classes: [{name: a, rgb: ['#010203', [4, 5, 6]]}, {name: b, rgb: [7, 8, 9]}]\nvoid: ['#000000']")
    contract = names_of.parse_names(str(path))
    assert contract.rgb == ((1, 2, 3), (4, 5, 6), (7, 8, 9), (0, 0, 0))
    assert contract.table(np.uint8)[:4].tolist() == [0, 0, 1, 255]
    path.write_text("classes: [{name: a, rgb: '#010203'}, {name: b, rgb: '#010203'}]")
    with pytest.raises(LabelError, match=r"\[1, 2, 3\] is declared twice"):
        names_of.parse_names(str(path))


def test_generated_colours_differ() -> None:
    colors = labels.generated_colors(150)
    assert len(set(colors)) == 150
