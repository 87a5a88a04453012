"""The `segdist` command. Human output goes to stderr; with --json, one last line on stdout is for machines.

A user's mistake is one readable message and exit code 2. Heavy libraries are imported by the command that needs them.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, Literal

import typer

from segdist.errors import RanksError, UserError

app = typer.Typer(
    help="Fine-tune semantic segmentation models on your own images, and get a number you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at a config.", no_args_is_help=True)
app.add_typer(config_app, name="config")

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout at the end.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto: CUDA when there is one.")]
RunOrCheckpoint = Annotated[
    str, typer.Argument(help="A run (its best checkpoint is taken) or one checkpoint folder; a path or URI.")
]


def main() -> None:
    """Entry point of the command."""
    from rich.markup import escape

    from segdist.log import console

    try:
        app()
    except UserError as error:
        if type(error).__name__ != "SharedError":  # rank 0 has said it
            console.print(f"[bold red]error:[/bold red] {escape(str(error))}")
        _exit(2)
    except RanksError as error:
        console.print(f"[bold red]error:[/bold red] {escape(str(error))}")
        _exit(error.exit_code)
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        _exit(end.code)


def _exit(code: int) -> None:
    """Ends the process. Among several ranks at once, without the interpreter's teardown.

    There gloo's threads (torch 2.15) now and then abort the process, "terminate called without an active exception", and
    torchrun would call a run failed that ended well. Everything of ours is written and closed by now.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _list_layouts(wanted: bool) -> None:
    """What `--list` prints."""
    if not wanted:
        return
    from segdist.cli.tables import layouts
    from segdist.data.importers import LAYOUTS
    from segdist.log import console

    console.print(layouts(LAYOUTS))
    raise typer.Exit


@app.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help="Folder with images and masks (path, s3:// or hf://), or what --format expects.")
    ],
    dest: Annotated[str, typer.Argument(help="Where the prepared data set goes (path or s3://).")],
    list_layouts: Annotated[
        bool, typer.Option("--list", callback=_list_layouts, is_eager=True, help="Explain all formats, and end.")
    ] = False,
    format: Annotated[str, typer.Option(help="Layout of SOURCE; --list explains them.")] = "folder",
    names: Annotated[
        str | None,
        typer.Option(
            help="Class names in order of mask values (sky,road), or name=value pairs (road=7,car=26), or for masks of "
            "colours name=#rrggbb; a .txt, .json or .yaml file (path or URI); a Hub data set OWNER/NAME with an "
            "id2label.json; or a preset (ade20k, camvid, cityscapes, pets, pets-binary, voc)."
        ),
    ] = None,
    void: Annotated[
        str | None, typer.Option(help="Mask values (or #rrggbb colours) that count for nothing. [default: 255]")
    ] = None,
    first: Annotated[
        int,
        typer.Option(min=0, help="Mask value of the first name; values below it are void. 1 for ADE20K's way."),
    ] = 0,
    palette: Annotated[
        str | None, typer.Option(help="Display colours of the classes: ade20k, cityscapes, voc or generated.")
    ] = None,
    color_tolerance: Annotated[
        int, typer.Option(min=0, max=64, help="Take the nearest declared colour, if each channel is at most this far.")
    ] = 0,
    val_share: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.9,
            help="About this share of images is for validation, where SOURCE has no splits; chosen by name, "
            "so that adding images later moves no other.",
        ),
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of that split and of the order of training rows.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first so many images of each split.")] = None,
    revision: Annotated[str | None, typer.Option(help="hub: commit, branch or tag.")] = None,
    subset: Annotated[
        str | None,
        typer.Option(
            help="hub: configuration of the data set. coco: panoptic, instances, stuff, stuffthingmaps or pixelmaps."
        ),
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="hub: column of images. [default: found by type]")] = None,
    mask_column: Annotated[str | None, typer.Option(help="hub: column of masks. [default: found by name]")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what DEST holds.")] = False,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Refuse larger pictures.")] = 200,
    json: Json = False,
) -> None:
    """Check images and masks, and pack them into shards that training can stream.

    Example: `segdist prepare photos/ data/photos --names background=0,crack=1`

    Safe to interrupt and to repeat: DEST counts as prepared once its index.json is there.
    """
    from segdist.data.importers import LAYOUTS
    from segdist.data.importers.layout import Ask
    from segdist.prepare import Declared
    from segdist.prepare import prepare as run

    if format not in LAYOUTS:
        raise UserError(f"--format {format!r} is unknown; there are {', '.join(LAYOUTS)} (--list explains them)")
    ask = Ask(val_share, seed, limit, revision, subset, image_column, mask_column)
    declared = Declared(names, _values(void), first, palette, color_tolerance)
    summary = run(source, dest, format, declared, ask, overwrite, max_megapixels)
    for name, split in summary["splits"].items():
        _say(f"{name}: {split['samples']} samples in {split['shards']} shard(s), {split['bytes'] / 1e6:.1f} MB")
    _say(f"prepared: {summary['uri']}")
    _machine(json, summary)


