"""Some hundred malformed files and folders: each a clear message or a mask that is exactly what was written.

A case takes a good folder, spoils one thing, and says what may follow: a refusal whose message holds some words (the file's
name among them), or success with known masks, or either. Any other exception, a hang or another mask is a failure.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import odd_pictures as odd
import pytest
from conftest import ROOT, prepare, read_back
from odd_pictures import GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, png, written
from PIL import Image

from segdist.data import index
from segdist.data.importers.files import Rules, decode_mask
from segdist.data.source import Source
from segdist.errors import UserError

T = TypeVar("T")
pytestmark = pytest.mark.timeout(30)

H, W = 10, 14
rng = np.random.default_rng(7)
MASKS = {f"p{i}": rng.choice(np.array([0, 1, 2, 255], np.uint8), (H, W)) for i in range(4)}
SMALL = MASKS["p0"] % 2  # 0 and 1
NAMES = "a,b,c"


@dataclass
class May:
    """What may follow: with `said` a refusal that holds these words, with `masks` success with these raw values."""

    said: tuple[str, ...] | None = None
    masks: dict[str, np.ndarray] | None = None
    classes: list[str] | None = None  # names, where it is success
    declared: dict[str, object] = field(default_factory=lambda: {"names": NAMES})


Spoil = Callable[[Path], May]
CASES: dict[str, Spoil] = {}


def case(name: str, spoil: Spoil) -> None:
    assert name not in CASES, name
    CASES[name] = spoil


def refused(*said: str, **declared: object) -> May:
    return May(said, declared={"names": NAMES} | declared)


def kept(masks: dict[str, np.ndarray] | None = None, classes: list[str] | None = None, **declared: object) -> May:
    """Success, with the good masks but those that are given."""
    return May(None, MASKS | (masks or {}), classes, {"names": NAMES} | declared)


def either(*said: str) -> May:
    return May(said, MASKS)


def without(*names: str) -> May:
    """Success with fewer samples."""
    return May(None, {k: v for k, v in MASKS.items() if k not in names})


def puts(path: str, data: bytes, may: May) -> Spoil:
    """A case that replaces or adds one file."""

    def spoil(folder: Path) -> May:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        return may

    return spoil


def as_mask(data: bytes, mask: np.ndarray | None, *said: str, **declared: object) -> Spoil:
    """masks/p0.png holds `data`, which means `mask`, or is refused."""
    return puts(
        "masks/p0.png", data, refused("p0.png", *said, **declared) if mask is None else kept({"p0": mask}, **declared)
    )


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and masks/ of four pairs; two images are JPEG, two PNG."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for i, (name, mask) in enumerate(MASKS.items()):
        image = np.random.default_rng(i).integers(0, 256, (H, W, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{name}.{'jpg' if i < 2 else 'png'}")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


# -- damage -----------------------------------------------------------------------------------------------------------


def cut(path: str, share: float) -> Spoil:
    def spoil(folder: Path) -> May:
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(data[: int(share * len(data))])
        return either(Path(path).name)

    return spoil


def flip(path: str, seed: int) -> Spoil:
    """One to three bytes become others, behind the signature."""

    def spoil(folder: Path) -> May:
        dice = np.random.default_rng(seed)
        data = bytearray((folder / path).read_bytes())
        for at in dice.integers(8, len(data), dice.integers(1, 4)):
            data[at] ^= int(dice.integers(1, 256))
        (folder / path).write_bytes(data)
        return either(Path(path).name)

    return spoil


for path, num in (("masks/p0.png", 24), ("images/p0.jpg", 12), ("images/p2.png", 12)):
    for i in range(num):
        case(f"{path} cut at {i}/{num}", cut(path, i / num))
    case(f"{path} without its last byte", cut(path, 0.999))
    for i in range(num):
        case(f"{path} flipped {i}", flip(path, i))

PAGE = b"<!DOCTYPE html><html><body>403 Forbidden</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
for name, data in {
    "a web page": PAGE, "a Git LFS pointer": POINTER, "one byte": b"\x89", "a PNG signature": odd.SIGNATURE,
    "a JPEG marker": b"\xff\xd8\xff", "zeros": bytes(5000), "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "a TIFF of no pages": b"II*\0\0\0\0\0", "a TIFF that points to itself": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "PGM": b"P5 14 10 3\n" + bytes(140), "noise": np.random.default_rng(1).bytes(999),
    "a PNG without pixels": odd.SIGNATURE + odd.header(W, H) + odd.chunk(b"IEND", b""),
    "a PNG of no width": odd.SIGNATURE + odd.header(0, H) + odd.chunk(b"IDAT", b"") + odd.chunk(b"IEND", b""),
    "a PNG with a broken stream": odd.SIGNATURE + odd.header(W, H) + odd.chunk(b"IDAT", b"xx") + odd.chunk(b"IEND", b""),
    "a PNG of 3 bits": odd.SIGNATURE + odd.header(W, H, 3) + odd.chunk(b"IDAT", b"") + odd.chunk(b"IEND", b""),
    "a PNG with a chunk of 4 GB": odd.SIGNATURE + odd.header(W, H) + b"\xff\xff\xff\xf0IDATxxxx",
}.items():  # fmt: skip
    case(f"a mask that is {name}", puts("masks/p0.png", data, refused("masks/p0.png")))
    case(f"an image that is {name}", puts("images/p0.jpg", data, refused("images/p0.jpg")))
case("an EXIF block of noise", puts("images/p2.png", b"", refused("p2.png")))
for i in range(6):
    noise = b"Exif\0\0" + (b"II*\0\x08\0\0\0" if i % 2 else b"") + np.random.default_rng(i).bytes(60)
    data = written(np.zeros((H, W, 3), np.uint8), "JPEG", exif=noise)
    case(f"an image with an EXIF block of noise {i}", puts("images/p0.jpg", data, kept()))

# -- modes and formats ------------------------------------------------------------------------------------------------

M = MASKS["p0"]
ALPHA = np.full_like(M, 255)
case("mask of 1 bit", as_mask(png(SMALL, 1), SMALL))
case("mask of 1 bit, by Pillow", as_mask(written(SMALL.astype(bool), "PNG"), SMALL))
for bits in (2, 4):
    few = M % 3
    case(f"grey mask of {bits} bits", as_mask(png(few, bits), None, "8 bits"))
    void = np.where(few == 2, 2**bits - 1, 0)  # would be read as 255, which is void
    case(f"grey mask of {bits} bits that looks void", as_mask(png(void, bits), None, "8 bits"))
for bits in (1, 2, 4, 8):
    few = M % min(3, 2**bits)
    case(f"palette mask of {bits} bits", as_mask(png(few, bits, PALETTE), few))
    case(f"palette mask of {bits} bits, interlaced", as_mask(png(few, bits, PALETTE, interlaced=True), few))
clear = odd.chunk(b"tRNS", b"\0")  # of a palette: for display only
case("palette mask with a transparent colour", as_mask(png(M % 3, 8, PALETTE, clear), M % 3))
case("interlaced mask", as_mask(png(M, interlaced=True), M))
case("interlaced mask of 16 bits", as_mask(png(M, 16, interlaced=True), M))
case("mask of 16 bits", as_mask(png(M, 16), M))
case(
    "mask of 16 bits that needs them",
    as_mask(png(SMALL.astype(int) * 700, 16), SMALL.astype(int) * 700, names="a=0,b=700,c=1,d=2,e=255"),
)
case(
    "mask with a class beyond 16 bits",
    as_mask(written(Image.fromarray(M.astype(np.int32) * 1000), "TIFF"), None, "16 bits"),
)
case("grey mask with opaque alpha", as_mask(png(np.stack([M, ALPHA], 2), 8, GREY_ALPHA), M))
case("grey mask with alpha", as_mask(png(np.stack([M, ALPHA // 2], 2), 8, GREY_ALPHA), None, "alpha"))
case("grey mask with alpha, 16 bits", as_mask(png(np.stack([M, np.full((H, W), 65535)], 2), 16, GREY_ALPHA), None))
case("grey as RGB", as_mask(png(np.stack([M] * 3, 2), 8, RGB), None, "colours"))
case("grey as RGB of 16 bits", as_mask(png(np.stack([M] * 3, 2), 16, RGB), None, "16 bits"))
case(
    "colours of 16 bits",
    as_mask(png(np.stack([M] * 3, 2), 16, RGB), None, "16 bits", names="a=#000000,b=#010101", void=[(255,) * 3]),
)
case("RGBA", as_mask(png(np.stack([M] * 3 + [ALPHA], 2), 8, RGB_ALPHA), None, "colours"))
for mode in ("CMYK", "YCbCr", "LAB", "HSV", "F", "PA", "RGBX"):
    picture = Image.fromarray(M).convert("RGB" if mode in ("LAB", "HSV") else "L")
    with io.BytesIO() as out:
        try:
            picture = picture.convert(mode) if mode not in ("LAB", "HSV") else Image.merge(mode, picture.split())
            picture.save(out, "TIFF")
        except (OSError, ValueError, KeyError):
            continue
        case(f"TIFF mask of mode {mode}", as_mask(out.getvalue(), None))
        case(f"TIFF image of mode {mode}", puts("images/p0.jpg", out.getvalue(), either("p0.jpg")))
floats = M.astype(np.float32)
for name, value in {"NaN": np.nan, "infinity": np.inf, "a half": 0.5, "1": 1.0}.items():
    floats[0, 0] = value
    case(f"float mask with {name}", as_mask(written(floats, "TIFF"), None, "mode F"))
    case(f"float image with {name}", puts("images/p0.jpg", written(floats, "TIFF"), refused("p0.jpg", "mode F")))
case("negative mask", as_mask(written(M.astype(np.int32) - 1, "TIFF"), None, "-1..254"))
for name, options in {"raw": {}, "deflate": {"compression": "tiff_adobe_deflate"}, "lzw": {"compression": "tiff_lzw"},
                      "packbits": {"compression": "packbits"}}.items():  # fmt: skip
    case(f"TIFF mask, {name}", as_mask(written(M, "TIFF", **options), M))
    case(f"TIFF mask of 16 bits, {name}", as_mask(written(M.astype(np.uint16), "TIFF", **options), M))
    case(f"TIFF palette mask, {name}", as_mask(written(Image.fromarray(M).convert("P"), "TIFF", **options), M))
    half = written(M, "TIFF", **options)
    case(f"TIFF mask, {name}, cut", as_mask(half[: len(half) // 2], None))
case(
    "TIFF mask of 16 bits, big-endian",
    as_mask(written(Image.frombytes("I;16B", (W, H), M.astype(">u2").tobytes()), "TIFF"), M),
)
case("TIFF mask as JPEG", as_mask(written(M, "TIFF", compression="jpeg"), None, "lossy"))
inverted = written(M, "TIFF", tiffinfo={262: 0})
case("TIFF mask with white as zero", as_mask(inverted, None, "white"))
case(
    "TIFF mask of two pages",
    as_mask(written(M, "TIFF", save_all=True, append_images=[Image.fromarray(255 - M)]), None, "2 pictures"),
)
case(
    "animated PNG mask",
    as_mask(written(M, "PNG", save_all=True, append_images=[Image.fromarray(255 - M)]), None, "2 pictures"),
)
case("GIF mask", as_mask(written(Image.fromarray(M).convert("P"), "GIF"), None, "renumbered"))
case("GIF mask, grey", as_mask(written(M, "GIF"), None, "renumbered"))
case(
    "animated GIF mask",
    as_mask(written(M, "GIF", save_all=True, append_images=[Image.fromarray(255 - M)]), None, "GIF"),
)
case("BMP mask", as_mask(written(M, "BMP"), M))
case("BMP palette mask", as_mask(written(Image.fromarray(M).convert("P"), "BMP"), M))
case("BMP mask of 1 bit", as_mask(written(SMALL.astype(bool), "BMP"), SMALL))
case("BMP mask of colours", as_mask(written(Image.fromarray(M).convert("RGB"), "BMP"), None, "colours"))
for name, options in {
    "lossy": {},
    "lossless": {"lossless": True},
    "animated": {"save_all": True, "append_images": [Image.new("RGB", (W, H))]},
}.items():
    case(f"WebP mask, {name}", as_mask(written(Image.fromarray(M).convert("RGB"), "WEBP", **options), None, "WEBP"))
    case(f"WebP image, {name}", puts("images/p0.jpg", written(Image.new("RGB", (W, H)), "WEBP", **options), kept()))
for mode in ("L", "RGB", "CMYK"):
    case(f"JPEG mask of mode {mode}", as_mask(written(Image.fromarray(M).convert(mode), "JPEG"), None, "JPEG"))
case("JPEG 2000 mask", as_mask(written(M, "JPEG2000"), None, "JPEG2000"))

for mode, format in (("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("L", "JPEG"),
                     ("P", "GIF"), ("RGB", "BMP"), ("RGBA", "TIFF"), ("RGB", "TIFF"), ("RGB", "JPEG2000")):  # fmt: skip
    case(f"{format} image of mode {mode}", puts("images/p0.jpg", written(Image.new(mode, (W, H), 1), format), kept()))
case("image of 16 bits", puts("images/p0.jpg", png(M, 16), refused("p0.jpg", "I;16")))
case("RGB image of 16 bits", puts("images/p0.jpg", png(np.zeros((H, W, 3)), 16, RGB), kept()))
case("image of 2 bits", puts("images/p0.jpg", png(M % 3, 2), kept()))
case(
    "animated image",
    puts("images/p0.jpg", written(M, "GIF", save_all=True, append_images=[Image.fromarray(255 - M)]), kept()),
)
case(
    "MPO image",
    puts(
        "images/p0.jpg",
        written(Image.new("RGB", (W, H)), "MPO", save_all=True, append_images=[Image.new("RGB", (W, H))]),
        kept(),
    ),
)
JPEG = written(np.random.default_rng(9).integers(0, 256, (H, W, 3), dtype=np.uint8), "JPEG")
case("JPEG with extraneous bytes", puts("images/p0.jpg", JPEG[:-2] + bytes(9) + JPEG[-2:], kept()))
case("JPEG that ends early, politely", puts("images/p0.jpg", JPEG[:-20] + JPEG[-2:], kept()))
case("JPEG with something behind it", puts("images/p0.jpg", JPEG + PAGE, kept()))
case("PNG with something behind it", as_mask(png(M) + PAGE, M))
case(
    "JPEG of separate RGB", puts("images/p0.jpg", written(np.zeros((H, W, 3), np.uint8), "JPEG", keep_rgb=True), kept())
)
case(
    "progressive JPEG", puts("images/p0.jpg", written(np.zeros((H, W, 3), np.uint8), "JPEG", progressive=True), kept())
)
case(
    "image as mask",
    lambda f: (shutil.copy(f / "images/p2.png", f / "masks/p2.png"), refused("masks/p2.png", "colours"))[1],
)

# -- sizes and bombs --------------------------------------------------------------------------------------------------

for shape in ((H, W + 1), (H - 1, W), (1, 1), (W, H), (H * 2, W * 2), (1, H * W), (H // 2, W // 2)):
    small = np.zeros(shape, np.uint8)
    case(
        f"mask of {shape}",
        puts(
            "masks/p0.png",
            written(small, "PNG"),
            refused("p0.jpg", f"is {H}x{W} but its mask is {shape[0]}x{shape[1]}"),
        ),
    )
    case(
        f"image of {shape}",
        puts("images/p0.jpg", written(small, "JPEG"), refused("p0.jpg", f"is {shape[0]}x{shape[1]}")),
    )
for format in ("PNG", "JPEG", "GIF", "BMP"):
    case(f"{format} mask that promises 50,000 x 50,000", as_mask(odd.promises(format), None, "--max-megapixels"))
    case(
        f"{format} image that promises 50,000 x 50,000",
        puts("images/p0.jpg", odd.promises(format), refused("p0.jpg", "--max-megapixels")),
    )
case("PNG mask that promises 2**31", as_mask(odd.promises("PNG", 2**31 - 1), None, "--max-megapixels"))
case("PNG mask that promises 10,000 x 10,000", as_mask(odd.promises("PNG", 10_000), None, "broken"))
for kind in (b"zTXt", b"iTXt", b"iCCP"):
    bomb = odd.text_bomb(kind, 200 << 20)
    case(f"mask with a {kind.decode()} bomb", puts("masks/p0.png", png(M, extra=bomb), either("p0.png")))
    case(
        f"image with a {kind.decode()} bomb",
        puts("images/p2.png", png(np.zeros((H, W, 3)), 8, RGB, bomb), either("p2.png")),
    )

# -- values -----------------------------------------------------------------------------------------------------------

for values in ((3,), (7, 9), (254,), (128, 64)):
    stray = M.copy()
    stray[0, : len(values)] = values
    case(f"stray values {values}", as_mask(png(stray), None, f"unknown mask value {min(values)}"))
case("stray value 65535", as_mask(png(np.where(M == 2, 65535, M.astype(int)), 16), None, "unknown mask value 65535"))
case("instance ids", as_mask(png(M.astype(int) * 100 + 26000, 16), None, "instance ids"))
case("nothing but void", as_mask(png(ALPHA), ALPHA))
case("nothing but one class", as_mask(png(M * 0), M * 0))
case("values stretched to be seen", as_mask(png(np.array([0, 100, 200], np.uint8)[M % 3]), None, "unknown mask value"))

# -- names and folders ------------------------------------------------------------------------------------------------


def renamed(image: str | bytes, mask: str | bytes, may: May) -> Spoil:
    """p3's image and mask bear other names."""

    def spoil(folder: Path) -> May:
        for kind, name in (("images", image), ("masks", mask)):
            os.rename(folder / kind / "p3.png", os.path.join(os.fsencode(folder / kind), os.fsencode(name)))
        return may

    return spoil


