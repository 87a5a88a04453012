from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segdist.data import causes, labels
from segdist.data import names as names_of
from segdist.data.labels import Class, Labels
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
        ("missing.txt", [255], "cannot read missing.txt"),
    ],
)
def test_a_wrong_contract_is_refused(names: str, void: list[int], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        names_of.parse_names(names, void)


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
        ([0, 255], "did you mean class 1"),
        ([0, 1, 255], "--void 255"),
        ([0, 1, 2], "numbered from 1"),
        ([0, 1, 9], r"unknown mask value 9 \(1 pixels\)"),
        (list(range(40)), "JPEG-compressed"),
    ],
)
def test_an_unknown_value_names_file_count_and_likely_cause(mask: list[int], message: str) -> None:
    contract = labels.plain(["a", "b"], void=())
    with pytest.raises(LabelError, match=message) as error:
        causes.check(labels.histogram(np.array(mask, np.uint8)), contract, "masks/x.png")
    assert "masks/x.png" in str(error.value)


def test_generated_colours_differ() -> None:
    colors = labels.generated_colors(150)
    assert len(set(colors)) == 150