@app.command()
def train(
    config: Annotated[
        str, typer.Argument(help="A YAML config (path or URI); `segdist config show` explains its fields.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...")] = None,
    json: Json = False,
) -> None:
    """Train, evaluate and checkpoint; the same command continues an interrupted run.

    Example: `segdist train configs/camvid_unet_r34.yaml data.uri=data/camvid train.num_steps=2000`

    Several ranks: `torchrun --nproc-per-node 4 -m segdist train CONFIG`, or by Ray, on the cluster at RAY_ADDRESS or on this
    machine: `segdist train CONFIG scale.launcher=ray scale.num_ranks=4`.

    Ctrl-C and SIGTERM commit a checkpoint and stop, with exit code 75: not finished, the same command goes on.
    """
    from segdist.launch import run

    summary, is_first = run(_config(config, overrides))
    _machine(json and is_first, summary)
    if summary["state"] != "SUCCEEDED":
        raise typer.Exit(75)  # EX_TEMPFAIL of sysexits.h: try again


@app.command()
def evaluate(
    checkpoint: RunOrCheckpoint,
    data: Annotated[str | None, typer.Option(help="Prepared data set. [default: the one it was trained on]")] = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images, or windows, per forward pass. [default: the run's own]")
    ] = None,
    mode: Annotated[
        Literal["whole", "sliding"] | None,
        typer.Option(help="See an image at once, or in overlapping windows. [default: the run's own]"),
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Sliding window, HEIGHTxWIDTH px. [default: the run's own, or its training crop]")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="Share of a window that the next one covers again. [default: the run's own]")
    ] = None,
    scales: Annotated[
        str | None, typer.Option(help="Average over these scales, such as 0.5,1,1.5. [default: the run's own]")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Average with mirrored images. [default: the run's own]")
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(help="Count by picture: an interval for the mIoU, and what `segdist compare` needs, in the JSON."),
    ] = False,
    boundary: Annotated[bool, typer.Option(help="Boundary IoU (Cheng et al. 2021), too; it costs some time.")] = False,
    confusion: Annotated[
        str | None, typer.Option(help="Draw the confusion matrix into this PNG (path or URI).")
    ] = None,
    device: Device = "auto",
    out: Annotated[
        str | None, typer.Option(help="Also write the JSON, with the confusion matrix, to this file.")
    ] = None,
    json: Json = False,
) -> None:
    """Score a model on a split: every picture once, at its mask's own size.

    Example: `segdist evaluate runs/photos --data data/photos --split val`

    Large pictures: `--mode sliding --window 512x512 --overlap 0.5`. Several ranks share the pictures:
    `torchrun --nproc-per-node 4 -m segdist evaluate RUN`.
    """
    from segdist import storage
    from segdist.cli.tables import scores
    from segdist.evaluate import evaluate_checkpoint
    from segdist.log import console
    from segdist.record import to_json

    given = {
        "mode": mode,
        "window_size": _parts("--window", window, "x", int, "512x512"),
        "window_overlap": overlap,
        "scales": _parts("--scales", scales, ",", float, "0.5,1,1.5"),
        "flip": flip,
    }
    is_first = os.environ.get("RANK", "0") == "0"
    if out and is_first:
        storage.write(out, b"{}")  # before the work: can it be written?
    changes = {key: value for key, value in given.items() if value is not None}
    result = evaluate_checkpoint(checkpoint, data, split, batch_size, device, changes, pictures, boundary)
    if not is_first:
        return
    console.print(scores(result))
    if confusion:
        from segdist import figures

        drawn = figures.confusion(result["confusion"], list(result["iou"]))
        storage.write(confusion, figures.png(drawn))
        _say(f"written: {confusion}")
    if out:
        storage.write(out, to_json(result, indent=1).encode())
        _say(f"written: {out}")
    _machine(json, result)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="Report of the first model: what `segdist evaluate --out` wrote.")],
    b: Annotated[str, typer.Argument(help="Report of the second model, on the same data.")],
    json: Json = False,
) -> None:
    """Say which of two evaluations is better, class by class, and whether that is more than the choice of pictures.

    Example: `segdist compare before.json after.json`

    With `segdist evaluate ... --pictures --out FILE` for both, the difference comes with a 95 % interval (bootstrap over
    pictures, both models on the same ones). Reports of other data, splits, classes or protocols are refused.
    """
    from segdist.cli.tables import comparison
    from segdist.compare import compare as run
    from segdist.log import console

    result = run(a, b)
    console.print(comparison(result))
    _say(result["sentence"])
    _machine(json, result)


