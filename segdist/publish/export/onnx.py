"""Exports as ONNX, with the content of segdist.json as metadata.

Opset 18 is the exporter's native version; older ones would need a version conversion. Runtimes from 2023 on read it
(onnxruntime 1.14, TensorRT 8.6, OpenVINO 2023).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from segdist.errors import UserError
from segdist.publish.export.graph import INPUT, Shape

FILE = "model.onnx"
_OPSET = 18


def check_installed() -> None:
    """Raise UserError if a package is missing that writes ONNX or runs it for the verification."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}. In your clone of segdist, run pip install -c constraints.txt '.[onnx]'"
        )


def write(traced: torch.export.ExportedProgram, shape: Shape, output: str, about: dict[str, Any], path: Path) -> None:
    """Write the ONNX file, with `about` in its metadata_props: strings unchanged, everything else as JSON.

    Protobuf is limited to 2 GB. torch writes larger weights (from 1.5 GB) to PATH.data beside it, where runtimes find them.
    """
    axes = {0: "batch"} if shape.any_batch else {}
    axes |= {} if shape.size else {2: "height", 3: "width"}
    loud = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript"), logging.getLogger("onnx_ir")
    levels = [logger.level for logger in loud]
    for logger in loud:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = torch.onnx.export(
                traced, input_names=[INPUT], output_names=[output], opset_version=_OPSET, dynamo=True, verbose=False,
                dynamic_shapes={INPUT: axes},
            )  # fmt: skip
    finally:
        for logger, level in zip(loud, levels):
            logger.setLevel(level)
    assert done is not None
    done.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()})
    done.save(path)
