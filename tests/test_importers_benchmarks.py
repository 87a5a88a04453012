"""PASCAL VOC, the Oxford-IIIT Pets, ADE20K and Cityscapes, drawn small in their original layouts and read back."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import store as stores
from conftest import prepare, read_back
from PIL import Image

from segdist import storage
from segdist.data import index
from segdist.data.importers import LAYOUTS
from segdist.data.importers.layout import ImportOptions
from segdist.errors import DataError, LabelError

SIZE = (24, 32)  # height, width


def draw(path: Path, values: list[int], seed: int, palette: list[int] | None = None) -> np.ndarray:
    """A PNG mask of random blocks of `values`, all of which occur; its pixels."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(np.array(values, np.uint8), (6, 8))
    blocks.flat[: min(len(values), 48)] = values[:48]
    mask = blocks.repeat(4, 0).repeat(4, 1)
    image = Image.fromarray(mask)
    if palette:
        image.putpalette(palette)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return mask


def photograph(path: Path, seed: int, format: str | None = "JPEG", mode: str = "RGB") -> np.ndarray:
    """An image of smooth colours; its pixels in RGB, as Pillow decodes them."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize(SIZE[::-1], Image.Resampling.BICUBIC).convert(mode).save(path, format)
    return np.array(Image.open(path).convert("RGB"))


def check(uri: str, drawn: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], void: tuple[int, ...]) -> None:
    """Splits, pixels and counts of a prepared data set are those that were drawn."""
    loaded = index.load(uri)
    assert {s: loaded.split(s).num_samples for s in loaded.splits} == {s: len(of) for s, of in drawn.items()}
    for split, expected in drawn.items():
        found = read_back(uri, split)
        assert sorted(found) == sorted(expected)
        for name, (image, mask) in expected.items():
            assert (found[name][0] == image).all(), name
            assert (found[name][1] == mask).all(), name
        masks = np.stack([mask for _, mask in expected.values()])
        assert loaded.split(split).void_pixels == np.isin(masks, void).sum()
        assert loaded.split(split).class_pixels == tuple(np.isin(masks, c.raw).sum() for c in loaded.labels.classes)


def refused(source: Path, layout: str, *parts: str, **said: object) -> None:
    """Preparing is refused by one message that holds all parts, and leaves no index."""
    dest = source.parent / "refused"
    with pytest.raises((DataError, LabelError)) as error:
        prepare(str(source), str(dest), layout, **said)  # type: ignore[arg-type]
    for part in parts:
        assert part in str(error.value)
    assert not (dest / "index.json").exists()


# -- PASCAL VOC -------------------------------------------------------------------------------------------------------

VOC_COLORS = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    15: (192, 128, 128),
    20: (0, 64, 128),
    255: (224, 224, 192),
}  # its colour map


def voc_folder(root: Path, lists: dict[str, list[str]], masked: set[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """VOC20xx below root with the real palette's colours; name -> (image, mask)."""
    palette = [channel for v in range(256) for channel in VOC_COLORS.get(v, (v, 255 - v, 7))]
    drawn = {}
    for seed, name in enumerate(sorted({n for names in lists.values() for n in names})):
        image = photograph(root / "JPEGImages" / f"{name}.jpg", seed)
        if name in masked:
            mask = draw(root / "SegmentationClass" / f"{name}.png", list(VOC_COLORS), seed, palette)
            draw(root / "SegmentationObject" / f"{name}.png", [0, 1, 2, 255], seed, palette)
            drawn[name] = (image, mask)
    photograph(root / "JPEGImages" / "000000_detection_only.jpg", 99)
    for split, names in lists.items():
        for kind in ("Segmentation", "Main"):
            path = root / "ImageSets" / kind / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{n}\n" for n in names), encoding="utf-8")
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text("<annotation/>", encoding="utf-8")
    return drawn


VOC_2012 = {
    "train": ["2007_000032", "2007_000039", "2007_000063"],
    "val": ["2007_000033", "2007_000042"],
    "trainval": ["2007_000032", "2007_000033", "2007_000039", "2007_000042", "2007_000063"],
}


