"""Commands for data: prepare, doctor, stats."""

from __future__ import annotations

from typing import Annotated

import typer

from segdist.cli.app import Json, app, machine, mask_values, say

# What a source is and means: options of prepare, and of doctor for a folder.
Format = Annotated[str, typer.Option(help="Layout of the source; `segdist prepare --list` explains them.")]
Names = Annotated[
    str | None,
    typer.Option(
        help="Class names in order of mask values (sky,road), or name=value pairs (road=7,car=26), or for masks of "
        "colours name=#rrggbb; a .txt, .json or .yaml file (path or URI); a Hub data set OWNER/NAME with an "
        "id2label.json; or a preset (ade20k, camvid, cityscapes, pets, pets-binary, voc)."
    ),
]
Void = Annotated[
    str | None,
    typer.Option(help="Mask values (or #rrggbb colours) that count for nothing; '' for none. [default: 255]"),
]
First = Annotated[
    int, typer.Option(min=0, help="Mask value of the first name; values below it are void. 1 for ADE20K's way.")
]
ColorTolerance = Annotated[
    int, typer.Option(min=0, max=255, help="Take the nearest declared colour, if each channel is at most this far.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Take only the first so many images of each split.")]
Revision = Annotated[str | None, typer.Option(help="hub: commit, branch or tag.")]
Subset = Annotated[
    str | None,
    typer.Option(
        help="hub: configuration of the data set. coco: panoptic, instances, stuff, stuffthingmaps or pixelmaps. "
        "segments: labelset."
    ),
]
ImageColumn = Annotated[str | None, typer.Option(help="hub: column of images. [default: found by type]")]
MaskColumn = Annotated[str | None, typer.Option(help="hub: column of masks. [default: found by name]")]
MaxMegapixels = Annotated[int, typer.Option(min=1, help="Refuse larger images.")]


def _list_layouts(wanted: bool) -> None:
    """What `--list` prints."""
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
            help="Folder with images and masks (path, s3:// or hf://), or what --format expects (a file, a URL, a Hub id)."
        ),
    ],
    dest: Annotated[str, typer.Argument(help="Where the prepared data set goes (path or s3://).")],
    list_layouts: Annotated[
        bool, typer.Option("--list", callback=_list_layouts, is_eager=True, help="Explain all formats, and end.")
    ] = False,
    format: Format = "folder",
    names: Names = None,
    void: Void = None,
    first: First = 0,
    palette: Annotated[
        str | None, typer.Option(help="Display colours of the classes: ade20k, cityscapes, voc or generated.")
    ] = None,
    color_tolerance: ColorTolerance = 0,
    val_share: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.9,
            help="Share of images for validation, where SOURCE has no splits; chosen by name. From 50 images on it is met "
            "on average, so that adding images later moves no other.",
        ),
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of that split and of the order of training rows.")] = 0,
    limit: Limit = None,
    revision: Revision = None,
    subset: Subset = None,
    image_column: ImageColumn = None,
    mask_column: MaskColumn = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what DEST holds.")] = False,
    max_megapixels: MaxMegapixels = 200,
    push: Annotated[
        str | None, typer.Option(help="Then put it on the Hugging Face Hub, too: OWNER/NAME; see `segdist push`.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody sees it there, where --push creates it.")] = False,
    json: Json = False,
) -> None:
    """Check images and masks, and pack them into shards that training can stream.

    Example: `segdist prepare photos/ data/photos --names background=0,crack=1`

    Safe to interrupt and to repeat: DEST counts as prepared once its index.json is there.
    """
    from segdist.data.importers.layout import ImportOptions
    from segdist.data.prepare import Declared
    from segdist.data.prepare import prepare as run

    ask = ImportOptions(val_share, seed, limit, revision, subset, image_column, mask_column)
    declared = Declared(names, mask_values(void), first, palette, color_tolerance)
    if push:
        from segdist.publish.hub import Repo

        repo = Repo(push, "dataset")  # before the work
        repo.open(not public)
        repo.mark()
    summary = run(source, dest, format, declared, ask, overwrite, max_megapixels)
    for name, split in summary["splits"].items():
        say(f"{name}: {split['samples']} samples in {split['shards']} shard(s), {split['bytes'] / 1e6:.1f} MB")
    say(f"prepared: {summary['uri']}")
    if push:
        from segdist.publish.push_data import push_data

        summary["pushed"] = push_data(dest, push, not public)
        say(f"pushed: {summary['pushed']['url']}; to train on it: data.uri=hf://datasets/{push}")
    machine(json, summary)


@app.command()
def doctor(
    target: Annotated[
        str, typer.Argument(help="A YAML config, a prepared data set, or a folder of images and masks (paths or URIs).")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="With a config: section.field=value ...")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Look at every sample, not at some.")] = False,
    sample: Annotated[int, typer.Option(min=1, help="About how many samples per split to look at.")] = 200,
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
    """Look for what would waste a run: data, labels, leaks, storage, device; and rehearse two steps of it.

    Examples: `segdist doctor configs/demo.yaml data.uri=data/photos run.uri=runs/photos`, `segdist doctor data/photos --all`,
    `segdist doctor photos/ --names background=0,crack=1`

    Exit code 2 when something would waste a run; warnings alone leave 0. --format and what follows it are for a folder that is
    not prepared yet.
    """
    from segdist.cli.tables import findings
    from segdist.console import console
    from segdist.data.importers.layout import ImportOptions
    from segdist.data.prepare import Declared
    from segdist.doctor import examine

    most = None if everything else sample
    declared = Declared(names, mask_values(void), first, None, color_tolerance)
    ask = ImportOptions(
        limit=limit, revision=revision, subset=subset, image_column=image_column, mask_column=mask_column
    )
    found = examine(target, overrides or [], most, format, declared, ask, max_megapixels)
    console.print(findings(f"segdist doctor {target}", found))
    errors = [f for f in found if f.severity == "error"]
    warned = sum(f.severity == "warning" for f in found)
    say(f"{len(errors)} error(s), {warned} warning(s)" + ("" if errors or warned else ": nothing stands in the way"))
    machine(json, {"target": target, "healthy": not errors, "findings": [f.to_json() for f in found]})
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

    Example: `segdist stats data/photos --out stats/` writes them as YAML and as a chart, too.
    """
    from segdist import storage
    from segdist.cli.tables import shares
    from segdist.console import console
    from segdist.data import index as indices
    from segdist.data import stats as statistics
    from segdist.evaluation.figures import png

    if out:
        storage.check_writable(out)
    found = statistics.stats(data, split, None if everything else sample)
    console.print(shares(found))
    if out:
        storage.write(storage.join(out, "stats.yaml"), statistics.to_yaml(found).encode())
        storage.write(storage.join(out, "stats.png"), png(statistics.chart(found, indices.load(data))))
        say(f"written: {storage.join(out, 'stats.yaml')} and stats.png")
    machine(json, found)
