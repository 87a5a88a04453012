"""The label contract of a dataset in preparation: declared by the user or the source, or inferred from the masks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segdist import console
from segdist.data import names
from segdist.data.importers import files
from segdist.data.importers.files import Rules
from segdist.data.importers.folder import infer_labels
from segdist.data.importers.layout import ImportPlan, Pair, Splits
from segdist.data.index import Index
from segdist.data.labels import Color, Labels, generated_colors
from segdist.data.unknown_values import format_ranges
from segdist.errors import LabelError
from segdist.threads import map_ahead


@dataclass(frozen=True)
class LabelOptions:
    """The options of `segdist prepare` that describe the masks."""

    names: str | None = None  # see data.names.parse_names
    void: Sequence[int | Color] | None = None
    first: int = 0  # mask value of the first class
    palette: str | None = None  # display colours
    color_tolerance: int = 0  # see importers.files.Rules


def declared_contract(declared: LabelOptions, plan: ImportPlan) -> Labels | None:
    """Return the contract that the user or the source declares, or None. Raises LabelError for conflicting options."""
    if declared.names is not None:
        return names.parse_names(declared.names, declared.void, declared.first)
    if declared.first:
        raise LabelError("--first is the mask value of the first of --names. Give --names as well")
    if plan.labels is not None and declared.void is not None:
        raise LabelError("this source declares its void values itself. Leave out --void, or give --names as well")
    return plan.labels


def infer_contract(
    void: Sequence[int | Color] | None, splits: Splits, pool: ThreadPoolExecutor, rules: Rules
) -> Labels:
    """Return a contract from the values in the masks. Reads all masks."""
    void_values = names.DEFAULT_VOID if void is None else tuple(v for v in void if isinstance(v, int))
    if void is not None and len(void_values) < len(void):
        raise LabelError("--void is a colour, but no class has one. Declare the classes with --names name=#rrggbb,...")

    def values_of(pair: Pair) -> np.ndarray:
        return np.unique(pair.decode(pair.mask.read(), pair.mask.name, rules))

    values: set[int] = set()
    pairs = [pair for some in splits.values() for pair in some]
    progress, advance = console.bar("reading masks", len(pairs))
    with progress:
        for present in map_ahead(pool, values_of, pairs, 16):
            values |= set(present.tolist())
            advance(1)
    contract = infer_labels(values, void_values)
    console.say(
        f"no --names given. The masks have the values {format_ranges(values)}, so the {contract.num_classes} classes are "
        "named by number"
    )
    return contract


def with_display_colors(contract: Labels, palette: str | None, splits: Splits) -> Labels:
    """Return the contract with the colours of `palette`, else its own colours, else those of the first mask's palette."""
    if palette:
        return contract.colored(names.named_palette(palette, contract.num_classes))
    if [c.color for c in contract.classes] != generated_colors(contract.num_classes):
        return contract
    mask_colors = files.palette_of(next(iter(splits.values()))[0].mask.read())
    if mask_colors is None or any(c.raw[0] >= len(mask_colors) for c in contract.classes):
        return contract
    colors = [mask_colors[c.raw[0]] for c in contract.classes]
    return contract.colored(colors) if len(set(colors)) == len(colors) else contract


def check_classes_present(index: Index) -> None:
    """Raise LabelError if the masks hold pixels of at most one class, and all other pixels are void."""
    present = [c for k, c in enumerate(index.labels.classes) if any(s.class_pixels[k] for s in index.splits.values())]
    void = sum(s.void_pixels for s in index.splits.values())
    if len(present) >= 2 or not void:
        return
    share = void / (void + sum(sum(s.class_pixels) for s in index.splits.values()))
    text = f"only class {present[0].name!r} has pixels" if present else "no class has pixels"
    remedy = "Name the values in the masks: --names name=value,..."
    if index.labels.void == (255,):
        remedy = "If 255 is a class, name it: --names background=0,object=255"
    raise LabelError(f"{text} in any split, and {share:.1%} of all pixels are void. {remedy}")
