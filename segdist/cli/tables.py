"""Tables that the commands print."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from segdist.data.health import Finding
    from segdist.data.importers.layout import Layout
    from segdist.models.catalogue import Entry

_LAPTOP = 15_000_000  # parameters


def scores(result: dict[str, Any]) -> Table:
    """Return the table of an evaluation, a row per class."""
    table = Table(
        title=Text(f"{result['data']}, {result['split']}: {result['num_samples']} samples"),
        caption=Text(
            f"checkpoint {result['checkpoint']}, {result['weights']} weights\n{_means(result)}\n{result['protocol']}"
        ),
        caption_justify="left",
    )
    columns = {
        "IoU": "iou",
        "accuracy": "accuracy",
        "precision": "precision",
        "Dice": "dice",
        "boundary": "boundary_iou",
    }
    columns = {heading: key for heading, key in columns.items() if key in result}
    table.add_column("class")
    for heading in (*columns, "pixels"):
        table.add_column(heading, justify="right", no_wrap=True)
    for k, name in enumerate(result["iou"]):  # names may hold brackets, which rich would read as markup
        numbers = [_number(result[key][name]) for key in columns.values()]
        table.add_row(Text(name), *numbers, f"{sum(result['confusion'][k]):,}")
    return table


def _means(result: dict[str, Any]) -> str:
    """Return the scores over all classes, in two lines."""
    interval = result.get("miou_interval")
    between = f" [{interval['low']:.4f}, {interval['high']:.4f}], 95% confidence interval" if interval else ""
    if interval and result["num_samples"] < 30:
        between += f" (only {result['num_samples']} images: likely too narrow)"
    boundary = f"   mean boundary IoU {result['mean_boundary_iou']:.4f}" if "mean_boundary_iou" in result else ""
    return (
        f"mIoU {result['miou']:.4f}{between}   mean accuracy {result['mean_accuracy']:.4f}   "
        f"overall accuracy {result['overall_accuracy']:.4f}   loss {result['loss']:.4f}\n"
        f"mean Dice {result['mean_dice']:.4f}   frequency-weighted IoU {result['freq_weighted_iou']:.4f}   "
        f"kappa {result['kappa']:.4f}{boundary}"
    )


def history(run: str, rows: list[dict[str, Any]]) -> Table:
    """Return the main columns of a run's history, which fit into 80 characters. The row with the best mIoU is bold."""
    table = Table(title=Text(run))
    best = max((row["miou"] for row in rows if row["miou"] is not None), default=None)
    columns = {
        "step": ("step", ","), "epoch": ("epoch", ".1f"), "lr": ("lr", ".2e"), "loss": ("loss", ".4f"),
        "val_loss": ("val loss", ".4f"), "accuracy": ("accuracy", ".4f"), "f1": ("F1", ".4f"), "miou": ("mIoU", ".4f"),
    }  # fmt: skip
    for heading, _ in columns.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = ["" if row[key] is None else format(row[key], form) for key, (_, form) in columns.items()]
        table.add_row(*cells, style="bold" if best is not None and row["miou"] == best else None)
    return table


def findings(title: str, found: list[Finding]) -> Table:
    """Return the doctor's findings, errors first, each with its remedy."""
    table = Table(title=Text(title), title_justify="left")
    for column in ("", "what", "finding"):
        table.add_column(column)
    styles = {"error": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}
    for finding in sorted(found, key=lambda f: list(styles).index(f.severity)):
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n{finding.remedy}", style="italic")
        table.add_row(Text(finding.severity, styles[finding.severity]), Text(finding.topic), text)
    return table


def shares(found: dict[str, Any]) -> Table:
    """Return pixel counts and class weights, a row per class."""
    table = Table(
        title=Text(
            f"{found['data']}, {found['split']}: {found['num_samples']} samples, {found['num_samples_read']} read"
        ),
        caption=f"mean {_triple(found['mean'])}   std {_triple(found['std'])} (images scaled to 0..1)\nsizes "
        + " to ".join("x".join(map(str, found["size_px"][k])) for k in ("smallest", "largest"))
        + " px (height x width)\nthe last columns are class weights, for loss.class_weights",
        caption_justify="left",
    )
    table.add_column("class")
    for column in ("pixels", "share", "samples", *found["class_weights"]):
        table.add_column(column, justify="right", no_wrap=True)
    for k, name in enumerate(found["share"]):
        numbers = [f"{w[k]:.3g}" for w in found["class_weights"].values()]
        pixels, share = found["pixels"][name], found["share"][name]
        table.add_row(Text(name), f"{pixels:,}", f"{share:.3%}", str(found["samples"][name]), *numbers)
    table.add_row("void", f"{found['pixels']['void']:,}", "", "", *[""] * len(found["class_weights"]))
    return table


def _triple(values: list[float]) -> str:
    return ", ".join(f"{v:.3f}" for v in values)


def layouts(known: dict[str, Layout]) -> Table:
    """Return the layouts that `segdist prepare --format` can read."""
    table = Table(title="segdist prepare SOURCE DEST --format ...", show_lines=True)
    for column in ("format", "what it is", "what SOURCE holds", "licence"):
        table.add_column(column, overflow="fold")  # do not cut paths
    for name, layout in known.items():
        table.add_row(name, Text(layout.about), Text(layout.expects), Text(layout.licence))
    return table