def moved(sample_id: str) -> May:
    return May(None, {**{k: v for k, v in MASKS.items() if k != "p3"}, sample_id: MASKS["p3"]})


for name in ("späße", "写真 1", "🦊", "a b  c", "a\nb", "a\tb", "-rf", "50%", "[bold]x", "a'b\"c", "a;b|c", "a\\b", "#7", "?",
             "*", "~", "\u202egnp", "CON", "x" * 240, "{}", "$HOME", "a,b", "a=b", "\x1b[31mred", "nul\x01"):  # fmt: skip
    case(f"named {name!r}", renamed(f"{name}.png", f"{name}.png", moved(name)))
for name in ("späße", "é", "Å"):
    nfc, nfd = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    case(f"named {name!r}, the mask in NFD", renamed(f"{nfc}.png", f"{nfd}.png", moved(nfc)))
    case(f"named {name!r}, the image in NFD", renamed(f"{nfd}.png", f"{nfc}.png", moved(nfc)))
case("named in no UTF-8", renamed(b"caf\xe9.png", b"caf\xe9.png", refused("caf\\xe9.png")))
case("named in upper case", renamed("P3.PNG", "P3.png", moved("P3")))
case("named in two cases", renamed("p3.png", "P3.png", refused("p3.png", "no mask")))
case("a mask with two suffixes", renamed("p3.png", "p3.png.png", refused("p3.png", "no mask")))
case("a mask with an unknown suffix", renamed("p3.png", "p3.txt", refused("p3.png", "no mask")))
case("a mask without a suffix", renamed("p3.png", "p3", refused("p3.png", "no mask")))
case("a mask with a carriage return", renamed("p3.png", "p3\r.png", refused("p3.png", "no mask")))
case("a hidden pair", renamed(".p3.png", ".p3.png", without("p3")))
case("a PNG mask named .jpg", renamed("p3.png", "p3.jpg", kept()))
case("a PNG image named .jpeg", renamed("p3.jpeg", "p3.tiff", kept()))
case("files of others", puts("images/Thumbs.db", b"x", kept()))
case("._ files", puts("masks/._p0.png", b"\0\5\x16\7", kept()))
case("two images of one name", puts("images/p3.jpg", JPEG, refused("p3", "same name without suffix")))
case("one image too many", puts("images/p9.png", png(M), refused("p9.png", "no mask")))
case("one mask too many", puts("masks/p9.png", png(M), refused("p9.png", "no image")))


