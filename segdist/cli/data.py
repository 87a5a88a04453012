"""Commands for data: prepare, doctor, stats."""

from __future__ import annotations

from typing import Annotated

import typer

from segdist.cli.app import Json, app, mask_values, print_json, say

# Options of `prepare`, and of `doctor` for a folder.
Format = Annotated[str, typer.Option(help="Layout of the source. `segdist prepare --list` explains all layouts.")]
Names = Annotated[
    str | None,
    typer.Option(
        help="Class names: in the order of the mask values (sky,road), with their values (road=7,car=26), or for RGB masks "
        "with their colours (road=#804080). Or a .txt, .json or .yaml file (path or URI), a dataset OWNER/NAME on the Hub "
        "with an id2label.json, or a preset: ade20k, camvid, cityscapes, pets, pets-binary, voc."
    ),
]
Void = Annotated[
    str | None,
    typer.Option(
        help="Mask values (or #rrggbb colours) to ignore in training and scores. Example: 11,255. '' for none. "
        "[default: 255]"
    ),
]
First = Annotated[
    int,
    typer.Option(min=0, help="Mask value of the first name. Lower values are void. Example: 1 for ADE20K."),
]
ColorTolerance = Annotated[
    int,
    typer.Option(
        min=0,
        max=255,
        help="For RGB masks with compression noise: use the nearest declared colour if no channel differs by more than this. "
        "Other colours are an error.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first images of each split, up to this many.")]
Revision = Annotated[str | None, typer.Option(help="With --format hub: commit, branch or tag of the dataset.")]
Subset = Annotated[
    str | None,
    typer.Option(
        help="Part of the source. With --format hub: the dataset's configuration. With --format coco: panoptic, instances, "
        "stuff, stuffthingmaps or pixelmaps. With --format segments: the labelset."
    ),
]
ImageColumn = Annotated[
    str | None, typer.Option(help="With --format hub: column of the images. [default: found by type]")
]
MaskColumn = Annotated[
    str | None, typer.Option(help="With --format hub: column of the masks. [default: found by name]")
]
MaxMegapixels = Annotated[int, typer.Option(min=1, help="Refuse images with more megapixels than this.")]


