"""Cases for test_fuzz_prepare: images and masks that are damaged, of odd formats, too large, or of strange values."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import odd_pictures as odd
from odd_pictures import GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, png, written
from PIL import Image
from spoilt import MASKS, SMALL, H, May, Spoil, W, as_mask, case, either, kept, puts, refused

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
    image = Image.fromarray(M).convert("RGB" if mode in ("LAB", "HSV") else "L")
    with io.BytesIO() as out:
        try:
            image = image.convert(mode) if mode not in ("LAB", "HSV") else Image.merge(mode, image.split())
            image.save(out, "TIFF")
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
    as_mask(written(M, "TIFF", save_all=True, append_images=[Image.fromarray(255 - M)]), None, "2 images"),
)
case(
    "animated PNG mask",
    as_mask(written(M, "PNG", save_all=True, append_images=[Image.fromarray(255 - M)]), None, "2 images"),
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
case("instance ids", as_mask(png(M.astype(int) * 100 + 26000, 16), None, "instance IDs"))
case("nothing but void", as_mask(png(ALPHA), ALPHA))
case("nothing but one class", as_mask(png(M * 0), M * 0))
case("values stretched to be seen", as_mask(png(np.array([0, 100, 200], np.uint8)[M % 3]), None, "unknown mask value"))