def catalogue(entries: list[Entry]) -> Group:
    """Return the values of `model.name`, a table per library, within 80 characters."""
    parts: list[Any] = []
    for package in dict.fromkeys(entry.package for entry in entries):
        some = [entry for entry in entries if entry.package == package]
        table = Table(title=Text(f"through {package}"), box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
        table.add_column("model.name", no_wrap=True)
        for heading in ("parameters", "stride"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("images", "licence of known weights")[: 2 if any(e.weights for e in some) else 1]:
            table.add_column(heading)
        for entry in some:
            mark = "*" if entry.needs_pairs else ""
            row = [entry.name + mark, _sizes(list(entry.parameters.values())), str(entry.stride), entry.images]
            row += ["; ".join(dict.fromkeys(_licence(w, short=True) for w in entry.weights))] if entry.weights else []
            table.add_row(*map(Text, row))
        parts += [table, Text(_common(some), style="italic")]
    return Group(*parts, Text("\nTo show a model in full, with a config line and its weights: segdist models NAME"))


def _common(entries: list[Entry]) -> str:
    """Return what all models of a library have in common."""
    corners = {entry.align_corners for entry in entries}
    fixed = [entry.name for entry in entries if entry.one_size]
    only = f". Exports of {', '.join(fixed)} accept one image size" if fixed else ""
    lines = [
        "* needs at least two images per micro-batch",
        f"stride: px per logit. Logits are {_resize(corners.pop())}",
        f"exports: {', '.join(entries[0].exports)}{only}",
    ]
    if not entries[0].weights:
        encoders = ", ".join(dict.fromkeys(name for entry in entries for name in entry.parameters))
        lines.insert(0, f"parameters: with the encoder {encoders}. Any encoder of smp works, and of timm as tu-NAME")
        lines.append(
            "weights: ImageNet, for the encoder only. See its page for the licence (mit_b0 to mit_b5 by NVIDIA: research only)"
        )
    return "\n".join(lines)


def model(entry: Entry) -> Group:
    """Return one model in full."""
    sizes = ", ".join(f"{_sizes([count])} ({name})" for name, count in entry.parameters.items())
    facts = {
        "config": f"model: {entry.example}",
        "source": f"{entry.source}, through {entry.package}",
        "parameters": sizes,
        "smallest": _smallest(entry),
        "logits": f"one per {entry.stride}x{entry.stride} px, {_resize(entry.align_corners)}",
        "images": entry.images + (", at least two per micro-batch" if entry.needs_pairs else ""),
        "aux head": "optional (model.aux_head=true)" if entry.aux_head else "none",
        "exports": ", ".join(entry.exports) + (" (onnx and torch for one image size)" if entry.one_size else ""),
        "weights": "\n".join(f"{w['repo']}: {_licence(w)}" for w in entry.weights)
        or "ImageNet, for the encoder only. See the encoder's page for its licence",
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, text in facts.items():
        table.add_row(Text(what, style="bold"), Text(text))
    return Group(Text(f"\n{entry.name}", style="bold"), table)


def _smallest(entry: Entry) -> str:
    """Return the smallest version, and whether a laptop can train it."""
    text = f"model: {entry.smallest}, {_sizes([entry.smallest_parameters])}"
    if entry.smallest_parameters <= _LAPTOP:
        return f"{text}. A laptop can train it with small crops, even without a GPU"
    return f"{text}. Too large for a laptop: start with segformer (b0) or unet (mobilenet_v2)"


def _resize(align_corners: bool) -> str:
    return f"resized bilinearly with align_corners={str(align_corners).lower()}"


def _sizes(counts: list[int]) -> str:
    """Format parameter counts in millions, as a range."""
    ends = [f"{count / 1e6:.1f}" for count in dict.fromkeys((min(counts), max(counts)))]
    return f"{' to '.join(ends)} M"


def _licence(weights: dict[str, Any], short: bool = False) -> str:
    licence = weights["licence"]
    if licence is None:
        return "see its page"
    if short:
        return licence["name"].split(" Source")[0] + (f": {licence['note'].split(',')[0]}" if licence["note"] else "")
    more = [part for part in (licence["note"], licence["link"]) if part]
    return licence["name"] + (f" ({'; '.join(more)})" if more else "")


def comparison(result: dict[str, Any]) -> Table:
    """Return two evaluations side by side, a row per class."""
    table = Table(
        title=Text(f"{result['data']}, {result['split']}: {result['num_samples']} samples"),
        caption=Text(f"A {result['a']['checkpoint']}\nB {result['b']['checkpoint']}\n{result['protocol']}"),
        caption_justify="left",
    )
    table.add_column("class")
    scores = {"IoU": ("iou", "miou"), "boundary": ("boundary_iou", "mean_boundary_iou")}
    columns = [(heading, *keys) for heading, keys in scores.items() if keys[0] in result]
    for heading, _, _ in columns:
        for column in (f"{heading} A", f"{heading} B", "B - A"):
            table.add_column(column, justify="right", no_wrap=True)
    for name in result["iou"]:
        table.add_row(Text(name), *[cell for _, key, _ in columns for cell in _compared(result[key][name])])
    table.add_section()
    table.add_row("mean", *[cell for _, _, key in columns for cell in _compared(result[key])], style="bold")
    return table


def _compared(pair: dict[str, float]) -> tuple[str, str, str]:
    return _number(pair["a"]), _number(pair["b"]), _signed(pair["difference"])


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.4f}"


def _number(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.4f}"
