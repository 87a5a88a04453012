"""Tables for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from segdist.data.importers.layout import Layout


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


def layouts(known: dict[str, Layout]) -> Table:
    """What `segdist prepare --format` can read."""
    table = Table(title="segdist prepare SOURCE DEST --format ...", show_lines=True)
    for column in ("format", "what it is", "what SOURCE holds", "licence"):
        table.add_column(column, overflow="fold")  # a path that is cut helps nobody
    for name, layout in known.items():
        table.add_row(name, Text(layout.about), Text(layout.expects), Text(layout.licence))
    return table


def _number(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.4f}"
