"""Export formats whose logits equal the model's own, per architecture. Tests check this table.

`native` is the library that reads the export. `onnx` and `torch` are "any size" if images of any size are accepted, or "fixed"
if the export fixes one size, because tracing the library's code turns the image's sides into constants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Sizes = Literal["any size", "fixed"]


@dataclass(frozen=True)
class Formats:
    native: str
    onnx: Sizes
    torch: Sizes
    note: str = ""


_SMP, _HF = "segmentation_models_pytorch", "transformers"
FORMATS = {
    "segformer": Formats(_HF, "any size", "any size"),
    "unet": Formats(_SMP, "any size", "any size"),
    "unetplusplus": Formats(_SMP, "any size", "any size"),
    "fpn": Formats(_SMP, "any size", "any size"),
    "pspnet": Formats(_SMP, "any size", "any size"),
    "deeplabv3": Formats(_SMP, "any size", "any size"),
    "deeplabv3plus": Formats(_SMP, "any size", "any size"),
    "linknet": Formats(_SMP, "any size", "any size"),
    "pan": Formats(_SMP, "any size", "any size"),
    "manet": Formats(_SMP, "any size", "any size"),
    "smp_upernet": Formats(_SMP, "any size", "any size"),
    "smp_segformer": Formats(_SMP, "any size", "any size"),
    "smp_dpt": Formats(_SMP, "any size", "any size"),
    "beit": Formats(_HF, "fixed", "fixed"),
    "data2vec_vision": Formats(_HF, "fixed", "fixed"),
    "dpt": Formats(_HF, "fixed", "fixed"),
    "mobilenet_v2": Formats(_HF, "fixed", "fixed"),
    "mobilevit": Formats(_HF, "fixed", "fixed"),
    "mobilevitv2": Formats(_HF, "any size", "any size"),
    "sapiens2": Formats(_HF, "any size", "any size"),
    "upernet": Formats(_HF, "any size", "any size", "on ConvNeXt; fixed on other backbones"),
}


def formats_of(arch: dict[str, Any]) -> Formats:
    """Return the formats of one model, given its description in a checkpoint (Segmenter.arch)."""
    found = FORMATS[arch["name"]]
    if arch["name"] == "upernet" and arch["config"]["backbone_config"]["model_type"] != "convnext":
        # on Swin's windows, torch.export's solver takes many minutes
        return replace(found, onnx="fixed", torch="fixed")
    return found