def does(action: Callable[[Path], object], may: May) -> Spoil:
    def spoil(folder: Path) -> May:
        action(folder)
        return may

    return spoil


def linked(name: str, to: str) -> Callable[[Path], object]:
    def link(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return link


def both(*actions: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [action(folder) for action in actions]


def outside(folder: Path) -> None:
    """p0's mask lies elsewhere, and is linked."""
    shutil.move(folder / "masks/p0.png", folder.parent / "elsewhere.png")
    (folder / "masks/p0.png").symlink_to(folder.parent / "elsewhere.png")


def circles(folder: Path) -> None:
    """Folders that hold links to each other: walked without care, they have no end."""
    for here in "abcd":
        (folder / "images" / here).mkdir()
    for here in "abcd":
        for there in "abcd":
            (folder / "images" / here / f"to {there}").symlink_to(folder / "images" / there)


def replaced(path: str, by: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / path).unlink()
        by(folder / path)

    return replace


case("a link to its own folder", does(linked("images/loop", "."), kept()))
case("a link to the folder above", does(linked("images/loop", ".."), kept()))
case("a link to itself", does(linked("images/loop", "loop"), kept()))
case("links in circles", does(circles, kept()))
case("a mask that links to itself", does(linked("masks/p0.png", "p0.png"), refused("p0.png")))
case("a mask that links to nothing", does(linked("masks/p0.png", "gone.png"), refused("p0.png")))
case("an image that links to nothing", does(linked("images/p0.jpg", "gone.jpg"), refused("p0.jpg")))
case(
    "a pair that links to nothing",
    does(both(linked("images/p0.jpg", "gone"), linked("masks/p0.png", "gone")), refused("p0.")),
)
case("a mask that is linked", does(outside, kept()))
case("a mask that is a folder", does(replaced("masks/p0.png", Path.mkdir), refused("p0")))
case("a folder named like a mask", does(lambda f: (f / "masks/p9.png").mkdir(), kept()))
case("a mask that is a pipe", does(replaced("masks/p0.png", os.mkfifo), refused("p0")))
case(
    "masks that are the images",
    does(both(lambda f: shutil.rmtree(f / "masks"), linked("masks", "images")), refused("p0.jpg", "JPEG")),
)
case("no masks", does(lambda f: shutil.rmtree(f / "masks"), refused("masks", "does not exist")))
case("no images", does(lambda f: shutil.rmtree(f / "images"), refused("images")))
case(
    "masks is a file",
    does(both(lambda f: shutil.rmtree(f / "masks"), lambda f: (f / "masks").write_text("")), refused("masks")),
)
case(
    "an empty folder",
    does(
        both(lambda f: shutil.rmtree(f / "masks"), lambda f: shutil.rmtree(f / "images")), refused("images/ and masks/")
    ),
)
case("one pair", does(lambda f: [p.unlink() for p in f.rglob("p[123].*")], refused("only one pair")))


# -- contracts --------------------------------------------------------------------------------------------------------


def named(file: str, text: str | bytes, *said: str, masks: bool = False, classes: list[str] | None = None) -> Spoil:
    """--names is a file that holds `text`; with `masks` it is understood."""

    def spoil(folder: Path) -> May:
        path = folder / file
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        if masks:
            return kept(None, classes or ["a", "b", "c"], names=str(path))
        return refused(*said, names=str(path))

    return spoil


ABC = ["a", "b", "c"]
case("names with a BOM", named("n.txt", "\ufeffa\nb\nc\n", masks=True))
case("names with carriage returns", named("n.txt", "a\r\nb\r\nc\r\n", masks=True))
case("names with blanks", named("n.txt", "  a \nb\t\nc\n\n\n", masks=True))
case("names in JSON with a BOM", named("n.json", '\ufeff{"0": "a", "1": "b", "2": "c"}', masks=True))
case("names twice", named("n.txt", "a\nb\na\n", "'a' is declared twice"))
case("names with an empty line between", named("n.txt", "a\n\nb\nc\n", "n.txt", "line 2"))
case("no names", named("n.txt", "", "n.txt"))
case("one name", named("n.txt", "a\n", "2 to 255 classes"))
case("300 names", named("n.txt", "\n".join(map(str, range(300))), "2 to 255 classes"))
case("names in Latin-1", named("n.txt", "a\nb\ncaf\xe9\n".encode("latin-1"), "n.txt"))
case("names in UTF-16", named("n.txt", "a\nb\nc\n".encode("utf-16"), "n.txt"))
BAD_CONTRACTS = r"""
null
7
true
a
[]
{}
{
a: [
a\tb:\n\t- c
- [a, b]\n- c\n- d
- {a: 1}\n- b\n- c
- \n- b\n- c
- yes\n- no\n- maybe
- 2001-99-99\n- b\n- c
&a [*a, b, c]
!!python/object/apply:os.system [echo]
a: b\n---\nc: d
{0: a, 0: b, 1: c, 2: d}
{'0': a, 0: b, 1: c}
{0: a, 1.5: b, 2: c}
{0: a, true: b, 2: c}
{-1: a, 0: b, 1: c}
{a: 0, b: 1, c: 2}
{0: a, 1: [b], 2: c}
{0: a, 1: null, 2: c}
{0: a, 1: {name: b}, 2: c}
{id2label: 7}
{id2label: {}}
{id2label: [a, b, c]}
{0: a, 99999999999999999999: b}
{0: a, 1: yes}
{0: '', 1: b, 2: c}
classes: 7
classes: []
classes: [a, b, c]
classes: [{name: a}, {name: b}]
classes: [{raw: [0]}, {raw: [1]}]
classes: [{name: a, raw: 0}, {name: b, raw: 1}, {name: c, raw: 2}]
classes: [{name: a, raw: [0]}, {name: b, raw: '12'}]
classes: [{name: a, raw: [0, 2]}, {name: b, raw: [1.5]}]
classes: [{name: a, raw: [0, 2]}, {name: b, raw: [true]}]
classes: [{name: a, raw: [0]}, {name: b, raw: [0]}]
classes: [{name: a, raw: [-1]}, {name: b, raw: [1]}]
classes: [{name: a, raw: [0]}, {name: b, raw: [70000]}]
classes: [{name: a, raw: [0]}, {name: a, raw: [1, 2]}]
classes: [{name: [a], raw: [0]}, {name: b, raw: [1, 2]}]
classes: [{name: a, raw: [0]}, {name: b, raw: [1, 2]}]\nvoid: '255'
classes: [{name: a, raw: [0]}, {name: b, raw: [1, 2]}]\nvoid: 255
classes: [{name: a, raw: [0], color: red}, {name: b, raw: [1, 2]}]
classes: [{name: a, raw: [0], color: [1, 2]}, {name: b, raw: [1, 2]}]
classes: [{name: a, raw: [0], color: [1, 2, 300]}, {name: b, raw: [1, 2]}]
classes: [{name: a, raw: [0], color: '#12'}, {name: b, raw: [1, 2]}]
classes: [{name: a, raw: [0], colour: '#123456'}, {name: b, raw: [1, 2]}]
classes: [{name: a, raw: [0], raw: [1]}, {name: b, raw: [2]}]
classes: [{name: a, rgb: ['#000000']}, {name: b, raw: [1]}]
classes: [{name: a, rgb: []}, {name: b, rgb: ['#010101']}]
classes: [{name: a, rgb: '#00000'}, {name: b, rgb: '#010101'}]
classes: [{name: a, rgb: [[0, 0]]}, {name: b, rgb: '#010101'}]
classes: [{name: a, raw: []}, {name: b, raw: [0, 1, 2]}]
"""  # one a line; \n and \t are written out
LAUGHS = (
    "[" + ", ".join(f"&{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdef", "bcdefg")) + "]"
)  # 9**7 times "a"
bad = [line.replace("\\n", "\n").replace("\\t", "\t") for line in BAD_CONTRACTS.strip().splitlines()]
for text in (*bad, "", "\0", "[" * 3000, f"- &a [a]\n- {LAUGHS}", f"0: &a [a]\n1: {LAUGHS}",
             f"classes: [{{name: &a [a], raw: {LAUGHS}}}, {{name: b, raw: [1]}}]",
             f"classes: [{{name: &a [a], rgb: {LAUGHS}}}, {{name: b, rgb: [1]}}]"):  # fmt: skip
    case(f"contract {text[:70]!r}", named("n.yaml", text, "n.yaml"))
case(
    "a contract that is right",
    named("n.yaml", "classes: [{name: a, raw: [0]}, {name: b, raw: [1, 2]}]", masks=True, classes=["a", "b"]),
)
case("id2label that is right", named("n.json", '{"id2label": {"2": "c", "0": "a", "1": "b"}}', masks=True))
for text in ("", ",", "a,,b", "a=,b", "=1,b", "a=1=2,b", "a=-1,b=2", "a=1.5,b", "a=0,b=#010101", "a=#12345,b", "a,b,a",
             "a=0,b=0", "a" * 500,
             "n.txt", "gone.yaml", "s4://x/n.txt", "file:///etc/passwd.txt", "../n.yaml", "OWNER/NAME"):  # fmt: skip
    case(f"--names {text[:40]!r}", lambda folder, text=text: refused("", names=text))


# -- the runs ---------------------------------------------------------------------------------------------------------


def attempt(work: Callable[[], T]) -> tuple[str, T | None]:
    """(message of a refusal, None) or ("", what came out)."""
    try:
        return "", work()
    except UserError as error:
        return str(error), None


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
    assert len(CASES) + len(INDEXES) >= 300


# -- an index that was tampered with, for whoever trains ----------------------------------------------------------------


@pytest.fixture(scope="session")
def prepared(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(str(good), str(out), names=NAMES)
    return out


def reads(uri: Path) -> dict[str, bytes]:
    """All that training reads: the index, the contract, the shards and their row groups."""
    loaded = index.load(str(uri))
    assert loaded.labels.num_classes == 3
    found = {}
    for split in ("train", "val"):
        source = Source(str(uri), loaded, split)
        source.check()
        for group in range(len(source.sizes)):
            rows = source.fetch(group)
            found |= {rows.sample(r).sample_id: rows.sample(r).mask.to_pybytes() for r in range(rows.num_rows)}
    return found


def edits() -> Iterator[tuple[str, Callable[[str], str | bytes]]]:
    """(what, index.json -> another)"""
    for i in range(8):
        yield f"cut at {i}/8", lambda text, i=i: text[: len(text) * i // 8]
    for text in (
        "null",
        "[]",
        "7",
        '"x"',
        "{}",
        '{"format": "segdist-1"}',
        "[" * 100_000,
        '{"a": ' * 50_000,
        '{"format": ' + "9" * 5000 + "}",
    ):
        yield f"is {text[:20]}", lambda _, text=text: text
    yield "has a BOM", lambda text: "\ufeff" + text
    yield "is UTF-16", lambda text: text.encode("utf-16")
    yield "has bytes of no UTF-8", lambda text: text.encode().replace(b"segdist", b"seg\xff")
    yield "has a NaN", lambda text: text.replace('"void_pixels": ', '"void_pixels": NaN, "x": ', 1)

    def at(*keys: str | int, value: object) -> Callable[[str], str]:
        def edit(text: str) -> str:
            tree = json.loads(text)
            node = tree
            for key in keys[:-1]:
                node = node[key]
            node[keys[-1]] = value
            return json.dumps(tree)

        return edit

    train = ("splits", "train")
    shard = (*train, "shards", 0)
    for keys, values in {
        ("contract",): ({}, None, [], {"classes": [], "void": []}, {"classes": 7, "void": 8}),
        ("contract", "void"): ("255", [255, 255], [0], None, [1.5]),
        ("contract", "classes", 0, "raw"): ("0", [0, 1], [0.5], [-1], [True], 0),
        ("splits",): ({}, [], None, {"train": {}}),
        (*train, "num_samples"): (0, -1, 99, "3", 1.5, 10**30),
        (*train, "rows_per_group"): (0, -1, 7, 10**30, None),
        (*train, "class_pixels"): ([], [1], None, [1, 2, 3, 4]),
        (*train, "shards"): ([], None, [{}]),
        (*shard, "file"): ("../../x.parquet", "/etc/passwd", "", "train/gone.parquet", "index.json", "train/\0", 7),
        (*shard, "rows"): (0, -1, 99, 10**30),
        (*shard, "bytes"): (0, -1, 10**30),
        (*shard, "footer_offset"): (0, -1, 10**30),
        (*shard, "footer_length"): (0, -1, 10**12),
        (*shard, "footer_sha256"): ("", "0" * 64, 7),
    }.items():
        for value in values:
            yield f"{'.'.join(map(str, keys))} = {str(value)[:40]}", at(*keys, value=value)


INDEXES = dict(edits())


@pytest.mark.parametrize("name", INDEXES)
def test_a_spoilt_index_is_refused_or_changes_nothing(prepared: Path, tmp_path: Path, name: str) -> None:
    expected = reads(prepared)
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    text = INDEXES[name]((data / "index.json").read_text(encoding="utf-8"))
    (data / "index.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    message, found = attempt(lambda: reads(data))
    if found is None:
        assert str(data) in message or "train" in message
        assert len(message) < 4000
    else:
        assert found == expected


@pytest.mark.parametrize("seed", range(12))
def test_a_spoilt_shard_is_refused(prepared: Path, tmp_path: Path, seed: int) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    path = next((data / "train").glob("*.parquet"))
    expected, spoilt = reads(data), bytearray(path.read_bytes())
    at = int(np.random.default_rng(seed).integers(0, len(spoilt)))
    if seed % 3 == 0:
        del spoilt[at:]
    else:
        spoilt[at] ^= 1 + seed
    path.write_bytes(spoilt)
    message, found = attempt(lambda: reads(data))
    assert path.name in message if found is None else found == expected  # there are bytes that nobody reads


# -- the command ------------------------------------------------------------------------------------------------------

ALL = """
import contextlib, sys
from segdist.cli import main
for line in sys.stdin.read().splitlines():
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
    ended = subprocess.run(
        [sys.executable, "-c", ALL], input="\n".join(lines).encode(), capture_output=True, cwd=ROOT, timeout=100
    )
    codes, texts = ended.stdout.decode().split(), ended.stderr.decode().split("-----\n")
    assert "Traceback" not in ended.stderr.decode()
    for may, code, text in zip(mays, codes, texts[:-1], strict=True):
        assert code == ("0" if may.said is None else "2")
        assert text.count("error:") == (may.said is not None)
        assert all(words in text.replace("\n", "") for words in may.said or ())
