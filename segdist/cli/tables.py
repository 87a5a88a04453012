"""Tables for people."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table
from rich.text import Text


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
