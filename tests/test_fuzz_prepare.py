"""Some hundred malformed files and folders: each a clear message or a mask that is exactly what was written.

A case takes a good folder, spoils one thing, and says what may follow: a refusal whose message holds some words (the file's
name among them), or success with known masks, or either. Any other exception, a hang or another mask is a failure.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import forks
import numpy as np
import pytest
import spoilt_folders  # noqa: F401  its cases
import spoilt_images  # noqa: F401
from conftest import ROOT, prepare, read_back
from spoilt import CASES, MASKS, attempt, draw_good

from segdist.data import index
from segdist.data.importers.files import Rules, decode_mask

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_good(tmp_path_factory.mktemp("good"))


def masks_of(folder: Path, out: Path, declared: dict[str, object]) -> dict[str, np.ndarray]:
    """Prepares a folder; its masks as training reads them."""
    summary = prepare(str(folder), str(out), **declared)  # type: ignore[arg-type]
    found: dict[str, np.ndarray] = {}
    for split in summary["splits"]:
        for name, (image, mask) in read_back(str(out), split).items():
            assert image.shape == (*mask.shape, 3)
            found[name] = mask
    return found


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.encode("ascii", "backslashreplace").decode()[:90])
def test_a_spoilt_folder_is_refused_by_name_or_read_exactly(good: Path, tmp_path: Path, name: str) -> None:
    folder, out = Path(shutil.copytree(good, tmp_path / "src")), tmp_path / "out"
    may = CASES[name](folder)
    message, found = attempt(lambda: masks_of(folder, out, may.declared))
    if found is None:
        assert may.said is not None, f"refused: {message}"
        assert message and "Traceback" not in message and len(message) < 2000
        assert all(words in message for words in may.said), message
        assert not (out / "index.json").exists()
        return
    assert may.masks is not None, f"accepted: {found}"
    assert sorted(found) == sorted(may.masks)
    for sample_id, mask in may.masks.items():
        assert found[sample_id].shape == mask.shape
        assert (found[sample_id] == mask).all(), sample_id
    if may.classes:
        assert index.load(str(out)).labels.names == may.classes


def test_no_flip_of_one_bit_makes_another_mask_of_a_png(good: Path) -> None:
    """Pillow reads one in twelve of these as another mask, without a word."""
    data = (good / "masks" / "p0.png").read_bytes()
    for at, bit in np.ndindex(len(data), 8):
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << bit
        message, mask = attempt(lambda spoilt=spoilt: decode_mask(bytes(spoilt), "p0.png", Rules(10**6)))
        assert "p0.png" in message if mask is None else (mask == MASKS["p0"]).all()


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 400


# -- the command ------------------------------------------------------------------------------------------------------

ALL = """
import contextlib, sys
from segdist.cli import main
for line in list(sys.argv[1:]):
    sys.argv = ["segdist", "prepare", *eval(line)]
    try:
        main()
    except SystemExit as end:
        print(end.code)
    print("-----", file=sys.stderr)
"""


def test_the_command_says_so_in_one_message(good: Path, tmp_path: Path) -> None:
    """One process for all, since its imports take the most time."""
    asked = ["a mask that is noise", "named in no UTF-8", "named '[bold]x'", "contract '" + "[" * 70 + "'", "one pair"]
    mays, lines = [], []
    for i, name in enumerate(asked):
        folder = Path(shutil.copytree(good, tmp_path / f"src{i}"))
        mays.append(CASES[name](folder))
        lines.append(repr([str(folder), str(tmp_path / f"out{i}"), "--names", str(mays[i].declared["names"])]))
    ended = forks.run(["-c", ALL, *lines], cwd=ROOT)
    codes, texts = ended.stdout.split(), ended.stderr.split("-----\n")
    assert "Traceback" not in ended.stderr
    for may, code, text in zip(mays, codes, texts[:-1], strict=True):
        assert code == ("0" if may.said is None else "2")
        assert text.count("error:") == (may.said is not None)
        assert all(words in text.replace("\n", "") for words in may.said or ())
