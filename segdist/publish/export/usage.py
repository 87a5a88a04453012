"""The Python code in an export's README.md, which predicts the classes of a photo exactly as segdist does, without segdist.

The code runs as it stands: sizes, normalisation and the resize rule of the model are written into it.
"""

from __future__ import annotations

from segdist.models.segmenter import Traits

_PHOTO = """photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")"""
_SAVED = (
    """Image.fromarray({classes}).save("classes.png")  # class numbers; their names and colours are in segdist.json"""
)
_PIPELINE = """from transformers import pipeline

segment = pipeline("image-segmentation", model="{location}")
for part in segment("photo.jpg"):
    print(part["label"], part["mask"])"""
_SMP = """import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

model = smp.from_pretrained("{location}").eval()
mean, std = torch.tensor({mean}).view(3, 1, 1), torch.tensor({std}).view(3, 1, 1)
{photo}
x = (torch.from_numpy(np.array({source})).permute(2, 0, 1)[None].float() / 255 - mean) / std
height, width = x.shape[2:]  # padded to multiples of {multiple} px
below, right = max({least} - height, -height % {multiple}), max({least} - width, -width % {multiple})
with torch.no_grad():
    logits = model(F.pad(x, (0, right, 0, below)))[:, :, :height, :width]
{resized}
{saved}"""
_TORCH = """import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

model = torch.export.load("{location}/model.pt2").module()
{photo}
x = torch.from_numpy(np.array({source})).permute(2, 0, 1)[None].float()  # (1, 3, H, W), RGB in 0..255
with torch.no_grad():
    {out} = model(x)
{resized}
{saved}"""
_ONNX = """import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{location}/model.onnx", providers=["CPUExecutionProvider"])
{photo}
x = np.array({source}, np.float32).transpose(2, 0, 1)[None]  # (1, 3, H, W), RGB in 0..255
({out},) = session.run(None, {{"images": x}})
{resized}
{saved}"""
_BILINEAR = """

def resize(x, size, axis):  # bilinear, with the model's align_corners
    last = x.shape[axis] - 1
    at = {at}
    low = at.astype(int)
    weight = (at - low).astype(np.float32).reshape(-1, *[1] * (x.ndim - 1 - axis))
    return x.take(low, axis) * (1 - weight) + x.take(np.minimum(low + 1, last), axis) * weight


classes = resize(resize(logits[0], photo.height, 1), photo.width, 2).argmax(0).astype(np.uint8)"""
_AT = {
    False: "((np.arange(size) + 0.5) * (last + 1) / size - 0.5).clip(0, last)",
    True: "np.linspace(0, last, size)",
}
_INTERPOLATED = (
    'logits = F.interpolate(logits, (photo.height, photo.width), mode="bilinear", align_corners={align})\n'
    "classes = logits.argmax(1)[0].byte().numpy()"
)


def code(
    layout: str,
    location: str,
    traits: Traits,
    image_size: int | tuple[int, int] | None,
    size: tuple[int, int] | None = None,
    argmax: bool = False,
) -> str:
    """Return Python code that predicts photo.jpg.

    `location`: the export's folder or Hub ID. `size` (height, width): the only size that a graph takes, if it is fixed.
    """
    if layout == "transformers":
        return _PIPELINE.format(location=location)
    resize = _resize_lines(size or image_size)
    classes, resized = "classes", _INTERPOLATED.format(align=traits.align_corners)
    if argmax:
        classes, resized = "classes[0]" + (".numpy()" if layout == "torch.export" else ""), ""
    elif layout == "onnx":
        resized = _BILINEAR.format(at=_AT[traits.align_corners])
    saved = _SAVED.format(classes=classes)
    if argmax and resize:
        saved = saved.replace(").save", ").resize(photo.size, Image.Resampling.NEAREST).save")
    text = {"segmentation_models_pytorch": _SMP, "torch.export": _TORCH, "onnx": _ONNX}[layout].format(
        location=location,
        photo=_PHOTO + resize,
        source="resized" if resize else "photo",
        out="classes" if argmax else "logits",
        resized=resized,
        saved=saved,
        mean=list(traits.mean),
        std=list(traits.std),
        least=traits.least,
        multiple=traits.multiple,
    )
    return text.replace("\n\nImage.fromarray", "\nImage.fromarray")


def _resize_lines(size: int | tuple[int, int] | None) -> str:
    """Return lines that resize `photo` to the model's input size as `resized`, or "" if the model takes any size."""
    if size is None:
        return ""
    if isinstance(size, int):
        return (
            f"\nlong = int({size} * max(photo.size) / min(photo.size))  # its shorter side becomes {size} px"
            f"\nsize = (long, {size}) if photo.height <= photo.width else ({size}, long)"
            "\nresized = photo.resize(size, Image.Resampling.BILINEAR)"
        )
    return (
        f"\nresized = photo.resize(({size[1]}, {size[0]}), Image.Resampling.BILINEAR)  # {size[0]}x{size[1]} px, height x "
        "width"
    )
