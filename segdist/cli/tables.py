"""Tables for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from segdist.data.importers.layout import Layout
    from segdist.health import Finding
    from segdist.models.catalogue import Entry


def scores(result: dict[str, Any]) -> Table:
    """The report of an evaluation, class by class."""
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
    """The scores over all classes, in two lines."""
    interval = result.get("miou_interval")
    between = f" [{interval['low']:.4f}, {interval['high']:.4f}], 95 % over samples" if interval else ""
    few = f", few: {result['num_samples']}, so likely too narrow" if interval and result["num_samples"] < 30 else ""
    between += few
    boundary = f"   mean boundary IoU {result['mean_boundary_iou']:.4f}" if "mean_boundary_iou" in result else ""
    return (
        f"mIoU {result['miou']:.4f}{between}   mean accuracy {result['mean_accuracy']:.4f}   "
        f"overall accuracy {result['overall_accuracy']:.4f}   loss {result['loss']:.4f}\n"
        f"mean Dice {result['mean_dice']:.4f}   frequency-weighted IoU {result['freq_weighted_iou']:.4f}   "
        f"kappa {result['kappa']:.4f}{boundary}"
    )


def history(run: str, rows: list[dict[str, Any]]) -> Table:
    """A run's history as far as 80 columns hold it, a row per evaluation or record; the best mIoU stands out."""
    table = Table(title=Text(run))
    best = max((row["miou"] for row in rows if row["miou"] is not None), default=None)
    shown = {
        "step": ("step", ","), "epoch": ("epoch", ".1f"), "lr": ("lr", ".2e"), "loss": ("loss", ".4f"),
        "val_loss": ("val loss", ".4f"), "accuracy": ("accuracy", ".4f"), "f1": ("F1", ".4f"), "miou": ("mIoU", ".4f"),
    }  # fmt: skip
    for heading, _ in shown.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = ["" if row[key] is None else format(row[key], form) for key, (_, form) in shown.items()]
        table.add_row(*cells, style="bold" if best is not None and row["miou"] == best else None)
    return table


def findings(title: str, found: list[Finding]) -> Table:
    """What the doctor found, the worst first."""
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
    """Pixels and weights, class by class."""
    table = Table(
        title=Text(
            f"{found['data']}, {found['split']}: {found['num_samples']} samples, {found['num_samples_read']} read"
        ),
        caption=f"mean {_triple(found['mean'])}   std {_triple(found['std'])} (of 0..1)\nsizes "
        + " to ".join("x".join(map(str, found["size_px"][k])) for k in ("smallest", "largest"))
        + " px (height x width)\nthe last columns are weights for loss.class_weights",
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
    """What `segdist prepare --format` can read."""
    table = Table(title="segdist prepare SOURCE DEST --format ...", show_lines=True)
    for column in ("format", "what it is", "what SOURCE holds", "licence"):
        table.add_column(column, overflow="fold")  # a path that is cut helps nobody
    for name, layout in known.items():
        table.add_row(name, Text(layout.about), Text(layout.expects), Text(layout.licence))
    return table


def catalogue(entries: list[Entry]) -> Table:
    """What `model.name` can be."""
    table = Table(title="model: {name: ...}", show_lines=True)
    for column in ("name, as one line of a config", "what it is, and of which package", "images", "known weights"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        table.add_row(
            Text(entry.example), Text(f"{entry.source}\n{entry.package}"), Text(entry.demands), Text(entry.weights)
        )
    return table


def comparison(result: dict[str, Any]) -> Table:
    """Two evaluations side by side, class by class."""
    table = Table(
        title=Text(f"{result['data']}, {result['split']}: {result['num_samples']} samples"),
        caption=Text(f"A {result['a']['checkpoint']}\nB {result['b']['checkpoint']}\n{result['protocol']}"),
        caption_justify="left",
    )
    table.add_column("class")
    scores = {"IoU": ("iou", "miou"), "boundary": ("boundary_iou", "mean_boundary_iou")}
    shown = [(heading, *keys) for heading, keys in scores.items() if keys[0] in result]
    for heading, _, _ in shown:
        for column in (f"{heading} A", f"{heading} B", "B - A"):
            table.add_column(column, justify="right", no_wrap=True)
    for name in result["iou"]:
        table.add_row(Text(name), *[cell for _, key, _ in shown for cell in _compared(result[key][name])])
    table.add_section()
    table.add_row("mean", *[cell for _, _, key in shown for cell in _compared(result[key])], style="bold")
    return table


def _compared(pair: dict[str, float]) -> tuple[str, str, str]:
    return _number(pair["a"]), _number(pair["b"]), _signed(pair["difference"])


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.4f}"


def _number(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.4f}"
