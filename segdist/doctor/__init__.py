"""`segdist doctor`: find problems that would waste a run, before it starts.

For a config: check its dataset, storage and device, and rehearse two steps. For a prepared dataset: check only that.
For a folder of images and masks: list all files that `prepare` would refuse (`prepare` stops at the first), and check the
classes, duplicates and leaks of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from segdist import config, storage
from segdist.config import Config
from segdist.data import index as indices
from segdist.data.health import Finding
from segdist.data.importers.layout import ImportOptions
from segdist.data.label_options import LabelOptions
from segdist.doctor import data as datas
from segdist.doctor import run as runs
from segdist.doctor import source as sources
from segdist.errors import UserError

__all__ = ["examine"]


def examine(
    target: str,
    overrides: Sequence[str] = (),
    sample: int | None = None,
    layout: str = "folder",
    declared: LabelOptions = LabelOptions(),
    options: ImportOptions = ImportOptions(),
    max_megapixels: int = 200,
) -> list[Finding]:
    """Return the findings for a config (with overrides), a prepared dataset, or a folder of images and masks."""
    if overrides or target.endswith((".yaml", ".yml")):
        return examine_run(config.loads(storage.read(target), target, overrides), sample)
    if storage.exists(storage.join(target, indices.NAME)):
        return examine_data(target, sample)
    return sources.examine(target, layout, declared, options, max_megapixels, sample)


def examine_run(cfg: Config, sample: int | None) -> list[Finding]:
    """Return the findings for a run and its dataset, from about `sample` samples per split (None: all)."""
    try:
        index = indices.load(cfg.data.uri)
        found = datas.examine(cfg.data.uri, index, sample, cfg.data.train_split, cfg.data.val_split)
    except UserError as error:
        found = [Finding("error", "data", str(error))]
    return [*found, *runs.examine(cfg)]


def examine_data(uri: str, sample: int | None) -> list[Finding]:
    """Return the findings for a prepared dataset. Raises DataError if there is none."""
    return datas.examine(uri, indices.load(uri), sample)
