"""What can be trained, for people: every architecture with its source, its demands and its best-known weights."""

from __future__ import annotations

from dataclasses import dataclass

from segdist.config import NEEDS_PAIRS
from segdist.models import hf, smp

_KNOWN = {  # weights of the Hub, and their licence as their page has it
    "segformer": "nvidia/mit-b0 to -b5, nvidia/segformer-b0-finetuned-ade-512-512 and others (NVIDIA's licence: research only)",
    "beit": "microsoft/beit-base-finetuned-ade-640-640 (Apache-2.0)",
    "mobilevit": "apple/deeplabv3-mobilevit-small (Apple sample code licence)",
}


@dataclass(frozen=True)
class Entry:
    name: str  # model.name
    source: str
    package: str  # that has it
    example: str  # one line of YAML
    demands: str
    weights: str


def entries() -> list[Entry]:
    """Every value of model.name."""
    segformer = Entry(
        "segformer", "SegFormer (Xie et al. 2021, arXiv:2105.15203)", "transformers",
        "{name: segformer, weights: nvidia/mit-b0}", "sides of any size", _KNOWN["segformer"],
    )  # fmt: skip
    return [
        segformer,
        *(
            Entry(
                name, family.source, "segmentation-models-pytorch", f"{{name: {name}, encoder: resnet34, weights: imagenet}}",
                _demands(name, f"padded to the encoder's stride{f', at least {family.least} px' if family.least > 1 else ''}"),
                "any encoder of smp or timm (tu-NAME); ImageNet's where they have some",
            )
            for name, family in smp.FAMILIES.items()
        ),
        *(
            Entry(
                name, family.source, "transformers", f"{{name: {name}, weights: HUB_ID}}",
                _demands(name, hf.sides(family)), _KNOWN.get(name, "see the page of the weights for their licence"),
            )
            for name, family in hf.FAMILIES.items()
        ),
    ]  # fmt: skip


def _demands(name: str, sides: str) -> str:
    return sides + ("; two images or more in a micro-batch" if name in NEEDS_PAIRS else "")
