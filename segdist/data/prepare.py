"""Preparation of any supported layout into a dataset: check, encode, shuffle, write shards. Safe to interrupt and repeat.

index.json is written last. Until then the destination counts as before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from rich.text import Text

from segdist import console, storage
from segdist.data import health, labels, unknown_values, write
from segdist.data import index as indices
from segdist.data.codec import encode_mask
from segdist.data.importers import LAYOUTS, files
from segdist.data.importers.files import Rules
from segdist.data.importers.layout import ImportOptions, ImportPlan, Pair, Splits
from segdist.data.index import Index, Split
from segdist.data.label_options import (
    LabelOptions,
    check_classes_present,
    declared_contract,
    infer_contract,
    with_display_colors,
)
from segdist.data.order import Permutation, key
from segdist.data.source import Source
from segdist.data.write import Row, ShardWriter
from segdist.errors import DataError
from segdist.threads import map_ahead

_UNSHUFFLED = ("val", "test")  # stay in the source's order; other splits are shuffled once, here


@console.limit_warnings()
def prepare(
    source: str,
    dest: str,
    layout: str = "folder",
    declared: LabelOptions = LabelOptions(),
    options: ImportOptions = ImportOptions(),
    overwrite: bool = False,
    max_megapixels: int = 200,
) -> dict[str, Any]:
    """Prepare `source` into `dest`. Returns {"uri", "splits": {name: samples, shards, bytes}, "classes"}.

    Raises DataError or LabelError, naming the first bad file and the remedy. `dest` is then as it was before.
    """
    if source.rstrip("/") == dest.rstrip("/") or source.startswith(f"{dest.rstrip('/')}/"):
        raise DataError(f"{dest} contains the source {source}. Use another folder for the prepared data")
    plan = find_pairs(source, layout, options)
    storage.check_writable(dest)
    contract = declared_contract(declared, plan)
    rules = Rules(max_megapixels * 10**6, contract, declared.color_tolerance)
    with ThreadPoolExecutor(_num_threads(source)) as pool:
        label_settings = [declared.void, declared.palette, declared.color_tolerance]
        settings = [layout, contract and contract.to_json(), label_settings, options.seed, indices.FORMAT]
        digest = _source_digest(plan.splits, settings, pool)
        old = indices.load(dest) if storage.exists(storage.join(dest, indices.NAME)) else None
        if old and not overwrite:
            _check_same_source(dest, old, digest)
            return _summary(dest, old)
        contract = contract or infer_contract(declared.void, plan.splits, pool, rules)
        contract = with_display_colors(contract, declared.palette, plan.splits)
        rules = replace(rules, labels=contract)
        splits = {s: _write_split(dest, s, pairs, rules, options.seed, pool) for s, pairs in plan.splits.items()}
    index = Index(
        format=indices.FORMAT,
        name=_dataset_name(source),
        source=plan.source or f"{layout}: {_dataset_name(source)}",
        source_digest=digest,
        licence=plan.licence,
        contract=contract.to_json(),
        meaning=contract.meaning(),
        splits=splits,
    )
    if declared.names is not None:
        check_classes_present(index)
    _save_index(dest, index, old)
    console.console.print(_class_table(index))
    for finding in health.check_index(index):
        if finding.severity in ("warning", "error"):
            console.say(f"warning: {finding.text} ({finding.remedy})")
    return _summary(dest, index)


def _check_same_source(dest: str, old: Index, digest: str) -> None:
    """Raise DataError unless the dataset in `dest` has this source digest."""
    if old.source_digest != digest:
        raise DataError(
            f"{dest} holds another prepared dataset ({old.name!r}): from other files, from a copy at another place, or with "
            "other options such as --names. Use another destination, or --overwrite"
        )
    console.say(
        f"{dest} is already prepared from this source, so there is nothing to do (use --overwrite to prepare again)"
    )


def _save_index(dest: str, index: Index, old: Index | None) -> None:
    """Write index.json once all shards are in place, then delete the shards of the old index."""
    for split in index.splits:
        Source(dest, index, split).check()  # another process that prepares into `dest` may have deleted shards
    indices.save(dest, index)
    _delete_stale(dest, {*index.splits, *(old.splits if old else ())})


def find_pairs(source: str, layout: str, options: ImportOptions) -> ImportPlan:
    """Find the image-mask pairs of a source, up to the limit per split. Raises DataError, also for an empty split."""
    if layout not in LAYOUTS:
        raise DataError(f"unknown --format {layout!r}. Choose from {', '.join(LAYOUTS)} (see `segdist prepare --list`)")
    importer = LAYOUTS[layout]
    for option in ("revision", "subset", "image_column", "mask_column"):
        if getattr(options, option) is not None and option not in importer.options:
            raise DataError(f"--format {layout} does not support --{option.replace('_', '-')}. Leave it out")
    on_hub = "revision" in importer.options  # `source` may be a Hub ID
    if not on_hub and not storage.exists(source):
        raise DataError(f"{storage.redacted(source)}: this folder does not exist")
    Image.MAX_IMAGE_PIXELS = None  # --max-megapixels is checked before every decode, with a better error
    plan = importer.find(source, options)
    splits = {s: pairs[: options.limit] for s, pairs in plan.splits.items()}
    for split, pairs in splits.items():
        if not pairs and sum(map(len, splits.values())) == 1:
            raise DataError(f"{storage.redacted(source)}: found only one pair. Two splits need at least one pair each")
        if not pairs:
            raise DataError(
                f"{storage.redacted(source)}: split {split!r} is empty. Add images and masks to it, or remove it"
            )
    return replace(plan, splits=splits, licence=plan.licence or importer.licence)


def _dataset_name(source: str) -> str:
    """Return the name of the source's folder or file."""
    if storage.is_local(source):
        name = Path(source).expanduser().resolve().name
    else:
        name = storage.redacted(source).rstrip("/").rsplit("/", 1)[-1]
    return name.removesuffix(".json")


