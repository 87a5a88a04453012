"""Foreign folders to a prepared data set; and every mistake that people make, with its message."""

from __future__ import annotations

import io
import json
import shutil
import signal
import tracemalloc
from pathlib import Path

import forks
import numpy as np
import pytest
from conftest import plain_folder, prepare, read_back, write_pair
from PIL import Image

from segdist.cli.app import mask_values
from segdist.data import index
from segdist.data.importers import files
from segdist.data.importers.files import Text
from segdist.data.importers.layout import ImportOptions, Pair, split_off
from segdist.data.labels import Class, Labels
from segdist.errors import DataError, LabelError, StorageError

NAMES = "a,b,c"


def test_a_folder_comes_back_pixel_for_pixel(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src", num=40)
    summary = prepare(str(source), str(tmp_path / "out"), names=NAMES, val_share=0.25)
    samples = {k: v["samples"] for k, v in summary["splits"].items()}
    assert samples == {"train": 30, "val": 10}
    found = read_back(str(tmp_path / "out"), "train") | read_back(str(tmp_path / "out"), "val")
    assert sorted(found) == sorted(f"p{i}" for i in range(40))
    for name, (image, mask) in found.items():
        assert (image == np.array(Image.open(source / "images" / f"{name}.png"))).all()
        assert (mask == np.array(Image.open(source / "masks" / f"{name}.png"))).all()


def test_the_index_counts_every_pixel(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src", num=40)
    prepare(str(source), str(tmp_path / "out"), names=NAMES)
    masks = np.stack([np.array(Image.open(p)) for p in (source / "masks").iterdir()])
    splits = index.load(str(tmp_path / "out")).splits.values()
    for k in range(3):
        assert sum(s.class_pixels[k] for s in splits) == (masks == k).sum()
    assert sum(s.void_pixels for s in splits) == (masks == 255).sum()


def test_training_rows_are_shuffled_once_and_row_groups_are_equal(tmp_path: Path) -> None:
    prepare(str(plain_folder(tmp_path / "src", num=100)), str(tmp_path / "out"), names=NAMES, val_share=0.3)
    loaded = index.load(str(tmp_path / "out"))
    names = list(read_back(str(tmp_path / "out"), "train"))
    assert names != sorted(names)
    assert list(read_back(str(tmp_path / "out"), "val")) == sorted(read_back(str(tmp_path / "out"), "val"))
    sizes = loaded.split("train").row_group_sizes()
    assert len(set(sizes[:-1].tolist())) == 1
    assert sizes[-1] <= sizes[0]


def test_splits_may_stand_above_or_below_images_and_masks(tmp_path: Path) -> None:
    for split, num in (("train", 4), ("val", 2)):
        for i in range(num):
            pixels, mask = np.full((8, 8, 3), i, np.uint8), np.eye(8, dtype=np.uint8)
            write_pair(tmp_path / "above", f"p{i}", pixels, mask, split)
            for kind, array in (("images", pixels), ("masks", mask)):
                path = tmp_path / "below" / kind / split / f"p{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    for layout in ("above", "below"):
        summary = prepare(str(tmp_path / layout), str(tmp_path / f"{layout}-out"), names="a,b")
        assert {k: v["samples"] for k, v in summary["splits"].items()} == {"train": 4, "val": 2}


def camvid_folder(source: Path) -> str:
    for split in ("train", "val"):
        for i in range(3):
            mask = np.arange(96, dtype=np.uint8).reshape(8, 12) % 12
            for folder, array in ((split, np.zeros((8, 12, 3), np.uint8)), (f"{split}annot", mask)):
                (source / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(source / folder / f"f{i}.png")
    return str(source)


def test_camvid_keeps_its_void_and_its_splits(tmp_path: Path) -> None:
    summary = prepare(camvid_folder(tmp_path / "src"), str(tmp_path / "out"), "camvid")
    assert summary["classes"][0] == "sky"
    assert len(summary["classes"]) == 11
    assert index.load(str(tmp_path / "out")).split("val").void_pixels == 3 * 8


def test_limit_takes_the_first_of_each_split(tmp_path: Path) -> None:
    summary = prepare(str(plain_folder(tmp_path / "src", 20)), str(tmp_path / "out"), names=NAMES, limit=3)
    assert {k: v["samples"] for k, v in summary["splits"].items()} == {"train": 3, "val": 3}


def divided(num: int, share: float, seed: int = 0) -> tuple[set[str], set[str]]:
    """The names that go to train and to val of `num` pairs."""
    nothing = Text("nothing", b"")
    splits = split_off([Pair(f"p{i}", nothing, nothing) for i in range(num)], ImportOptions(share, seed))
    train, val = ({p.sample_id for p in splits[s]} for s in ("train", "val"))
    assert len(train) + len(val) == len(train | val) == num
    return train, val


def test_from_50_pairs_on_a_split_moves_no_image_when_others_are_added() -> None:
    for num in (50, 64, 300):
        (_, before), (_, after) = divided(num, 0.2), divided(1000, 0.2)
        assert before == after & {f"p{i}" for i in range(num)}
    assert 160 < len(after) < 240


@pytest.mark.parametrize(
    ("num", "share", "num_val"),
    [(2, 0.01, 1), (2, 0.9, 1), (3, 0.2, 1), (10, 0.2, 2), (10, 0.9, 9), (11, 0.99, 10), (49, 0.2, 10), (1, 0.9, 0)],
)
def test_a_small_folder_is_divided_by_the_share_that_was_asked_for(num: int, share: float, num_val: int) -> None:
    found = [divided(num, share, seed)[1] for seed in (0, 0, 1, 2, 3)]
    assert {len(val) for val in found} == {num_val}
    assert found[0] == found[1]
    assert num < 10 or len({frozenset(val) for val in found}) > 1


def test_a_large_folder_leaves_neither_split_empty() -> None:
    assert [len(divided(50, share)[0]) for share in (1e-9, 1.0)] == [49, 1]


def test_palette_masks_are_read_as_indices_and_16_bits_stay(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src", 4, values=(0, 1, 2))
    mask = Image.fromarray(np.tile(np.array([0, 1, 2, 2], np.uint8), (8, 3)))
    mask.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    mask.save(source / "masks" / "p0.png")
    Image.fromarray(np.tile(np.array([0, 1, 700, 700], np.uint16), (8, 3))).save(source / "masks" / "p1.png")
    prepare(str(source), str(tmp_path / "out"), names="a=0,b=1,c=2,d=700")
    found = read_back(str(tmp_path / "out"), "train") | read_back(str(tmp_path / "out"), "val")
    assert found["p0"][1][0, :4].tolist() == [0, 1, 2, 2]
    assert found["p1"][1].dtype == np.uint16
    assert found["p1"][1][0, :4].tolist() == [0, 1, 700, 700]


def colour_folder(folder: Path, mode: str = "RGB", noise: int = 0) -> Path:
    """Four pairs whose masks show sky blue, road purple and black."""
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    colors = np.array([[70, 130, 180], [128, 64, 128], [0, 0, 0]])
    for i in range(4):
        mask = colors[rng.integers(0, 3, (8, 12))] + other.integers(0, noise + 1, (8, 12, 3))
        write_pair(folder, f"p{i}", np.zeros((8, 12, 3), np.uint8), mask.astype(np.uint8))
        path = folder / "masks" / f"p{i}.png"
        image = Image.open(path)
        (image.quantize(4) if mode == "P" else image.convert(mode)).save(path)
    return folder


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_masks_of_colours_are_read_by_the_colours_declared(tmp_path: Path, mode: str) -> None:
    source = colour_folder(tmp_path / "src", mode)
    prepare(str(source), str(tmp_path / "out"), names="road=#804080,sky=#4682b4", void=[(0, 0, 0)])
    contract = index.load(str(tmp_path / "out")).labels
    found = read_back(str(tmp_path / "out"), "train") | read_back(str(tmp_path / "out"), "val")
    for name, (_, raw) in found.items():
        pixels = np.asarray(Image.open(source / "masks" / f"{name}.png").convert("RGB"))
        want = np.where(pixels[..., 2] == 128, 0, np.where(pixels[..., 2] == 180, 1, 255))
        assert (contract.table(raw.dtype)[raw] == want).all()
    assert contract.classes[1].color == (70, 130, 180)


def test_the_table_of_a_contract_of_colours_shows_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = str(colour_folder(tmp_path / "src"))
    prepare(source, str(tmp_path / "out"), names="road=#804080,sky=#4682b4", void=[(0, 0, 0)])
    said = capfd.readouterr().err
    assert all(color in said for color in ("colours", "#804080", "#4682b4", "#000000"))
    assert "raw values" not in said


def test_a_colour_without_a_class_is_named_with_its_pixels_and_its_likely_cause(tmp_path: Path) -> None:
    source = colour_folder(tmp_path / "src")
    with pytest.raises(LabelError, match=r"p\d.png: colours without a class: #000000 \(\d+ pixels\).*--void '#rrggbb'"):
        prepare(str(source), str(tmp_path / "out"), names="road=#804080,sky=#4682b4")
    noisy = str(colour_folder(tmp_path / "noisy", noise=6))
    with pytest.raises(LabelError, match="--color-tolerance 6"):
        prepare(noisy, str(tmp_path / "out"), names="road=#804080,sky=#4682b4,black=#000000")
    prepare(noisy, str(tmp_path / "out"), names="road=#804080,sky=#4682b4,black=#000000", color_tolerance=6)
    exact = str(tmp_path / "exact")
    prepare(str(source), exact, names="road=#804080,sky=#4682b4,black=#000000")
    for split in ("train", "val"):
        pixels = [index.load(uri).split(split).class_pixels for uri in (exact, str(tmp_path / "out"))]
        assert pixels[0] == pixels[1]


def test_colours_are_looked_up_in_blocks_as_one_by_one() -> None:
    """And a photo among the masks is told at once, in little memory however many colours it has."""
    rng = np.random.default_rng(0)
    colors = rng.permutation(2**24)[:300]
    rgb = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in colors]
    contract = Labels(
        (Class("a", tuple(range(200)), (1, 1, 1)), Class("b", tuple(range(200, 300)), (2, 2, 2))), (), tuple(rgb)
    )
    want = rng.integers(0, 300, (900, 700))
    rules = files.Rules(10**9, contract)
    got = files.decode_mask(png_of(np.array(rgb, np.uint8)[want]), "m.png", rules)
    assert (got == want).all()
    photo = png_of(rng.integers(0, 256, (900, 700, 3), dtype=np.uint8))
    for tolerance in (0, 3):
        tracemalloc.start()
        with pytest.raises(LabelError, match=r"m\.png: more than 4096 colours without a class. The file is a photo"):
            files.decode_mask(photo, "m.png", files.Rules(10**9, contract, tolerance))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 60 * 900 * 700


def png_of(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def test_display_colours_are_those_asked_for_else_the_masks_own(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src", 4, values=(0, 1, 2))
    for path in (source / "masks").iterdir():
        mask = Image.open(path)
        mask.putpalette([9, 8, 7, 0, 255, 0, 0, 0, 255])
        mask.save(path)
    colors = {}
    for palette in (None, "voc", "ade20k"):
        prepare(str(source), str(tmp_path / "out"), names=NAMES, palette=palette, overwrite=True)
        colors[palette] = [c.color for c in index.load(str(tmp_path / "out")).labels.classes]
    assert colors[None] == [(9, 8, 7), (0, 255, 0), (0, 0, 255)]
    assert colors["voc"] == [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    assert colors["ade20k"] == [(120, 120, 120), (180, 120, 120), (6, 230, 230)]
    with pytest.raises(LabelError, match="unknown --palette 'pink'"):
        prepare(str(source), str(tmp_path / "out"), names=NAMES, palette="pink", overwrite=True)


def test_names_that_leave_nothing_to_tell_apart_are_refused(tmp_path: Path) -> None:
    """The commonest binary masks, 0 and 255, with two names: 255 would be void, and the object gone."""
    source = str(plain_folder(tmp_path / "src", values=(0, 255)))
    with pytest.raises(LabelError, match=r"only class 'a' has pixels in any split.*--names background=0,object=255"):
        prepare(source, str(tmp_path / "out"), names="a,b")
    assert not (tmp_path / "out" / "index.json").exists()
    prepare(source, str(tmp_path / "out"), names="a=0,b=255")


def test_an_exif_rotation_is_applied_when_only_the_turned_image_fits(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src", 4)
    pixels = np.zeros((12, 8, 3), np.uint8)
    pixels[:, 4:] = 200  # right half bright; turned by 90 degrees it lies below
    exif = Image.Exif()
    exif[0x0112] = 6
    (source / "images" / "p0.png").unlink()
    Image.fromarray(pixels).save(source / "images" / "p0.jpg", exif=exif, quality=95)
    prepare(str(source), str(tmp_path / "out"), names=NAMES)
    image, mask = (read_back(str(tmp_path / "out"), "train") | read_back(str(tmp_path / "out"), "val"))["p0"]
    assert image.shape[:2] == mask.shape == (8, 12)
    assert image[:3].mean() < 20
    assert image[5:].mean() > 180


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_exif_rotation_that_fits_either_way_is_applied_and_told(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source = plain_folder(tmp_path / "src", 4)
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:4] = 200  # turned by 180 degrees the upper half lies below
    exif = Image.Exif()
    exif[0x0112] = 3
    (source / "images" / "p0.png").unlink()
    Image.fromarray(pixels).save(source / "images" / f"p0.{suffix}", exif=exif, quality=95)
    prepare(str(source), str(tmp_path / "out"), names=NAMES)
    image, _ = (read_back(str(tmp_path / "out"), "train") | read_back(str(tmp_path / "out"), "val"))["p0"]
    assert image[:3].mean() < 20 < 180 < image[5:].mean()
    said = capfd.readouterr().err
    assert f"p0.{suffix}: rotated by its EXIF orientation 3; its mask fits either way" in said
    assert said.count("EXIF") == 1


def test_warnings_that_come_for_every_file_are_said_thrice_and_then_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = plain_folder(tmp_path / "src", 20)
    exif = Image.Exif()
    exif[0x0112] = 3
    for i in range(12):
        path = source / "images" / f"p{i}.png"
        Image.open(path).save(path, exif=exif)
    for _ in range(2):  # each call counts anew
        prepare(str(source), str(tmp_path / "out"), names=NAMES, overwrite=True)
        said = capfd.readouterr().err.splitlines()
        assert len([line for line in said if "rotated by its EXIF orientation" in line]) == 3
        (rest,) = [line for line in said if "rotated by their EXIF orientation" in line]
        assert rest == "warning: 9 more images rotated by their EXIF orientation whose masks fit either way, 12 in all"


def test_jpegs_keep_their_bytes(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src", 4)
    (source / "images" / "p0.png").unlink()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)).save(
        source / "images" / "p0.jpg"
    )
    prepare(str(source), str(tmp_path / "out"), names=NAMES)
    shards = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*.parquet"))
    assert (source / "images" / "p0.jpg").read_bytes() in shards


def test_datasets_reads_the_shards(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    prepare(str(plain_folder(tmp_path / "src", 12)), str(tmp_path / "out"), names=NAMES)
    files = {s: str(tmp_path / "out" / s / "*.parquet") for s in ("train", "val")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].column_names == ["sample_id", "image", "mask", "mask_codec", "height", "width"]
    assert loaded["train"].num_rows + loaded["val"].num_rows == 12


def test_preparing_again_does_nothing_and_another_source_is_refused(tmp_path: Path) -> None:
    source, out = plain_folder(tmp_path / "src", 8), tmp_path / "out"
    prepare(str(source), str(out), names=NAMES)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    prepare(str(source), str(out), names=NAMES)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
    with pytest.raises(DataError, match="holds another prepared dataset"):
        prepare(str(source), str(out), names="x,y,z")
    prepare(str(source), str(out), names="x,y,z", overwrite=True)
    assert index.load(str(out)).labels.names == ["x", "y", "z"]


def test_overwriting_leaves_no_stale_shard(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(str(plain_folder(tmp_path / "one", 8)), str(out), names=NAMES)
    prepare(str(plain_folder(tmp_path / "two", 9)), str(out), names=NAMES, overwrite=True)
    listed = {s.file for split in index.load(str(out)).splits.values() for s in split.shards}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.parquet")} == listed


@pytest.mark.slow
@pytest.mark.parametrize("moment", [2, 3, 4], ids=["first shard", "second shard", "index"])
def test_killed_at_a_write_it_leaves_no_data_set_and_can_be_repeated(tmp_path: Path, moment: int) -> None:
    """SIGKILL in the middle of the n-th write (the first is the probe): half a temporary file, no index."""
    source, out, clean = plain_folder(tmp_path / "src", 40), tmp_path / "out", tmp_path / "clean"
    code = f"""
import os, signal
from segdist import storage
from segdist.data.label_options import LabelOptions
from segdist.data.prepare import prepare
writes, fsync = 0, os.fsync
def dies(handle):
    global writes
    if os.readlink(f"/proc/self/fd/{{handle}}").rsplit("/", 1)[1].startswith(".tmp-"):
        writes += 1
        if writes == {moment}:
            os.kill(os.getpid(), signal.SIGKILL)
    fsync(handle)
storage.local.os.fsync = dies
prepare({str(source)!r}, {str(out)!r}, declared=LabelOptions({NAMES!r}))
"""
    assert forks.run(["-c", code]).returncode == -signal.SIGKILL
    assert list(out.rglob(".tmp-*"))
    with pytest.raises(DataError, match="not a prepared dataset"):
        index.load(str(out))
    prepare(str(source), str(out), names=NAMES)
    prepare(str(source), str(clean), names=NAMES)
    assert not list(out.rglob(".tmp-*"))
    assert (out / "index.json").read_bytes() == (clean / "index.json").read_bytes()


def test_explicit_void_is_never_a_class(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """0 is often `unlabelled`; saying so must not be forgotten because 0 could also be a class."""
    source = str(plain_folder(tmp_path / "src", values=(0, 1, 2, 3)))
    prepare(source, str(tmp_path / "out"), void=(0,))
    loaded = index.load(str(tmp_path / "out"))
    assert loaded.labels.names == ["class 1", "class 2", "class 3"]
    assert "the values 0-3, so the 3 classes are named by number" in capfd.readouterr().err
    assert loaded.split("train").void_pixels > 0
    with pytest.raises(LabelError, match="raw value 0 is declared twice: 'a' and 'void'"):
        prepare(source, str(tmp_path / "other"), names="a,b,c,d", void=(0,))
    with pytest.raises(LabelError, match="declares its void values itself"):
        prepare(camvid_folder(tmp_path / "camvid"), str(tmp_path / "third"), "camvid", void=(0,))


def test_void_may_be_nothing_at_all(tmp_path: Path) -> None:
    """--void '' on the command line."""
    source = str(plain_folder(tmp_path / "src", values=(0, 1, 2, 3)))
    prepare(source, str(tmp_path / "out"), void=mask_values(""))
    assert index.load(str(tmp_path / "out")).labels.void == ()
    assert index.load(str(tmp_path / "out")).labels.num_classes == 4


def test_the_source_is_its_content_and_its_contract(tmp_path: Path) -> None:
    """A touched or copied source is the same; a names file with two lines swapped is another."""
    source, names = plain_folder(tmp_path / "src", 8), tmp_path / "names.txt"
    names.write_text("a\nb\nc\n", encoding="utf-8")
    prepare(str(source), str(tmp_path / "out"), names=str(names))
    copy = shutil.copytree(source, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    prepare(str(copy), str(tmp_path / "out"), names="a,b,c")
    names.write_text("b\na\nc\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds another prepared dataset"):
        prepare(str(source), str(tmp_path / "out"), names=str(names))


def test_splits_may_bear_their_usual_names(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        plain_folder(tmp_path / split, 3)
        for kind in ("images", "masks"):
            shutil.copytree(tmp_path / split / kind, tmp_path / "src" / kind / split)
    summary = prepare(str(tmp_path / "src"), str(tmp_path / "out"), names=NAMES)
    assert {k: v["samples"] for k, v in summary["splits"].items()} == {"train": 3, "val": 3}


# -- mistakes ---------------------------------------------------------------------------------------------------------


def mistaken(tmp_path: Path, **arguments: object) -> str:
    """The message for preparing tmp_path/src, and proof that nothing counts as prepared."""
    with pytest.raises((DataError, LabelError)) as error:
        prepare(str(tmp_path / "src"), str(tmp_path / "out"), **({"names": NAMES} | arguments))  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "index.json").exists()
    return str(error.value)


def test_an_unpaired_file_is_named(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src")
    (source / "masks" / "p3.png").unlink()
    message = mistaken(tmp_path)
    assert "images/p3.png: this image has no mask; expected" in message
    (source / "images" / "p3.png").unlink()
    (source / "images" / "p4.png").unlink()
    assert "masks/p4.png: this mask has no image" in mistaken(tmp_path)


@pytest.mark.parametrize(("before", "behind"), [("", "_mask"), ("gt_", "")])
def test_masks_whose_names_differ_by_one_suffix_or_prefix_are_paired_and_it_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], before: str, behind: str
) -> None:
    source = plain_folder(tmp_path / "src", 12)  # p1 begins p10
    want = {p.stem: np.array(Image.open(p)) for p in (source / "masks").iterdir()}
    for path in list((source / "masks").iterdir()):
        path.rename(path.with_stem(f"{before}{path.stem}{behind}"))
    (source / "masks" / f"{before}p3{behind}.png").rename(source / "lost.png")
    assert f"masks/{before}p0{behind}.png is its mask, rename it. Masks may have a prefix or suffix" in mistaken(
        tmp_path
    )
    (source / "lost.png").rename(source / "masks" / f"{before}p3{behind}.png")
    prepare(str(source), str(tmp_path / "out"), names=NAMES)
    found = read_back(str(tmp_path / "out"), "train") | read_back(str(tmp_path / "out"), "val")
    assert set(found) == set(want) and all((found[name][1] == want[name]).all() for name in want)
    assert f"masks named {before}NAME{behind}" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_folders_of_other_names_are_pointed_at(tmp_path: Path, kind: str) -> None:
    source = plain_folder(tmp_path / "src")
    other = {"images": "img", "masks": "labels"}[kind]
    (source / kind).rename(source / other)
    assert f"If {other}/ holds the {kind}, rename it to {kind}/" in mistaken(tmp_path)


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src")
    Image.fromarray(np.zeros((8, 11), np.uint8)).save(source / "masks" / "p2.png")
    assert "images/p2.png: the image is 8x12 but its mask is 8x11 (height x width)" in mistaken(tmp_path)


def test_an_unknown_mask_value_is_named(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src")
    mask = np.zeros((8, 12), np.uint8)
    mask[0, :5] = 17
    Image.fromarray(mask).save(source / "masks" / "p1.png")
    message = mistaken(tmp_path)
    assert "masks/p1.png: unknown mask value 17 (5 pixels)" in message
    assert "--void 17" in message


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    plain_folder(tmp_path / "src" / "train")
    for kind in ("images", "masks"):
        (tmp_path / "src" / "val" / kind).mkdir(parents=True)
    assert "split 'val' is empty" in mistaken(tmp_path)


@pytest.mark.parametrize("size", [40, 200])
def test_a_truncated_image_is_named(tmp_path: Path, size: int) -> None:
    source = plain_folder(tmp_path / "src")
    path = source / "images" / "p5.png"
    path.write_bytes(path.read_bytes()[:size])
    message = mistaken(tmp_path)
    assert "images/p5.png: " in message
    assert "Replace or remove it" in message


@pytest.mark.parametrize("below", [True, False])
def test_two_folders_of_one_split_are_refused(tmp_path: Path, below: bool) -> None:
    for split in ("train", "val", "validation"):
        plain_folder(tmp_path / "one", 2)
        for kind in ("images", "masks"):
            to = tmp_path / "src" / (f"{kind}/{split}" if below else f"{split}/{kind}")
            shutil.copytree(tmp_path / "one" / kind, to)
    message = mistaken(tmp_path)
    assert "val/ and validation/ are both the split 'val'" in message


@pytest.mark.parametrize(("place", "kind"), [("", "images"), ("extra/", "images"), ("extra/", "masks")])
def test_images_that_no_split_takes_are_refused(tmp_path: Path, place: str, kind: str) -> None:
    plain_folder(tmp_path / "one", 2)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            shutil.copytree(tmp_path / "one" / folder, tmp_path / "src" / folder / split)
    path = tmp_path / "src" / kind / f"{place}lost.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (12, 8)).save(path)
    assert f"1 images are outside the splits train, val: {kind}/{place}lost.png" in mistaken(tmp_path)


def test_images_outside_of_the_splits_folders_are_left_out_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        plain_folder(tmp_path / "src" / split, 2)
    said = "src: leaving out 2 images outside of train/images/, train/masks/, val/images/, val/masks/: cover.png, val/lost.jpg"
    for expected in (0, 1):
        prepare(str(tmp_path / "src"), str(tmp_path / "out"), names=NAMES, overwrite=True)
        assert capfd.readouterr().err.count(said) == expected
        for name in ("cover.png", "val/lost.jpg"):
            Image.new("L", (12, 8)).save(tmp_path / "src" / name)


@pytest.mark.parametrize("folder", ["images", "photos/first", "."])
def test_labelmes_files_are_recognised(tmp_path: Path, folder: str) -> None:
    place = tmp_path / "src" / folder
    place.mkdir(parents=True)
    Image.new("RGB", (12, 8)).save(place / "a.jpg")
    (place / "notes.json").write_text("{}", encoding="utf-8")
    assert "labelme's" not in mistaken(tmp_path)
    (place / "a.json").write_text("{}", encoding="utf-8")
    assert "If the JSON files beside the images are labelme's, say --format labelme" in mistaken(tmp_path)


def test_something_that_is_no_image_is_named(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src")
    (source / "masks" / "p0.png").write_text("hello", encoding="utf-8")
    assert "masks/p0.png: not an image" in mistaken(tmp_path)


def test_lossy_coloured_and_alpha_masks_are_refused(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src")
    path = source / "masks" / "p0.png"
    path.unlink()
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(path.with_suffix(".jpg"))
    assert "stored as JPEG may be lossy" in mistaken(tmp_path)
    path.with_suffix(".jpg").unlink()
    for mode, said in (("RGB", "its pixels are colours"), ("LA", "not opaque"), ("RGBA", "not opaque")):
        Image.new(mode, (12, 8)).save(path)
        assert said in mistaken(tmp_path)


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src")
    Image.new("L", (3000, 3000)).save(source / "masks" / "p0.png")
    assert "3000x3000 pixels (height x width) exceed --max-megapixels 8" in mistaken(tmp_path, max_megapixels=8)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src")
    Image.new("RGB", (12, 8)).save(source / "images" / "p0.jpg")
    assert "has the same name without extension" in mistaken(tmp_path)


def test_a_folder_of_no_known_layout_is_explained(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    assert "found neither images/ and masks/" in mistaken(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        prepare(str(tmp_path / "nowhere"), str(tmp_path / "out"))


def test_masks_of_0_and_255_without_names_are_explained(tmp_path: Path) -> None:
    plain_folder(tmp_path / "src", values=(0, 255))
    assert "--names background=0,object=255" in mistaken(tmp_path, names=None)
    assert "Did you mean class 1" in mistaken(tmp_path, names="a,b", void=())


def test_names_are_made_up_only_for_consecutive_values(tmp_path: Path) -> None:
    plain_folder(tmp_path / "src", values=(0, 60, 120, 180))
    assert "which are not 0, 1, 2, ..." in mistaken(tmp_path, names=None)
    prepare(str(plain_folder(tmp_path / "good")), str(tmp_path / "out"))
    assert index.load(str(tmp_path / "out")).labels.names == ["class 0", "class 1", "class 2"]


def test_masks_with_soft_edges_are_not_taken_for_many_classes(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src", values=(0, 255))
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(source / "masks" / "p0.png")
    Image.new("RGB", (16, 16)).save(source / "images" / "p0.png")
    message = mistaken(tmp_path, names=None)
    assert "255 values beside void (0-254)" in message
    assert "anti-aliased" in message and "say --names" in message


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot write"):
        prepare(str(source), str(tmp_path / "file" / "out"), names=NAMES)


def test_an_index_of_another_format_is_refused(tmp_path: Path) -> None:
    prepare(str(plain_folder(tmp_path / "src")), str(tmp_path / "out"), names=NAMES)
    path = tmp_path / "out" / "index.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(tree | {"format": "segdist-9"}), encoding="utf-8")
    with pytest.raises(DataError, match="This version reads 'segdist-1'"):
        index.load(str(tmp_path / "out"))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not a valid dataset index"):
        index.load(str(tmp_path / "out"))
    path.write_text(json.dumps({k: v for k, v in tree.items() if k != "splits"}), encoding="utf-8")
    with pytest.raises(DataError, match="not a valid dataset index"):
        index.load(str(tmp_path / "out"))
