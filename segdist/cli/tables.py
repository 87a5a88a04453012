"""Tables for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from segdist.data.importers.layout import Layout
    from segdist.health import Finding


def scores(result: dict[str, Any]) -> Table:
    """The report of an evaluation, class by class."""
    table = Table(
        title=f"{result['data']}, {result['split']}: {result['num_samples']} samples",
        caption=f"checkpoint {result['checkpoint']}\nmIoU {result['miou']:.4f}   mean accuracy {result['mean_accuracy']:.4f}   "
        f"overall accuracy {result['overall_accuracy']:.4f}   loss {result['loss']:.4f}\n{result['protocol']}",
        caption_justify="left",
    )
    table.add_column("class")
    table.add_column("IoU", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("pixels", justify="right")
    for k, name in enumerate(result["iou"]):  # names may hold brackets, which rich would read as markup
        pixels = sum(result["confusion"][k])
        table.add_row(Text(name), _number(result["iou"][name]), _number(result["accuracy"][name]), f"{pixels:,}")
    return table


def findings(title: str, found: list[Finding]) -> Table:
    """What the doctor found, the worst first."""
    table = Table(title=title, title_justify="left")
    for column in ("", "what", "finding"):
        table.add_column(column)
    styles = {"error": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}
    for finding in sorted(found, key=lambda f: list(styles).index(f.severity)):
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n{finding.remedy}", style="italic")
        table.add_row(Text(finding.severity, styles[finding.severity]), finding.topic, text)
    return table


def shares(found: dict[str, Any]) -> Table:
    """Pixels and weights, class by class."""
    table = Table(
        title=f"{found['data']}, {found['split']}: {found['num_samples']} samples, {found['num_samples_read']} read",
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


def comparison(result: dict[str, Any]) -> Table:
    """Two evaluations side by side, class by class."""
    table = Table(
        title=f"{result['data']}, {result['split']}: {result['num_samples']} samples",
        caption=f"A {result['a']['checkpoint']}\nB {result['b']['checkpoint']}\n{result['protocol']}",
        caption_justify="left",
    )
    table.add_column("class")
    for heading in ("IoU A", "IoU B", "B - A"):
        table.add_column(heading, justify="right")
    for name, iou in result["iou"].items():
        table.add_row(Text(name), _number(iou["a"]), _number(iou["b"]), _signed(iou["difference"]))
    miou = result["miou"]
    table.add_section()
    table.add_row("mIoU", _number(miou["a"]), _number(miou["b"]), _signed(miou["difference"]), style="bold")
    return table


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.4f}"


def _number(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.4f}"
