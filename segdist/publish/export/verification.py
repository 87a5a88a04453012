"""Verification of exports: another process without segdist runs the export, which must give the model's logits or classes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from segdist.errors import UserError
from segdist.models.segmenter import Segmenter, Traits, infer
from segdist.ops.resize import predict
from segdist.publish.export.graph import Shape, least_side

TOLERANCE = 1e-3  # relative to the largest logit: memory formats and libraries round differently
LEAST_EQUAL = 0.999  # share of the pixels: rounding may decide a few ties differently

# The program that runs the export, where segdist cannot be imported. Arguments: folder, layout, mean, standard deviation.
# `call` takes uint8 (B, 3, H, W).
_READER = """
import sys; sys.modules["segdist"] = None
import json, pathlib
import torch
from safetensors.torch import load_file, save_file
folder, layout = pathlib.Path(sys.argv[1]), sys.argv[2]
mean, std = (torch.tensor(json.loads(a)).view(3, 1, 1) for a in sys.argv[3:])
images = load_file(folder / "verification" / "images.safetensors")
if layout == "transformers":
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
    net, processor = AutoModelForSemanticSegmentation.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    call = lambda x: net(**processor(list(x), do_resize=False, input_data_format="channels_first", return_tensors="pt")).logits
elif layout == "segmentation_models_pytorch":
    import segmentation_models_pytorch as smp
    net = smp.from_pretrained(str(folder)).eval()
    call = lambda x: net((x / 255 - mean) / std)
elif layout == "onnx":
    import onnx, onnxruntime
    onnx.checker.check_model(str(folder / "model.onnx"))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    call = lambda x: torch.from_numpy(session.run(None, {"images": x.float().numpy()})[0])
else:
    net = torch.export.load(folder / "model.pt2").module()
    call = lambda x: net(x.float())
with torch.no_grad():
    save_file({k: call(x).contiguous() for k, x in images.items()}, folder / "verification" / "outputs.safetensors")
"""


@dataclass(frozen=True)
class Verification:
    """The measurements of a verification."""

    difference: float | None  # largest difference of a logit, relative to the largest logit; None for class-index masks
    equal_pixels: float  # share of pixels with the same class, at the images' own size
    sizes: tuple[str, ...]  # of the images, BxHxW

    def describe(self) -> str:
        logits = (
            "" if self.difference is None else f"the same logits (within {self.difference:.0e} of the largest) and "
        )
        return f"{logits}{self.equal_pixels:.4%} of the same classes, on images of {', '.join(self.sizes)}"


def native_sizes(traits: Traits) -> list[tuple[int, int, int]]:
    """Return (B, H, W) of images that need no padding, because native exports do not pad."""
    side = max(traits.least, traits.multiple * -(-64 // traits.multiple))
    sizes = [(1, side, side)] if traits.most else [(1, side, side), (1, 2 * side, 2 * side)]
    return sizes + ([] if traits.square else [(1, side, 2 * side)])


def graph_sizes(traits: Traits, shape: Shape) -> list[tuple[int, int, int]]:
    """Return (B, H, W) of three images: of different sizes, most of them odd, or of the graph's only size."""
    if shape.size:
        return [(1, *shape.size), (2, *shape.size)] if shape.any_batch else [(1, *shape.size)] * 3
    least = least_side(traits)
    return [(1, least, least), (2, 2 * least + 1, 3 * least - 5), (1, 4 * least - 7, 2 * least)]


def verify(
    model: Segmenter, layout: str, folder: Path, sizes: Sequence[tuple[int, int, int]], classes: bool = False
) -> Verification:
    """Load and run the export in FOLDER with its library, and compare its output: logits, or `classes`.

    Raises UserError if the export cannot be loaded or run, or if its output differs.
    """
    exchange = folder / "verification"
    exchange.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    images = [_random_images(size, generator) for size in sizes]
    save_file({str(i): image for i, image in enumerate(images)}, exchange / "images.safetensors")
    arguments = [str(folder), layout, *(json.dumps(list(part)) for part in (model.traits.mean, model.traits.std))]
    done = subprocess.run([sys.executable, "-c", _READER, *arguments], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        raise UserError(f"{layout} cannot read the export ({reason[:400]})")
    theirs = load_file(exchange / "outputs.safetensors")
    device, worst, equal = next(model.parameters()).device, 0.0, 0
    for i, image in enumerate(images):
        ours = infer(model, image.to(device)).cpu()
        difference, same = _compare(
            ours, theirs[str(i)], (image.shape[2], image.shape[3]), model.traits.align_corners, classes
        )
        worst, equal = max(worst, difference), equal + same
    share = equal / sum(image[:, 0].numel() for image in images)
    names = tuple("x".join(map(str, size)) for size in sizes)
    if not worst < TOLERANCE:
        what = "other classes than segdist, and not only at ties" if classes else "other logits than segdist"
        raise UserError(
            f"{layout} gives {what} (difference {worst:.1e} of the largest logit) on images of {', '.join(names)}"
        )
    if share < LEAST_EQUAL:
        raise UserError(f"{layout} gives only {share:.3%} of segdist's classes on images of {', '.join(names)}")
    return Verification(None if classes else worst, share, names)


def _compare(
    ours: torch.Tensor, theirs: torch.Tensor, size: tuple[int, int], align_corners: bool, classes: bool
) -> tuple[float, int]:
    """Return (largest difference of a logit relative to our largest logit, number of pixels with the same class).

    For class-index masks, the difference is how far our logit of their class lies below our logit of our class.
    """
    largest = float(ours.abs().max()) or 1.0
    pred = predict(ours, size, align_corners)
    if not classes:
        if theirs.shape != ours.shape:
            return float("inf"), 0
        same = predict(theirs, size, align_corners) == pred
        difference = float((theirs - ours).abs().max()) / largest
        return difference if difference == difference else float("inf"), int(same.sum())
    if theirs.dtype != torch.uint8 or theirs.shape != pred.shape or int(theirs.max()) >= ours.shape[1]:
        return float("inf"), 0
    same, worst = theirs == pred, 0.0
    for one, a, b in zip(ours, pred.long(), theirs.long()):
        if not torch.equal(a, b):
            wide = F.interpolate(one[None], size, mode="bilinear", align_corners=align_corners)[0]
            worst = max(worst, float((wide.gather(0, a[None]) - wide.gather(0, b[None])).max()) / largest)
    return worst, int(same.sum())


def _random_images(size: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """Return uint8 (B, 3, H, W): smooth coloured patches, so that several classes occur, with noise."""
    batch, *sides = size
    patches = F.interpolate(torch.rand(batch, 3, 5, 7, generator=generator) * 255, sides, mode="bilinear")
    noise = torch.randn(batch, 3, *sides, generator=generator) * 20
    return (patches + noise).clamp(0, 255).to(torch.uint8)
