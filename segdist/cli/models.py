"""Commands for trained models: evaluate, compare, export, predict."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import typer

from segdist.cli.app import Device, Json, Raw, RunOrCheckpoint, app, check_file, machine, numbers, say
from segdist.errors import UserError

# How a model looks at images: options of evaluate and predict.
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Images, or windows, per forward pass. [default: the run's own]")
]
Mode = Annotated[
    Literal["whole", "sliding"] | None,
    typer.Option(help="See an image at once, or in overlapping windows. [default: the run's own]"),
]
Window = Annotated[
    str | None, typer.Option(help="Sliding window, HEIGHTxWIDTH px. [default: the run's own, or its training crop]")
]
Overlap = Annotated[
    float | None,
    typer.Option(help="Share of a window that the next one covers again, 0 to 0.95. [default: the run's own]"),
]
Scales = Annotated[
    str | None, typer.Option(help="Average over these scales, such as 0.5,1,1.5. [default: the run's own]")
]
Flip = Annotated[
    bool | None, typer.Option("--flip/--no-flip", help="Average with mirrored images. [default: the run's own]")
]


def looking(
    mode: str | None, window: str | None, overlap: float | None, scales: str | None, flip: bool | None
) -> dict[str, Any]:
    """Fields of `eval` that the options change."""
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
    data: Annotated[str | None, typer.Option(help="Prepared data set. [default: the one it was trained on]")] = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    batch_size: BatchSize = None,
    mode: Mode = None,
    window: Window = None,
    overlap: Overlap = None,
    scales: Scales = None,
    flip: Flip = None,
    pictures: Annotated[
        bool,
        typer.Option(help="Count by sample: an interval for the mIoU, and what `segdist compare` needs, in the JSON."),
    ] = False,
    boundary: Annotated[bool, typer.Option(help="Boundary IoU (Cheng et al. 2021), too; it costs some time.")] = False,
    confusion: Annotated[
        str | None, typer.Option(help="Draw the confusion matrix into this PNG (path or URI).")
    ] = None,
    previews: Annotated[
        str | None, typer.Option(help="Draw samples into this PNG: image, truth and prediction side by side.")
    ] = None,
    num_previews: Annotated[int, typer.Option(min=1, max=64, help="How many, spread over the split.")] = 4,
    preview_ids: Annotated[str | None, typer.Option(help="Which instead, as a comma list of sample ids.")] = None,
    raw: Raw = False,
    device: Device = "auto",
    out: Annotated[
        str | None, typer.Option(help="Also write the JSON, with the confusion matrix, to this file.")
    ] = None,
    json: Json = False,
) -> None:
    """Score a model on a split: every sample once, at its mask's own size.

    Example: `segdist evaluate runs/photos --data data/photos --split val`

    Large images: `--mode sliding --window 512x512 --overlap 0.5`. Several ranks share the samples:
    `torchrun --nproc-per-node 4 -m segdist evaluate RUN`.
    """
    from segdist import storage
    from segdist.cli.tables import scores
    from segdist.console import console
    from segdist.evaluation.report import evaluate_checkpoint
    from segdist.runs.record import to_json

    changes = looking(mode, window, overlap, scales, flip)
    is_first = os.environ.get("RANK", "0") == "0"
    for option, file in (("--confusion", confusion), ("--previews", previews)):
        if file and not file.lower().endswith(".png"):
            raise UserError(f"{option} {file}: it will be a PNG; name it so")
    if preview_ids and not previews:
        raise UserError("--preview-ids needs --previews FILE.png, where they are drawn")
    for file in filter(None, (out, confusion, previews)):
        if is_first:
            check_file(file)  # before the work
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
    machine(json, result)
    if confusion:
        from segdist.evaluation import figures

        drawn = figures.confusion(result["confusion"], list(result["iou"]))
        storage.write(confusion, figures.png(drawn))
        say(f"written: {confusion}")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="Report of the first model: what `segdist evaluate --out` wrote.")],
    b: Annotated[str, typer.Argument(help="Report of the second model, on the same data.")],
    json: Json = False,
) -> None:
    """Say which of two evaluations is better, class by class, and whether that is more than the choice of samples.

    Example: `segdist compare before.json after.json`

    With `segdist evaluate ... --pictures --out FILE` for both, the difference comes with a 95 % interval (bootstrap over
    samples, both models on the same ones). Boundary IoU is compared where both have it (`segdist evaluate ... --boundary`).
    Reports of other data, splits, classes or protocols are refused.
    """
    from segdist.cli.tables import comparison
    from segdist.console import console
    from segdist.evaluation.compare import compare as run

    result = run(a, b)
    console.print(comparison(result))
    say(result["sentence"])
    machine(json, result)


@app.command()
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Show these in full. [default: list all]")] = None,
    json: Json = False,
) -> None:
    """List what can be trained: size, stride, resize rule, images, exports that verify, and known weights with licences.

    Example: `segdist models`, and `segdist models segformer unet` for more on these two
    """
    from dataclasses import asdict

    from segdist.cli.tables import catalogue, model
    from segdist.config.models import MODELS, refusal
    from segdist.console import console

    if unknown := [name for name in names or [] if name not in MODELS]:
        raise UserError(refusal(unknown[0]) or f"{unknown[0]!r} is no model.name; `segdist models` lists all")

    from segdist.models.catalogue import entries

    found = entries(names or ())
    for part in [model(entry) for entry in found] if names else [catalogue(found)]:
        console.print(part)
    machine(json, [asdict(entry) for entry in found])


@app.command()
def export(
    checkpoint: RunOrCheckpoint,
    dest: Annotated[str, typer.Argument(help="Folder for the export (path or s3://).")],
    form: Annotated[
        Literal["native", "onnx", "torch"],
        typer.Option(
            "--format",
            help="native: the layout of the model's own library. onnx: model.onnx, for onnxruntime, TensorRT, OpenVINO and "
            "others. torch: model.pt2, for torch.export.load.",
        ),
    ] = "native",
    size: Annotated[
        str | None,
        typer.Option(
            help="Of onnx and torch: for images of HEIGHTxWIDTH px alone. [default: of any size where that verifies, else "
            "the run's data.image_size or training crop]"
        ),
    ] = None,
    argmax: Annotated[
        bool,
        typer.Option(
            "--argmax", help="Of onnx and torch: put out a uint8 class map of the image's size in place of logits."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the export of another run.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            help="Have it read and run in another process without segdist, and compare what it gives with ours."
        ),
    ] = True,
    raw: Raw = False,
    json: Json = False,
) -> None:
    """Write a model for where segdist is not installed: in its library's own layout, as ONNX, or traced by torch.

    native: `transformers.pipeline("image-segmentation", model=DEST)`, or `smp.from_pretrained(DEST)` for models of
    segmentation-models-pytorch. A graph (onnx, torch) takes `images`, float32 (B, 3, H, W), RGB in 0..255: normalisation
    and padding are inside. segdist.json, and the ONNX file's own metadata, say class names, colours, sizes and scores.

    Example: `segdist export runs/photos exports/photos`, or `segdist export runs/photos exports/onnx --format onnx --argmax`
    """
    import torch

    from segdist.publish.export import export as run
    from segdist.runs.restore import load_trained

    fixed = numbers("--size", size, "x", int, "512x512", 2)
    if fixed and min(fixed) < 1:
        raise UserError(f"--size {size!r}: give px, such as 512x512")
    trained = load_trained(checkpoint, torch.device("cpu"), raw)
    summary = run(trained, dest, overwrite, verify, form, (fixed[0], fixed[1]) if fixed else None, argmax)
    takes = f", for {summary['sides']}" if "sides" in summary else ""
    say(f"exported {trained.uri} ({trained.weights} weights) for {summary['layout']}{takes}: {dest}")
    if verify:
        say(f"verified: {summary['layout']} alone gives {summary['verified']}")
    machine(json, summary)


@app.command()
def predict(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run (its best checkpoint is taken), a checkpoint or an export; a path or URI, or an export on the Hugging "
            "Face Hub: OWNER/NAME, hf://OWNER/NAME@REVISION."
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, or patterns such as `s3://BUCKET/day1/*.jpg` and `'photos/**/*.jpg'` (paths or URIs)."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder for masks and overlays (path or s3://).")],
    save: Annotated[
        str,
        typer.Option(
            help="What to write beside each index mask: overlay, color, probabilities, several (color,overlay), or ''."
        ),
    ] = "overlay",
    batch_size: BatchSize = None,
    mode: Mode = None,
    window: Window = None,
    overlap: Overlap = None,
    scales: Scales = None,
    flip: Flip = None,
    overwrite: Annotated[bool, typer.Option(help="Make anew what is there already.")] = False,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 200,
    raw: Raw = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write an index mask (PNG with palette) and an overlay for each image, and the share of each class in shares.csv.

    shares.jsonl has the same as JSON, one image per line. `--save probabilities` writes NAME_probabilities.npz for numpy:
    `probabilities`, float16 (classes, height, width) at the image's size, and `names`; no image's may exceed 2 GB.

    A mask holds class numbers, 0 for the first class and so on, whatever values the masks of the training had.

    Example: `segdist predict runs/photos holiday/ --out predictions/`

    Results lie in OUT as the images do in their folders: NAME.png for NAME.jpg, and for images that differ in their suffix
    alone NAME.jpg.png. OUT may not lie where images are looked for.

    The same command again goes on where it stopped (Ctrl-C: exit code 130), and makes anew what has changed. Other images may
    join those in OUT, but one of the same name is refused unless --overwrite. A bad image does not stop the others: such are
    listed at the end, with exit code 2.
    """
    from dataclasses import replace

    from segdist.distributed import choose_device
    from segdist.evaluation.report import with_changes
    from segdist.launch.stop import terminable
    from segdist.predict.files import ENDS, predict_files
    from segdist.publish.exported import load_model

    kinds = [kind.strip() for kind in save.split(",") if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in ENDS]:
        raise UserError(f"--save {unknown[0]}: give {', '.join(ENDS)}")
    changes = looking(mode, window, overlap, scales, flip) | ({"batch_size": batch_size} if batch_size else {})
    trained = load_model(checkpoint, choose_device(device), raw)
    trained = replace(trained, cfg=with_changes(trained.cfg, changes))
    try:
        with terminable():
            done = predict_files(trained, images, out, max_megapixels, kinds, overwrite)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None  # it has said how far it came
    say(f"{len(done)} image(s): {out}")
    machine(json, {"out": out, "images": done})