@pytest.mark.parametrize("above", ["VOCdevkit/VOC2012", "VOCdevkit", "."])
def test_voc_is_read_from_its_folder_or_one_above(tmp_path: Path, above: str) -> None:
    drawn = voc_folder(tmp_path / "src" / "VOCdevkit" / "VOC2012", VOC_2012, set(VOC_2012["trainval"]))
    summary = prepare(str(tmp_path / "src" / above), str(tmp_path / "out"), "voc")
    check(str(tmp_path / "out"), {s: {n: drawn[n] for n in VOC_2012[s]} for s in ("train", "val")}, (255,))
    assert summary["classes"][0] == "background"
    assert summary["classes"][20] == "tv monitor"
    loaded = index.load(str(tmp_path / "out"))
    assert "Flickr" in loaded.licence
    assert [loaded.labels.classes[v].color for v in (0, 1, 15, 20)] == [VOC_COLORS[v] for v in (0, 1, 15, 20)]


def test_voc_2007_has_a_test_set_and_that_of_2012_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = {**VOC_2012, "test": ["2008_000001", "2008_000002"]}
    everything = {n for names in lists.values() for n in names}
    drawn = voc_folder(tmp_path / "VOC2007", lists, everything)
    prepare(str(tmp_path / "VOC2007"), str(tmp_path / "out7"), "voc")
    check(str(tmp_path / "out7"), {s: {n: drawn[n] for n in lists[s]} for s in ("train", "val", "test")}, (255,))
    assert "left out" not in capsys.readouterr().err
    voc_folder(tmp_path / "VOC2012", lists, set(VOC_2012["trainval"]))
    prepare(str(tmp_path / "VOC2012"), str(tmp_path / "out12"), "voc")
    assert sorted(index.load(str(tmp_path / "out12")).splits) == ["train", "val"]
    assert "leaving out test" in capsys.readouterr().err


def test_voc_with_trainval_alone_is_split_by_the_seed(tmp_path: Path) -> None:
    names = [f"2007_{i:06d}" for i in range(20)]
    voc_folder(tmp_path / "VOC2012", {"trainval": names}, set(names))
    splits = []
    for i, seed in enumerate((0, 0, 1)):
        prepare(str(tmp_path / "VOC2012"), str(tmp_path / f"out{i}"), "voc", seed=seed)
        train, val = (set(read_back(str(tmp_path / f"out{i}"), s)) for s in ("train", "val"))
        assert train | val == set(names)
        assert not train & val
        splits.append(val)
    assert splits[0] == splits[1] != splits[2]


def test_every_mistake_with_voc_has_one_message(tmp_path: Path) -> None:
    root = tmp_path / "kit" / "VOC2012"
    voc_folder(root, VOC_2012, set(VOC_2012["trainval"]))
    lists = root / "ImageSets" / "Segmentation"

    def broken(*parts: str) -> None:
        refused(tmp_path / "kit", "voc", *parts)
        shutil.rmtree(tmp_path / "kit")
        voc_folder(root, VOC_2012, set(VOC_2012["trainval"]))

    (root / "SegmentationClass" / "2007_000039.png").unlink()
    broken("VOC2012/ImageSets/Segmentation/train.txt", "'2007_000039'", "no such mask")
    for name in ("2007_000033", "2007_000042"):
        (root / "JPEGImages" / f"{name}.jpg").unlink()
    broken("Segmentation/val.txt", "'2007_000033'", "no such image (2 of its 2 have none)")
    shutil.rmtree(root / "SegmentationClass")
    broken("VOC2012/SegmentationClass: this folder does not exist, or holds no images")
    shutil.rmtree(root / "ImageSets")
    broken(
        "VOC2012/ImageSets/Segmentation: found neither both lists train.txt and val.txt",
        "nor trainval.txt, nor CVAT's default.txt",
    )
    (lists / "train.txt").write_text("2007_000032\n2007_000033\n", encoding="utf-8")
    broken("'2007_000033' is listed in both train and val")
    (lists / "train.txt").write_text("2007_000032\n2007_000032\n", encoding="utf-8")
    broken("train.txt: '2007_000032' is listed twice")
    (lists / "train.txt").write_text("\n", encoding="utf-8")
    broken("train.txt: this list is empty")
    (lists / "train.txt").write_bytes(b"\xff\xfe\x00")
    broken("train.txt: this list is not UTF-8 text")
    (lists / "train.txt").write_text("../../../../etc/passwd\n", encoding="utf-8")
    broken("it lists '../../../../etc/passwd', but there is no such image")
    voc_folder(tmp_path / "kit" / "VOC2007", VOC_2012, set(VOC_2012["trainval"]))
    broken("in several folders (VOC2007, VOC2012). Give one of them as SOURCE")
    shutil.rmtree(tmp_path / "kit")
    (tmp_path / "kit" / "photos").mkdir(parents=True)
    refused(tmp_path / "kit", "voc", "not PASCAL VOC's layout", "it holds photos")


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:250,50,83::\nleaf:61,245,61:stem,rim:\nignored:1,2,3::\n"