def _list_layouts(wanted: bool) -> None:
    """Print the layouts for `--list`."""
    if not wanted:
        return
    from segdist.cli.tables import layouts
    from segdist.console import console
    from segdist.data.importers import LAYOUTS

    console.print(layouts(LAYOUTS))
    raise typer.Exit


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder with images and masks (path, s3:// or hf://), or what --format expects: a file, a URL or a Hub ID.",
        ),
    ],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder for the prepared dataset (path or s3://).")],
    list_layouts: Annotated[
        bool,
        typer.Option(
            "--list",
            callback=_list_layouts,
            is_eager=True,
            help="Explain the layouts that --format can read, and exit.",
        ),
    ] = False,
    format: Format = "folder",
    names: Names = None,
    void: Void = None,
    first: First = 0,
    palette: Annotated[
        str | None,
        typer.Option(
            help="Display colours of the classes: ade20k, cityscapes, voc or generated. [default: as in SOURCE or the preset]"
        ),
    ] = None,
    color_tolerance: ColorTolerance = 0,
    val_share: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.9,
            help="Share of images for validation if SOURCE has no splits. The split depends on a hash of each file name. With "
            "50 or more images, adding images never moves others to another split.",
        ),
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the random split and of the order of training rows.")] = 0,
    limit: Limit = None,
    revision: Revision = None,
    subset: Subset = None,
    image_column: ImageColumn = None,
    mask_column: MaskColumn = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing dataset in DEST.")] = False,
    max_megapixels: MaxMegapixels = 200,
    push: Annotated[
        str | None, typer.Option(help="Also push the dataset to this repository OWNER/NAME on the Hugging Face Hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="If --push creates the repository, make it public.")] = False,
    json: Json = False,
) -> None:
    """Check images and masks, and pack them for training.

    Images and masks are packed into Parquet shards that training streams. A dataset is complete once its index.json is written.
    If the command is interrupted, run it again.

    \b
    Example:
      segdist prepare photos/ data/photos --names background=0,crack=1
    """
    from segdist.data.importers.layout import ImportOptions
    from segdist.data.label_options import LabelOptions
    from segdist.data.prepare import prepare as run

    options = ImportOptions(val_share, seed, limit, revision, subset, image_column, mask_column)
    declared = LabelOptions(names, mask_values(void), first, palette, color_tolerance)
    if push:
        from segdist.publish.hub import Repo

        repo = Repo(push, "dataset")  # fails before the work if it cannot be written
        repo.open(not public)
        repo.manifest()
    summary = run(source, dest, format, declared, options, overwrite, max_megapixels)
    for name, split in summary["splits"].items():
        say(f"{name}: {split['samples']} samples in {split['shards']} shard(s), {split['bytes'] / 1e6:.1f} MB")
    say(f"prepared: {summary['uri']}")
    if push:
        from segdist.publish.push_data import push_data

        summary["pushed"] = push_data(dest, push, not public)
        say(f"pushed: {summary['pushed']['url']}. To train on it: data.uri=hf://datasets/{push}")
    print_json(json, summary)


@app.command()
def doctor(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A YAML config, a prepared dataset, or a folder of images and masks (path or URI)."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OVERRIDES", help="Fields to change if TARGET is a config, as section.field=value. Repeatable."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Inspect every sample.")] = False,
    sample: Annotated[int, typer.Option(min=1, help="About how many samples per split to inspect.")] = 200,
    format: Format = "folder",
    names: Names = None,
    void: Void = None,
    first: First = 0,
    color_tolerance: ColorTolerance = 0,
    limit: Limit = None,
    revision: Revision = None,
    subset: Subset = None,
    image_column: ImageColumn = None,
    mask_column: MaskColumn = None,
    max_megapixels: MaxMegapixels = 200,
    json: Json = False,
) -> None:
    """Find problems that would waste a run.

    With a config, check its data, labels, storage and device, and rehearse two training steps. With a prepared dataset, check
    classes, duplicates and leaks between splits. With a folder of images and masks, also list every file that `prepare` would
    refuse. --format and the options below it describe such a folder.

    \b
    Examples:
      segdist doctor configs/demo.yaml data.uri=data/photos run.uri=runs/photos
      segdist doctor data/photos --all
      segdist doctor photos/ --names background=0,crack=1

    Exit code 2 means that at least one error was found. Warnings alone leave it at 0.
    """
    from segdist.cli.tables import findings
    from segdist.console import console
    from segdist.data.importers.layout import ImportOptions
    from segdist.data.label_options import LabelOptions
    from segdist.doctor import examine

    most = None if everything else sample
    declared = LabelOptions(names, mask_values(void), first, None, color_tolerance)
    options = ImportOptions(
        limit=limit, revision=revision, subset=subset, image_column=image_column, mask_column=mask_column
    )
    found = examine(target, overrides or [], most, format, declared, options, max_megapixels)
    console.print(findings(f"segdist doctor {target}", found))
    errors = [f for f in found if f.severity == "error"]
    warned = sum(f.severity == "warning" for f in found)
    say(f"{len(errors)} error(s), {warned} warning(s)" + ("" if errors or warned else ": no problem was found"))
    print_json(json, {"target": target, "healthy": not errors, "findings": [f.to_json() for f in found]})
    if errors:
        raise typer.Exit(2)


@app.command()
def stats(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Prepared dataset (path or URI).")],
    split: Annotated[str, typer.Option(help="Split to count.")] = "train",
    everything: Annotated[
        bool, typer.Option("--all", help="Read every sample for the mean, the std and the sample counts.")
    ] = False,
    sample: Annotated[int, typer.Option(min=1, help="About how many samples to read without --all.")] = 500,
    out: Annotated[
        str | None, typer.Option(help="Also write stats.yaml and a chart, stats.png, into this folder (path or s3://).")
    ] = None,
    json: Json = False,
) -> None:
    """Count pixels and samples per class.

    Also show image sizes, mean and standard deviation per channel, and class weights for the loss.

    \b
    Example:
      segdist stats data/photos --out stats/
    """
    from segdist import storage
    from segdist.cli.tables import shares
    from segdist.console import console
    from segdist.data import index as indices
    from segdist.data import stats as statistics
    from segdist.evaluation.figures import png

    if out:
        storage.check_writable(out)
    found = statistics.compute_stats(data, split, None if everything else sample)
    console.print(shares(found))
    if out:
        storage.write(storage.join(out, "stats.yaml"), statistics.to_yaml(found).encode())
        storage.write(storage.join(out, "stats.png"), png(statistics.chart(found, indices.load(data))))
        say(f"written: {storage.join(out, 'stats.yaml')} and stats.png")
    print_json(json, found)