def _num_threads(source: str) -> int:
    cores = os.cpu_count() or 1  # one thread per core decodes; a remote source needs more to hide latency
    return cores if storage.is_local(source) else max(16, 2 * cores)


def _write_split(dest: str, split: str, pairs: list[Pair], rules: Rules, seed: int, pool: ThreadPoolExecutor) -> Split:
    contract = rules.labels
    assert contract is not None
    shuffle = split not in _UNSHUFFLED
    order = Permutation(len(pairs), key(seed, 11))(np.arange(len(pairs))) if shuffle else np.arange(len(pairs))
    stored = map_ahead(pool, files.stored_bytes, (p.image for p in pairs), 64)
    largest = max(image + p.mask.num_bytes for image, p in zip(stored, pairs))
    rows = write.rows_per_group(largest, len(pairs), shuffle)
    writer = ShardWriter(write.shard_uploader(dest), split, rows)
    raw_pixels: dict[int, int] = {}
    sizes = set()
    progress, advance = console.bar(f"preparing {split}", len(pairs))
    with progress:
        encode = partial(encode_row, rules=rules)
        for row in map_ahead(pool, encode, (pairs[i] for i in order), 4 * (os.cpu_count() or 1)):
            writer.add(row)
            sizes.add((row.height, row.width))
            for value, count in row.counts.items():
                raw_pixels[value] = raw_pixels.get(value, 0) + count
            advance(1)
    writer.close()
    return Split(
        num_samples=len(pairs),
        rows_per_group=rows,
        shuffle_seed=seed if shuffle else None,
        class_pixels=tuple(sum(raw_pixels.get(v, 0) for v in c.raw) for c in contract.classes),
        void_pixels=sum(raw_pixels.get(v, 0) for v in contract.void),
        smallest=min(sizes, key=lambda s: s[0] * s[1]),
        largest=max(sizes, key=lambda s: s[0] * s[1]),
        shards=tuple(writer.shards),
    )


def encode_row(pair: Pair, rules: Rules) -> Row:
    """Encode a pair for storage. Raises LabelError if the mask does not fit the contract, DataError if a file is bad."""
    assert rules.labels is not None
    mask = pair.decode(pair.mask.read(), pair.mask.name, rules)
    counts = labels.histogram(mask)
    unknown_values.check(counts, rules.labels, pair.mask.name)
    height, width = mask.shape
    image = files.read_image(pair.image, (height, width), rules.max_pixels)
    data, codec = encode_mask(mask)
    return Row(pair.sample_id, image, data, codec, height, width, write.sparse_counts(counts))


def _source_digest(splits: Splits, settings: list[Any], pool: ThreadPoolExecutor) -> str:
    """Return the sha256 of the settings and of every file's content (in a bucket: its ETag), but not of file times."""
    pairs = [(split, pair) for split, members in splits.items() for pair in members]
    digest = hashlib.sha256(json.dumps(settings, default=list).encode())
    progress, advance = console.bar("hashing source", len(pairs))
    with progress:
        for (split, pair), content in zip(pairs, map_ahead(pool, _content_digests, (pair for _, pair in pairs), 16)):
            digest.update(json.dumps([split, pair.sample_id, content]).encode())
            advance(1)
    return digest.hexdigest()


def _content_digests(pair: Pair) -> list[str]:
    return [content.digest() for content in (pair.image, pair.mask)]


def _delete_stale(dest: str, splits: Iterable[str]) -> None:
    """Delete shards that the index no longer names, and temporary files of killed writers."""
    storage.remove_stale(dest)
    index = indices.load(dest)  # reloaded, since another process may have replaced it
    current = {shard.file for split in index.splits.values() for shard in split.shards}
    for split in splits:
        storage.remove_stale(storage.join(dest, split))
        for name in storage.names(storage.join(dest, split)):
            if name.endswith(".parquet") and f"{split}/{name}" not in current:
                storage.delete(storage.join(dest, split, name))


def _summary(dest: str, index: Index) -> dict[str, Any]:
    return {
        "uri": dest,
        "splits": {
            name: {"samples": s.num_samples, "shards": len(s.shards), "bytes": sum(x.bytes for x in s.shards)}
            for name, s in index.splits.items()
        },
        "classes": index.labels.names,
    }


def _class_table(index: Index) -> Table:
    table = Table(title=Text(f"{index.name}: share of pixels"))
    table.add_column("class")
    contract = index.labels
    table.add_column("colours" if contract.rgb else "raw values")
    for name, split in index.splits.items():
        table.add_column(Text(f"{name} ({split.num_samples})"), justify="right")
    rows = [(c.name, c.raw) for c in contract.classes] + [("void", contract.void)]
    for k, (name, raw) in enumerate(rows):
        shares = []
        for split in index.splits.values():
            counts = (*split.class_pixels, split.void_pixels)
            share = counts[k] / max(1, sum(counts))
            shares.append(f"{share:.2%}" if counts[k] or name == "void" else "[red]none[/red]")
        values = [labels.hex_of(contract.rgb[v]) if contract.rgb else str(v) for v in raw]
        table.add_row(Text(name), ", ".join(values), *shares)
    return table