def cvat_folder(root: Path, mode: str = "RGB") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What CVAT exports as "Segmentation mask": colours that labelmap.txt names, ten pairs; name -> (image, mask)."""
    palette = [0, 0, 0, 250, 50, 83, 61, 245, 61, 1, 2, 3]
    drawn = {}
    for seed in range(10):
        path = root / "SegmentationClass" / f"frame_{seed}.png"
        mask = draw(path, [0, 1, 2, 3], seed, palette)
        Image.open(path).convert(mode).save(path)
        drawn[path.stem] = (photograph(root / "JPEGImages" / f"{path.stem}.jpg", seed), mask)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "default.txt").write_text("\n".join(drawn), encoding="utf-8")
    (root / "labelmap.txt").write_text(LABELMAP, encoding="utf-8")
    return drawn


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_voc_as_cvat_exports_it_is_named_and_coloured_by_its_labelmap(tmp_path: Path, mode: str) -> None:
    drawn = cvat_folder(tmp_path / "src", mode)
    summary = prepare(str(tmp_path / "src"), str(tmp_path / "out"), "voc")
    assert summary["classes"] == ["background", "crack", "leaf"]
    contract = index.load(str(tmp_path / "out")).labels
    assert [c.color for c in contract.classes] == [(0, 0, 0), (250, 50, 83), (61, 245, 61)]
    splits = {s: {n: drawn[n] for n in read_back(str(tmp_path / "out"), s)} for s in ("train", "val")}
    assert sum(map(len, splits.values())) == 10
    check(str(tmp_path / "out"), splits, (3,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("background:0,0,0::\ncrack\n", "line 2 is 'crack'. Write name:r,g,b::"),
        ("background:0,0,0::\ncrack:#fa3253::\n", "line 2 is 'crack:#fa3253::'"),
        ("background:0,0,0::\ncrack:1,2,300::\n", "is outside 0..255"),
        ("background:0,0,0::\ncrack:0,0,0::\n", "colour [0, 0, 0] is declared twice"),
        ("background:0,0,0::\n", "2 to 255 classes"),
    ],
)
def test_a_labelmap_that_is_not_understood_is_named(tmp_path: Path, text: str, said: str) -> None:
    cvat_folder(tmp_path / "src")
    (tmp_path / "src" / "labelmap.txt").write_text(text, encoding="utf-8")
    refused(tmp_path / "src", "voc", "labelmap.txt: ", said)


# -- the Oxford-IIIT Pets ---------------------------------------------------------------------------------------------

APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(64)
PETS = {"trainval": [f"Abyssinian_{i}" for i in range(12)] + ["beagle_116"], "test": ["Bengal_1", "pug_7", "pug_8"]}


def pets_folder(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The Pets with what is odd in them: a PNG with alpha, a GIF and a damaged JPEG, all named .jpg; ._ files."""
    drawn = {}
    odd = {"Abyssinian_5": ("PNG", "RGBA"), "Abyssinian_4": ("GIF", "P"), "Abyssinian_3": ("JPEG", "L")}
    (root / "annotations" / "trimaps").mkdir(parents=True)
    for seed, name in enumerate([*PETS["trainval"], *PETS["test"], "unlisted_1"]):
        image = photograph(root / "images" / f"{name}.jpg", seed, *odd.get(name, ("JPEG", "RGB")))
        mask = draw(root / "annotations" / "trimaps" / f"{name}.png", [1, 2, 3], seed)
        (root / "annotations" / "trimaps" / f"._{name}.png").write_bytes(APPLE_DOUBLE)
        drawn[name] = (image, mask)
    damaged = root / "images" / "beagle_116.jpg"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-2] + bytes(19) + data[-2:])  # "extraneous bytes before marker 0xd9", as in the original
    (root / "images" / "Abyssinian_100.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    (root / "annotations" / "._trimaps").write_bytes(APPLE_DOUBLE)
    head = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n"
    for split, names in {**PETS, "list": list(drawn)}.items():
        lines = "".join(f"{name} {i + 1} 1 {i + 1}\n" for i, name in enumerate(names))
        (root / "annotations" / f"{split}.txt").write_text((head if split == "list" else "") + lines, encoding="utf-8")
    return drawn


def test_pets_come_back_with_a_split_of_trainval(tmp_path: Path) -> None:
    drawn = pets_folder(tmp_path / "oxford-iiit-pet")
    summary = prepare(str(tmp_path), str(tmp_path / "out"), "pets", val_share=0.3)
    train, val = (set(read_back(str(tmp_path / "out"), s)) for s in ("train", "val"))
    assert train | val == set(PETS["trainval"])
    assert not train & val
    assert val
    parts = {"train": train, "val": val, "test": set(PETS["test"])}
    check(str(tmp_path / "out"), {s: {n: drawn[n] for n in names} for s, names in parts.items()}, ())
    assert summary["classes"] == ["pet", "background", "border"]
    assert index.load(str(tmp_path / "out")).licence.startswith("CC BY-SA 4.0")


def test_pets_without_border_have_two_classes(tmp_path: Path) -> None:
    drawn = pets_folder(tmp_path / "src")
    prepare(str(tmp_path / "src"), str(tmp_path / "out"), "pets", names="pets-binary")
    loaded = index.load(str(tmp_path / "out"))
    assert loaded.labels.names == ["pet", "background"]
    border = sum((drawn[n][1] == 3).sum() for names in PETS.values() for n in names)
    assert sum(s.void_pixels for s in loaded.splits.values()) == border


def test_a_list_of_pets_may_begin_with_comments(tmp_path: Path) -> None:
    pets_folder(tmp_path / "src")
    path = tmp_path / "src" / "annotations" / "test.txt"
    path.write_text("\ufeff#Image CLASS-ID\r\n\r\nBengal_1 6 1 2\r\n", encoding="utf-8")
    prepare(str(tmp_path / "src"), str(tmp_path / "out"), "pets")
    assert list(read_back(str(tmp_path / "out"), "test")) == ["Bengal_1"]


def test_every_mistake_with_pets_has_one_message(tmp_path: Path) -> None:
    root = tmp_path / "src"

    def broken(*parts: str) -> None:
        refused(root, "pets", *parts)
        shutil.rmtree(root)
        pets_folder(root)

    pets_folder(root)
    (root / "annotations" / "trimaps" / "pug_7.png").unlink()
    broken("annotations/test.txt: it lists 'pug_7', but there is no such mask")
    shutil.rmtree(root / "images")
    broken("src/images: this folder does not exist", "images.tar.gz")
    shutil.rmtree(root / "annotations" / "trimaps")
    broken("not the layout of the Oxford-IIIT Pets", "annotations/trimaps/")
    (root / "annotations" / "trainval.txt").unlink()
    broken("annotations/trainval.txt: this list does not exist")
    (root / "annotations" / "test.txt").write_text("pug_8 1 1 1\nAbyssinian_3 1 1 1\n", encoding="utf-8")
    broken("'Abyssinian_3' is listed in both", "and test")


# -- ADE20K -----------------------------------------------------------------------------------------------------------


def ade_folder(root: Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    drawn: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for split, folder, short, num in (("train", "training", "train", 4), ("val", "validation", "val", 2)):
        drawn[split] = {}
        for i in range(1, num + 1):
            name = f"ADE_{short}_{i:08d}"
            image = photograph(root / "images" / folder / f"{name}.jpg", i, "JPEG", "L" if i == 2 else "RGB")
            values = [0, *range(1 + 37 * (i - 1), 38 + 37 * (i - 1)), 150]
            drawn[split][name] = (image, draw(root / "annotations" / folder / f"{name}.png", sorted({*values}), i))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n", encoding="utf-8")
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n", encoding="utf-8")
    return drawn


@pytest.mark.parametrize("above", ["ADEChallengeData2016", "."])
def test_ade20k_counts_its_classes_from_1_and_0_is_void(tmp_path: Path, above: str) -> None:
    drawn = ade_folder(tmp_path / "src" / "ADEChallengeData2016")
    summary = prepare(str(tmp_path / "src" / above), str(tmp_path / "out"), "ade20k")
    check(str(tmp_path / "out"), drawn, (0,))
    assert len(summary["classes"]) == 150
    assert (summary["classes"][0], summary["classes"][149]) == ("wall", "flag")
    assert "BSD-3" in index.load(str(tmp_path / "out")).licence


def test_every_mistake_with_ade20k_has_one_message(tmp_path: Path) -> None:
    root = tmp_path / "src"

    def broken(*parts: str) -> None:
        refused(root, "ade20k", *parts)
        shutil.rmtree(root)
        ade_folder(root)

    ade_folder(root)
    (root / "annotations" / "validation" / "ADE_val_00000002.png").unlink()
    broken("images/validation/ADE_val_00000002.jpg: this image has no mask")
    shutil.rmtree(root / "annotations" / "training")
    broken("annotations/training: this folder does not exist")
    shutil.rmtree(root / "images")
    shutil.rmtree(root / "annotations")
    broken("not the layout of ADEChallengeData2016", "it holds objectInfo150.txt, sceneCategories.txt")
    draw(root / "annotations" / "training" / "ADE_train_00000001.png", [0, 151, 255], 0)
    broken("ADE_train_00000001.png: unknown mask value")
    for place in ("ADE/training/urban/street", "training/s/street"):  # the releases of 2021 and 2016
        shutil.rmtree(root)
        photograph(root / "images" / place / "ADE_train_00016184.jpg", 0)
        photograph(root / "images" / place / "ADE_train_00016184_seg.png", 0, "PNG")
        refused(root, "ade20k", "ADE_train_00016184_seg.png: this is the full ADE20K", "ADEChallengeData2016.zip")


# -- Cityscapes -------------------------------------------------------------------------------------------------------

CITIES = {"train": ["aachen", "zurich"], "val": ["lindau"], "test": ["berlin"]}
SCORED = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}  # labelIds of the 19 classes


def cityscapes_folder(root: Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    drawn: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {s: {} for s in CITIES}
    for split, city in ((s, c) for s, cities in CITIES.items() for c in cities):
        for frame in (19, 20):
            name, seed = f"{city}_000000_{frame:06d}", frame + len(city)
            masks = root / "gtFine" / split / city
            image = photograph(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", seed, "PNG")
            values = list(range(34)) if split != "test" else [0, 1, 3]  # known from the calibration alone
            drawn[split][name] = (image, draw(masks / f"{name}_gtFine_labelIds.png", values, seed))
            Image.fromarray(drawn[split][name][1].astype(np.uint16) * 1000).save(
                masks / f"{name}_gtFine_instanceIds.png"
            )
            photograph(masks / f"{name}_gtFine_color.png", seed, "PNG", "RGBA")
            (masks / f"{name}_gtFine_polygons.json").write_text("{}", encoding="utf-8")
    draw(root / "gtCoarse" / "train" / "aachen" / "aachen_000000_000019_gtCoarse_labelIds.png", [0, 7], 0)
    return drawn


def test_cityscapes_scores_19_of_its_34_ids_and_leaves_test_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = cityscapes_folder(tmp_path / "src" / "cityscapes")
    summary = prepare(str(tmp_path / "src"), str(tmp_path / "out"), "cityscapes")
    check(str(tmp_path / "out"), {s: drawn[s] for s in ("train", "val")}, tuple({*range(34)} - SCORED))
    assert len(summary["classes"]) == 19
    assert "leaving out test" in capsys.readouterr().err
    assert "non-commercial" in index.load(str(tmp_path / "out")).licence


def test_cityscapes_unpacked_into_two_folders_is_found(tmp_path: Path) -> None:
    drawn = cityscapes_folder(tmp_path / "all")
    for kind in ("leftImg8bit", "gtFine"):
        shutil.move(tmp_path / "all" / kind, tmp_path / "src" / f"{kind}_trainvaltest" / kind)
    prepare(str(tmp_path / "src"), str(tmp_path / "out"), "cityscapes")
    assert sorted(read_back(str(tmp_path / "out"), "val")) == sorted(drawn["val"])


def test_every_mistake_with_cityscapes_has_one_message(tmp_path: Path) -> None:
    root = tmp_path / "src"

    def broken(*parts: str) -> None:
        refused(root, "cityscapes", *parts)
        shutil.rmtree(root)
        cityscapes_folder(root)

    cityscapes_folder(root)
    for path in root.rglob("*_gtFine_labelIds.png"):
        path.unlink()
    broken(
        "gtFine/train: found no *_gtFine_labelIds.png",
        "only *_color.png, *_instanceIds.png, *_polygons.json",
        "gtFine_trainvaltest.zip",
    )
    for path in root.rglob("*_gtFine_*.png"):
        path.unlink()
    broken("gtFine/train: found no *_gtFine_labelIds.png, only *_polygons.json", "gtFine_trainvaltest.zip")
    shutil.rmtree(root / "gtFine")
    broken("not the layout of Cityscapes", "gtFine/")
    (root / "gtFine" / "val" / "lindau" / "lindau_000000_000019_gtFine_labelIds.png").unlink()
    broken(
        "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png: its partner ",
        "gtFine/val/lindau/lindau_000000_000019",
    )
    shutil.rmtree(root / "leftImg8bit" / "train" / "aachen")
    broken("gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png: its partner ", "2 files are unpaired")
    for split in ("train", "val"):
        for kind in ("leftImg8bit", "gtFine"):
            shutil.rmtree(root / kind / split)
    broken("leftImg8bit: found neither train/ nor val/")
    cityscapes_folder(tmp_path / "src" / "copy")
    broken("in several folders (., copy)")


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["voc", "pets", "ade20k", "cityscapes"])
def test_a_source_is_listed_once_and_no_image_is_read_to_find_the_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    if layout == "voc":
        voc_folder(tmp_path / "src", VOC_2012, set(VOC_2012["trainval"]))
    else:
        {"pets": pets_folder, "ade20k": ade_folder, "cityscapes": cityscapes_folder}[layout](tmp_path / "src")
    read: list[str] = []
    listings: list[str] = []
    walk, names, get = storage.walk, storage.names, storage.read
    monkeypatch.setattr(storage, "walk", lambda uri: (listings.append(uri), walk(uri))[1])
    monkeypatch.setattr(storage, "names", lambda uri: (listings.append(uri), names(uri))[1])
    monkeypatch.setattr(storage, "read", lambda uri: (read.append(uri), get(uri))[1])
    found = LAYOUTS[layout].find(str(tmp_path / "src"), ImportOptions())
    assert all(found.splits.values())
    assert listings == [str(tmp_path / "src")]
    assert all(uri.endswith(".txt") for uri in read)


def test_a_benchmark_may_lie_in_a_bucket(tmp_path: Path) -> None:
    drawn = pets_folder(tmp_path / "pets")
    with stores.serving("benchmarks"):
        stores.copy(str(tmp_path / "pets"), "s3://benchmarks/pets")
        prepare("s3://benchmarks/pets", str(tmp_path / "out"), "pets")
        with pytest.raises(
            DataError, match=r"s3://benchmarks/pets: not PASCAL VOC's layout.*it holds annotations, images"
        ):
            prepare("s3://benchmarks/pets", str(tmp_path / "other"), "voc")
    found = read_back(str(tmp_path / "out"), "test")
    assert all((found[name][1] == drawn[name][1]).all() for name in PETS["test"])


def test_every_benchmark_says_what_it_expects_and_under_which_licence() -> None:
    for name in ("voc", "pets", "ade20k", "cityscapes"):
        layout = LAYOUTS[name]
        assert layout.about
        assert layout.licence
        assert re.search(r"\w/", layout.expects)
        assert not layout.options


def test_a_jpeg_that_strict_decoders_refuse_is_kept_as_png_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pets_folder(tmp_path / "src")
    prepare(str(tmp_path / "src"), str(tmp_path / "out"), "pets")
    assert re.search(r"images/beagle_116\.jpg: .*extraneous bytes", capsys.readouterr().err)
    image = Image.open(tmp_path / "src" / "images" / "beagle_116.jpg").convert("RGB")
    found = read_back(str(tmp_path / "out"), "train") | read_back(str(tmp_path / "out"), "val")
    assert (found["beagle_116"][0] == np.array(image)).all()
    undamaged = io.BytesIO((tmp_path / "src" / "images" / "Abyssinian_1.jpg").read_bytes())
    assert (found["Abyssinian_1"][0] == np.array(Image.open(undamaged))).all()
