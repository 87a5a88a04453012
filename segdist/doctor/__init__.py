"""`segdist doctor`: what would waste a run, told in seconds, before the run.

A config: its data set, its storage, its device, and a rehearsal. A prepared data set: that alone. A folder of images and
masks: every file of it, with all mistakes at once, where `prepare` stops at the first, and then what was found of a
prepared one: classes, copies, leaks.
"""

from __future__ import annotations

from collections.abc import Sequence

from segdist import config, storage
from segdist.config import Config
from segdist.data import index as indices
from segdist.data.health import Finding
from segdist.data.importers.layout import ImportOptions
from segdist.data.prepare import Declared
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
    declared: Declared = Declared(),
    ask: ImportOptions = ImportOptions(),
    max_megapixels: int = 200,
) -> list[Finding]:
    """The findings of whatever TARGET is: a config (with overrides), a prepared data set, or a folder of images and masks."""
    if overrides or target.endswith((".yaml", ".yml")):
        return examine_run(config.loads(storage.read(target), target, overrides), sample)
    if storage.exists(storage.join(target, indices.NAME)):
        return examine_data(target, sample)
    return sources.examine(target, layout, declared, ask, max_megapixels, sample)


def examine_run(cfg: Config, sample: int | None) -> list[Finding]:
    """The findings of a run and of its data set, from about `sample` samples per split (None: all)."""
    try:
        index = indices.load(cfg.data.uri)
        found = datas.examine(cfg.data.uri, index, sample, cfg.data.train_split, cfg.data.val_split)
    except UserError as error:
        found = [Finding("error", "data", str(error))]
    return [*found, *runs.examine(cfg)]


def examine_data(uri: str, sample: int | None) -> list[Finding]:
    """The findings of a prepared data set. Raises DataError when there is none."""
    return datas.examine(uri, indices.load(uri), sample)