@app.command()
def export(
    checkpoint: RunOrCheckpoint,
    dest: Annotated[str, typer.Argument(help="Folder for the export (path or s3://).")],
    overwrite: Annotated[bool, typer.Option(help="Replace the export of another run.")] = False,
    json: Json = False,
) -> None:
    """Write a model in its library's own layout, to be used without segdist.

    SegFormer: `transformers.pipeline("image-segmentation", model=DEST)`. U-Net: `smp.from_pretrained(DEST)`.

    Example: `segdist export runs/photos exports/photos`
    """
    import torch

    from segdist.checkpoint import load_trained
    from segdist.export import export as run

    trained = load_trained(checkpoint, torch.device("cpu"))
    summary = run(trained, dest, overwrite)
    _say(f"exported {trained.uri} for {summary['layout']}: {dest}")
    _machine(json, summary)


@app.command()
def predict(
    checkpoint: RunOrCheckpoint,
    images: Annotated[list[str], typer.Argument(help="Pictures, or folders of pictures (paths or URIs).")],
    out: Annotated[str, typer.Option(help="Folder for masks and overlays (path or s3://).")],
    max_megapixels: Annotated[int, typer.Option(min=1, help="Refuse larger pictures.")] = 200,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write an index mask (PNG with palette) and an overlay with a legend for each picture.

    A mask holds class numbers, 0 for the first class and so on, whatever values the masks of the training had.

    Example: `segdist predict runs/photos holiday/*.jpg --out predictions/`
    """
    from segdist.checkpoint import load_trained
    from segdist.predict import predict_files
    from segdist.world import choose_device

    done = predict_files(load_trained(checkpoint, choose_device(device)), images, out, max_megapixels)
    _say(f"{len(done)} masks and overlays: {out}")
    _machine(json, {"out": out, "images": done})


@app.command()
def doctor(
    target: Annotated[
        str, typer.Argument(help="A YAML config, a prepared data set, or a folder of images and masks (paths or URIs).")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="With a config: section.field=value ...")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Look at every sample, not at some.")] = False,
    sample: Annotated[int, typer.Option(min=1, help="About how many samples per split to look at.")] = 200,
    format: Annotated[
        str, typer.Option(help="Of a folder: its layout; `segdist prepare --list` explains them.")
    ] = "folder",
    names: Annotated[str | None, typer.Option(help="Of a folder: as for `segdist prepare`.")] = None,
    void: Annotated[str | None, typer.Option(help="Of a folder: as for `segdist prepare`.")] = None,
    json: Json = False,
) -> None:
    """Look for what would waste a run: data, labels, leaks, storage, device; and rehearse two steps of it.

    Examples: `segdist doctor configs/demo.yaml data.uri=data/photos run.uri=runs/photos`, `segdist doctor data/photos --all`,
    `segdist doctor photos/ --names background=0,crack=1`

    Exit code 2 when something would waste a run; warnings alone leave 0.
    """
    from segdist.cli.tables import findings
    from segdist.doctor import examine
    from segdist.log import console
    from segdist.prepare import Declared

    most = None if everything else sample
    found = examine(target, overrides or [], most, format, Declared(names, _values(void)))
    console.print(findings(f"segdist doctor {target}", found))
    errors = [f for f in found if f.severity == "error"]
    warned = sum(f.severity == "warning" for f in found)
    _say(f"{len(errors)} error(s), {warned} warning(s)" + ("" if errors or warned else ": nothing stands in the way"))
    _machine(json, {"target": target, "healthy": not errors, "findings": [f.to_json() for f in found]})
    if errors:
        raise typer.Exit(2)


@app.command()
def stats(
    data: Annotated[str, typer.Argument(help="Prepared data set (path or URI).")],
    split: Annotated[str, typer.Option(help="Split to count.")] = "train",
    everything: Annotated[
        bool, typer.Option("--all", help="Read every sample, not some, for mean, std and samples.")
    ] = False,
    sample: Annotated[int, typer.Option(min=1, help="About how many samples to read.")] = 500,
    out: Annotated[str | None, typer.Option(help="Folder for stats.yaml and stats.png (path or s3://).")] = None,
    json: Json = False,
) -> None:
    """Pixels and samples by class, sizes, mean and deviation, and class weights for the loss.

    Example: `segdist stats data/photos --out stats/` writes them as YAML and as a picture, too.
    """
    from segdist import stats as statistics
    from segdist import storage
    from segdist.cli.tables import shares
    from segdist.data import index as indices
    from segdist.figures import png
    from segdist.log import console

    if out:
        storage.check_writable(out)
    found = statistics.stats(data, split, None if everything else sample)
    console.print(shares(found))
    if out:
        storage.write(storage.join(out, "stats.yaml"), statistics.to_yaml(found).encode())
        storage.write(storage.join(out, "stats.png"), png(statistics.picture(found, indices.load(data))))
        _say(f"written: {storage.join(out, 'stats.yaml')} and stats.png")
    _machine(json, found)


@config_app.command("show")
def config_show(
    config: Annotated[str, typer.Argument(help="A YAML config.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...")] = None,
    json: Json = False,
) -> None:
    """Print a config resolved: every field, its value and what it means. Fields marked * decide the weights.

    Example: `segdist config show configs/demo.yaml train.num_steps=50`
    """
    from segdist import config as configs
    from segdist.record import to_json

    cfg = _config(config, overrides)
    print(to_json(configs.to_tree(cfg)) if json else configs.explain(cfg))


def _config(uri: str, overrides: list[str] | None) -> Any:
    """The config at a path or URI."""
    from segdist import config as configs

    if "://" not in uri:
        return configs.load(uri, overrides or [])
    from segdist import storage

    return configs.loads(storage.read(uri), uri, overrides or [])


def _say(text: str) -> None:
    from segdist.log import say

    say(text)


def _machine(wanted: bool, tree: Any) -> None:
    from segdist.record import to_json

    if wanted:
        print(to_json(tree), flush=True)


def _parts(option: str, text: str | None, between: str, kind: type, example: str) -> list[Any] | None:
    """The numbers in an option's text."""
    try:
        return None if text is None else [kind(part) for part in text.lower().split(between)]
    except ValueError:
        raise UserError(f"{option} {text!r}: give numbers such as {example}") from None


def _values(text: str | None) -> list[int | tuple[int, int, int]] | None:
    """The mask values, or colours, of a comma list."""
    from segdist.data.labels import color_of

    if text is None:
        return None
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not all(p.isdigit() or p.startswith("#") for p in parts):
        raise UserError(f"--void {text!r}: give mask values, for example --void 11,255, or colours as #rrggbb")
    return [color_of(p) if p.startswith("#") else int(p) for p in parts]
