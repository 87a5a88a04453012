"""Cases for test_fuzz_prepare: names, links, folders and contracts."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

from odd_pictures import png
from spoilt import MASKS, May, Spoil, case, kept, puts, refused, without
from spoilt_images import JPEG, M

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
case("two images of one name", puts("images/p3.jpg", JPEG, refused("p3", "same name without extension")))
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
