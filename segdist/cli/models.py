"""Commands for trained models: evaluate, compare, export, predict."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import typer

from segdist.cli.app import Device, Json, Raw, RunOrCheckpoint, app, check_file, check_png, numbers, print_json, say
from segdist.errors import UserError

# Inference settings: options of `evaluate` and `predict`.
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Images (or windows) per forward pass. [default: as in the run]")
]
Mode = Annotated[
    Literal["whole", "sliding"] | None,
    typer.Option(help="Process an image at once, or in overlapping windows. [default: as in the run]"),
]
Window = Annotated[
    str | None,
    typer.Option(
        help="Size of a sliding window in px, HEIGHTxWIDTH. Example: 512x512. [default: as in the run, or its training crop]"
    ),
]
Overlap = Annotated[
    float | None,
    typer.Option(help="Overlap of neighbouring windows, from 0 to 0.95. Example: 0.5. [default: as in the run]"),
]
Scales = Annotated[
    str | None,
    typer.Option(help="Average the predictions over these scales. Example: 0.5,1,1.5. [default: as in the run]"),
]
Flip = Annotated[
    bool | None, typer.Option("--flip/--no-flip", help="Average with the flipped image. [default: as in the run]")
]


def inference_overrides(
    mode: str | None, window: str | None, overlap: float | None, scales: str | None, flip: bool | None
) -> dict[str, Any]:
    """Return the fields of `eval` that the options change."""
    given = {
        "mode": mode,
        "window_size": numbers("--window", window, "x", int, "512x512", 2),
        "window_overlap": overlap,
        "scales": numbers("--scales", scales, ",", float, "0.5,1,1.5"),
        "flip": flip,
    }
    return {key: value for key, value in given.items() if value is not None}


@app.command()
def evaluate(
    checkpoint: RunOrCheckpoint,
    data: Annotated[
        str | None, typer.Option(help="Prepared dataset (path or URI). [default: the one the model was trained on]")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    batch_size: BatchSize = None,
    mode: Mode = None,
    window: Window = None,
    overlap: Overlap = None,
    scales: Scales = None,
    flip: Flip = None,
    pictures: Annotated[
        bool,
        typer.Option(
            help="Also store the confusion counts of each image. `evaluate` then reports a 95% confidence interval for the "
            "mIoU, and `segdist compare` one for the difference of two models."
        ),
    ] = False,
    boundary: Annotated[
        bool, typer.Option(help="Also compute boundary IoU (Cheng et al. 2021). It takes more time.")
    ] = False,
    confusion: Annotated[
        str | None, typer.Option(help="Plot the confusion matrix into this PNG file (path or URI).")
    ] = None,
    previews: Annotated[
        str | None,
        typer.Option(help="Draw samples into this PNG file (path or URI): image, mask and prediction side by side."),
    ] = None,
    num_previews: Annotated[
        int, typer.Option(min=1, max=64, help="Number of samples for --previews, spread over the split.")
    ] = 4,
    preview_ids: Annotated[
        str | None, typer.Option(help="Sample IDs for --previews, separated by commas. Replaces --num-previews.")
    ] = None,
    raw: Raw = False,
    device: Device = "auto",
    out: Annotated[
        str | None,
        typer.Option(help="Also write the result with the confusion matrix as JSON to this file (path or URI)."),
    ] = None,
    json: Json = False,
) -> None:
    """Score a model on a split of a dataset.

    Every sample is counted once, at the mask's own size, on any number of ranks.

    \b
    Example:
      segdist evaluate runs/photos --data data/photos --split val

    \b
    Large images, and several GPUs:
      segdist evaluate runs/photos --mode sliding --window 512x512 --overlap 0.5
      torchrun --nproc-per-node 4 -m segdist evaluate runs/photos
    """
    from segdist import storage
    from segdist.cli.tables import scores
    from segdist.console import console
    from segdist.evaluation.report import evaluate_checkpoint
    from segdist.runs.record import to_json

    changes = inference_overrides(mode, window, overlap, scales, flip)
    is_first = os.environ.get("RANK", "0") == "0"
    if preview_ids and not previews:
        raise UserError("--preview-ids has no effect without --previews. Add --previews FILE.png")
    if is_first:  # before the work
        for option, file in (("--confusion", confusion), ("--previews", previews)):
            if file:
                check_png(option, file)
        if out:
            check_file(out)
    ids = preview_ids and [one.strip() for one in preview_ids.split(",") if one.strip()]
    result = evaluate_checkpoint(
        checkpoint, data, split, batch_size, device, changes, per_sample=pictures, boundary=boundary, raw=raw,
        previews=previews, num_previews=num_previews, preview_ids=ids or None,
    )  # fmt: skip
    if not is_first:
        return
    console.print(scores(result))
    if out:
        storage.write(out, to_json(result, indent=1).encode())
        say(f"written: {out}")
    print_json(json, result)
    if confusion:
        from segdist.evaluation import figures

        drawn = figures.confusion(result["confusion"], list(result["iou"]))
        storage.write(confusion, figures.png(drawn))
        say(f"written: {confusion}")


@app.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="Report of model A, written by `segdist evaluate --out` (path or URI)."),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Report of model B, on the same data (path or URI).")],
    json: Json = False,
) -> None:
    """Compare the scores of two models.

    The scores are compared class by class. If both reports were made with `--pictures`, the difference in mIoU has a 95%
    confidence interval, from a paired bootstrap over the images. Boundary IoU is compared if both reports were made with
    `--boundary`. Reports on different data, splits or classes, or with different evaluation settings, cannot be compared.

    \b
    Example:
      segdist evaluate runs/a --pictures --out a.json
      segdist evaluate runs/b --pictures --out b.json
      segdist compare a.json b.json
    """
    from segdist.cli.tables import comparison
    from segdist.console import console
    from segdist.evaluation.compare import compare as run

    result = run(a, b)
    console.print(comparison(result))
    say(result["sentence"])
    print_json(json, result)


@app.command()
def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAMES", help="Show these models in full. [default: list all models]"),
    ] = None,
    json: Json = False,
) -> None:
    """List the models that can be trained.

    The list shows parameters, stride, export formats, and the licences of known pretrained weights.

    \b
    Examples:
      segdist models
      segdist models segformer unet
    """
    from dataclasses import asdict

    from segdist.cli.tables import catalogue, model
    from segdist.config.models import MODELS, unsupported_reason
    from segdist.console import console

    if unknown := [name for name in names or [] if name not in MODELS]:
        raise UserError(
            unsupported_reason(unknown[0]) or f"{unknown[0]!r} is not a model.name. `segdist models` lists all models"
        )

    from segdist.models.catalogue import entries

    found = entries(names or ())
    for part in [model(entry) for entry in found] if names else [catalogue(found)]:
        console.print(part)
    print_json(json, [asdict(entry) for entry in found])


@app.command()
def export(
    checkpoint: RunOrCheckpoint,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder for the export (path or s3://).")],
    form: Annotated[
        Literal["native", "onnx", "torch"],
        typer.Option(
            "--format",
            help="native: the layout of the model's own library. onnx: model.onnx, for ONNX Runtime, TensorRT, OpenVINO and "
            "others. torch: model.pt2, for torch.export.load.",
        ),
    ] = "native",
    size: Annotated[
        str | None,
        typer.Option(
            help="For onnx and torch: accept only images of HEIGHTxWIDTH px. Example: 512x512. [default: any size. If the "
            "model cannot be exported for any size: the run's data.image_size, or its training crop]"
        ),
    ] = None,
    argmax: Annotated[
        bool,
        typer.Option(
            "--argmax",
            help="For onnx and torch: return a class-index mask (uint8) of the image's size instead of logits.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing export of another run.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            help="Load and run the export in a process without segdist, and compare its output with the original model."
        ),
    ] = True,
    raw: Raw = False,
    json: Json = False,
) -> None:
    """Export a model for use without segdist.

    A native export loads with `transformers.pipeline("image-segmentation", model=DEST)`, or with `smp.from_pretrained(DEST)`
    for models of segmentation-models-pytorch. An onnx or torch export takes `images`: float32 (B, 3, H, W), RGB, 0 to 255. It
    does normalisation and padding itself. Class names, colours, sizes and scores are in segdist.json and in the ONNX metadata.

    \b
    Examples:
      segdist export runs/photos exports/photos
      segdist export runs/photos exports/onnx --format onnx --argmax
    """
    import torch

    from segdist.publish.export import export as run
    from segdist.runs.restore import load_trained

    fixed = numbers("--size", size, "x", int, "512x512", 2)
    if fixed and min(fixed) < 1:
        raise UserError(f"--size {size!r}: sizes must be at least 1 px. For example: 512x512")
    trained = load_trained(checkpoint, torch.device("cpu"), raw)
    summary = run(trained, dest, overwrite, verify, form, (fixed[0], fixed[1]) if fixed else None, argmax)
    takes = f", for {summary['sides']}" if "sides" in summary else ""
    say(f"exported {trained.uri} ({trained.weights} weights) for {summary['layout']}{takes}: {dest}")
    if verify:
        say(f"verified: {summary['layout']} alone gives {summary['verified']}")
    print_json(json, summary)


@app.command()
def predict(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A run, whose best checkpoint is used, a checkpoint, or an export. A path or URI, or an export on the Hugging "
            "Face Hub: OWNER/NAME or hf://OWNER/NAME@REVISION.",
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Image files, folders or patterns (paths or URIs). Examples: photos/, 'photos/**/*.jpg', "
            "'s3://BUCKET/day1/*.jpg'.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder for the masks and overlays (path or s3://).")],
    save: Annotated[
        str,
        typer.Option(
            help="What to write in addition to each class-index mask: overlay, color, probabilities, several of them "
            "(color,overlay), or '' for nothing."
        ),
    ] = "overlay",
    batch_size: BatchSize = None,
    mode: Mode = None,
    window: Window = None,
    overlap: Overlap = None,
    scales: Scales = None,
    flip: Flip = None,
    overwrite: Annotated[bool, typer.Option(help="Replace existing results.")] = False,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Refuse images with more megapixels than this.")] = 200,
    raw: Raw = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Predict masks for images.

    For each image, write a class-index mask and an overlay. The mask is a PNG with a palette. Its pixels are class numbers, 0
    for the first class, whatever values the training masks had. The fraction of pixels of each class is in shares.csv, with a
    row per image, and as JSON in shares.jsonl.

    With `--save probabilities`, NAME_probabilities.npz holds `probabilities`, float16 (classes, height, width) at the image's
    size, and `names`. The limit is 2 GB per image.

    \b
    Example:
      segdist predict runs/photos holiday/ --out predictions/

    OUT keeps the folders of the images: NAME.jpg becomes NAME.png. If two images differ only in their extension, NAME.jpg
    becomes NAME.jpg.png. OUT must not be inside a folder of images.

    If the command is interrupted, run it again: it continues, and repeats images that have changed. You can add other images to
    OUT, but an image of the same name needs --overwrite. Unreadable images are skipped and listed at the end, with exit
    code 2. Ctrl-C ends with exit code 130.
    """
    from dataclasses import replace

    from segdist.distributed import choose_device
    from segdist.evaluation.report import override_eval
    from segdist.launch.stop import terminable
    from segdist.predict.files import SUFFIXES, predict_files
    from segdist.publish.exported import load_model

    kinds = [kind.strip() for kind in save.split(",") if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in SUFFIXES]:
        raise UserError(f"--save {unknown[0]}: unknown output. Choose from {', '.join(SUFFIXES)}")
    changes = inference_overrides(mode, window, overlap, scales, flip) | (
        {"batch_size": batch_size} if batch_size else {}
    )
    trained = load_model(checkpoint, choose_device(device), raw)
    trained = replace(trained, cfg=override_eval(trained.cfg, changes))
    try:
        with terminable():
            done = predict_files(trained, images, out, max_megapixels, kinds, overwrite)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None  # the progress has been printed
    say(f"{len(done)} image(s): {out}")
    print_json(json, {"out": out, "images": done})
