"""Every architecture at its smallest: trees of `model` sections, by a name for people."""

from __future__ import annotations

from typing import Any

import pytest

VIT = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
STAGES = ["stage1", "stage2", "stage3", "stage4"]
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "out_features": STAGES}
SWIN = {
    "model_type": "swin", "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4,
    "out_features": STAGES,
}  # fmt: skip
CONVOLUTIONAL = (
    "unet", "unetplusplus", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "linknet", "pan", "manet", "smp_upernet",
    "smp_segformer",
)  # fmt: skip
ZOO: dict[str, dict[str, Any]] = {name: {"name": name, "encoder": "resnet18"} for name in CONVOLUTIONAL} | {
    "smp_dpt": {
        "name": "smp_dpt", "encoder": "tu-vit_tiny_patch16_224",
        "options": {"decoder_intermediate_channels": [16] * 4, "decoder_fusion_channels": 16},
    },
    "segformer": {"name": "segformer", "size": "tiny"},
    "beit": {"name": "beit", "options": {**VIT, "out_indices": [1, 2, 3, 4], "use_relative_position_bias": True}},
    "data2vec_vision": {"name": "data2vec_vision", "options": {**VIT, "out_indices": [1, 2, 3, 4]}},
    "dpt": {
        "name": "dpt",
        "options": {
            **VIT, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16,
        },
    },
    "mobilenet_v2": {"name": "mobilenet_v2", "options": {"depth_multiplier": 0.35}},
    "mobilevit": {
        "name": "mobilevit",
        "options": {
            "hidden_sizes": [16] * 3, "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32], "aspp_out_channels": 16,
        },
    },
    "mobilevitv2": {
        "name": "mobilevitv2",
        "options": {"width_multiplier": 0.25, "base_attn_unit_dims": [16, 16, 16], "aspp_out_channels": 16},
    },
    "sapiens2": {
        "name": "sapiens2",
        "options": {
            **VIT, "num_register_tokens": 1,
            "head_config": {"upsample_out_channels": [16, 16], "conv_out_channels": [16], "conv_kernel_sizes": [1]},
        },
    },
    "upernet on convnext": {
        "name": "upernet",
        "options": {
            "backbone_config": CONVNEXT, "hidden_size": 16, "auxiliary_in_channels": 32, "auxiliary_channels": 16,
        },
    },
    "upernet on swin": {
        "name": "upernet",
        "options": {"backbone_config": SWIN, "hidden_size": 16, "auxiliary_in_channels": 64, "auxiliary_channels": 16},
    },
}  # fmt: skip
SMP = tuple(name for name, tree in ZOO.items() if "encoder" in tree)
# Of each wrapper one in every test run (padded and of any size; fixed in size; of a nested backbone), the others in long ones.
QUICK = ("segformer", "unet", "beit", "upernet on convnext")
EVERY = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow, pytest.mark.long]) for name in ZOO]
