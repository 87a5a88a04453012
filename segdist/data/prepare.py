"""Any supported layout to a prepared data set: checked, encoded, shuffled, in shards. Safe to interrupt and repeat.

Nothing counts until index.json is written, which is the last thing that happens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from rich.text import Text

from segdist import console, storage
from segdist.data import causes, health, labels, names, write
from segdist.data import index as indices
from segdist.data.codec import encode_mask
from segdist.data.importers import LAYOUTS, files
from segdist.data.importers.files import Rules
from segdist.data.importers.folder import infer_labels
from segdist.data.importers.layout import ImportOptions, ImportPlan, Pair, Splits
from segdist.data.index import Index, Split
from segdist.data.labels import Color, Labels
from segdist.data.order import Permutation, key
from segdist.data.source import Source
from segdist.data.write import Row, ShardWriter
from segdist.errors import DataError, LabelError
from segdist.threads import ahead

_IN_ORDER = ("val", "test")  # evaluation reads these as the source lists them; all else is shuffled once, here


@dataclass(frozen=True)
class Declared:
    """What a person says of the masks."""

    names: str | None = None  # see data.names.parse_names
    void: Sequence[int | Color] | None = None
    first: int = 0  # mask value of the first class
    palette: str | None = None  # display colours
    color_tolerance: int = 0  # see importers.files.Rules


@console.limit_warnings()
def prepare(
    source: str,
    dest: str,
    layout: str = "folder",
    declared: Declared = Declared(),
    ask: ImportOptions = ImportOptions(),
    overwrite: bool = False,
    max_megapixels: int = 200,
) -> dict[str, Any]:
    """Prepares SOURCE into DEST; {"uri", "splits": {name: samples, shards, bytes}, "classes"}.

    Raises DataError or LabelError naming the first bad file and its remedy; DEST then counts as prepared, or not, as before.
    """
    if source.rstrip("/") == dest.rstrip("/") or source.startswith(f"{dest.rstrip('/')}/"):
        raise DataError(f"{dest} holds the source {source}; give the prepared data a folder of its own")
    found = find(source, layout, ask)
    splits = found.splits
    storage.check_writable(dest)
    contract = contract_of(declared, found)
    rules = Rules(max_megapixels * 10**6, contract, declared.color_tolerance)
    with ThreadPoolExecutor(_threads(source)) as pool:
        said = [declared.void, declared.palette, declared.color_tolerance]
        settings = [layout, contract and contract.to_json(), said, ask.seed, indices.FORMAT]
        digest = _source_digest(splits, settings, pool)
        known = indices.load(dest) if storage.exists(storage.join(dest, indices.NAME)) else None
        if known and not overwrite:
            if known.source_digest != digest:
                raise DataError(
                    f"{dest} holds another prepared data set ({known.name!r}): of other files, with other options such as "
                    "--names, or of a copy in another store; give another place or --overwrite"
                )
            console.say(f"{dest} is prepared from this source already; nothing to do (--overwrite makes it anew)")
            return _summary(dest, known)
        contract = contract or infer(declared.void, splits, pool, rules)
        rules = replace(rules, labels=_colored(contract, declared.palette, splits))
        written = {s: _write_split(dest, s, pairs, rules, ask.seed, pool) for s, pairs in splits.items()}
    assert rules.labels is not None
    index = Index(
        format=indices.FORMAT,
        name=_name(source),
        source=found.source or f"{layout}: {_name(source)}",
        source_digest=digest,
        licence=found.licence,
        contract=rules.labels.to_json(),
        meaning=rules.labels.meaning(),
        splits=written,
    )
    if declared.names is not None:
        check_sense(index)
    for split in splits:
        Source(dest, index, split).check()  # nobody who prepares another source into DEST has deleted them
    indices.save(dest, index)
    _delete_stale(dest, {*splits, *(known.splits if known else ())})
    console.console.print(_class_table(index))
    for finding in health.from_index(index):
        if finding.severity in ("warning", "error"):
            console.say(f"warning: {finding.text} ({finding.remedy})")
    return _summary(dest, index)


def check_sense(index: Index) -> None:
    """Raises LabelError when names were given that fit the masks so badly that all but one class, at most, became void."""
    there = [c for k, c in enumerate(index.labels.classes) if any(s.class_pixels[k] for s in index.splits.values())]
    void = sum(s.void_pixels for s in index.splits.values())
    if len(there) >= 2 or not void:
        return
    share = void / (void + sum(sum(s.class_pixels) for s in index.splits.values()))
    text = f"only class {there[0].name!r} has pixels" if there else "no class has pixels"
    remedy = "Name the values that the masks hold: --names name=value,..."
    if index.labels.void == (255,):
        remedy = "Is 255 a class? Then name it so: --names background=0,object=255"
    raise LabelError(f"{text} in any split, and {share:.1%} of all pixels are void. {remedy}")


def find(source: str, layout: str, ask: ImportOptions) -> ImportPlan:
    """The pairs of a source, none of its splits empty, up to the limit. Raises DataError."""
    if layout not in LAYOUTS:
        raise DataError(f"--format {layout!r} is unknown; there are {', '.join(LAYOUTS)} (`segdist prepare --list`)")
    importer = LAYOUTS[layout]
    for option in ("revision", "subset", "image_column", "mask_column"):
        if getattr(ask, option) is not None and option not in importer.options:
            raise DataError(f"--format {layout} has no use for --{option.replace('_', '-')}; leave it out")
    on_hub = "revision" in importer.options  # then SOURCE may be an id
    if not on_hub and not storage.exists(source):
        raise DataError(f"{storage.redacted(source)}: this folder does not exist")
    Image.MAX_IMAGE_PIXELS = None  # our own limit, with a remedy, stands before every decode
    found = importer.find(source, ask)
    splits = {s: pairs[: ask.limit] for s, pairs in found.splits.items()}
    for split, pairs in splits.items():
        if not pairs and sum(map(len, splits.values())) == 1:
            raise DataError(f"{storage.redacted(source)}: only one pair is there; two splits need one each, at least")
        if not pairs:
            raise DataError(
                f"{storage.redacted(source)}: split {split!r} is empty; add images and masks to it, or remove it"
            )
    return replace(found, splits=splits, licence=found.licence or importer.licence)


def _name(source: str) -> str:
    """What the data set is called: its folder."""
    if storage.is_local(source):
        name = Path(source).expanduser().resolve().name
    else:
        name = storage.redacted(source).rstrip("/").rsplit("/", 1)[-1]
    return name.removesuffix(".json")


def _threads(source: str) -> int:
    """Decoding wants a thread a core, waiting for a store wants more."""
    cores = os.cpu_count() or 1
    return cores if storage.is_local(source) else max(16, 2 * cores)


def contract_of(declared: Declared, found: ImportPlan) -> Labels | None:
    """The contract that the user or the source declares, if any."""
    if declared.names is not None:
        return names.parse_names(declared.names, declared.void, declared.first)
    if declared.first:
        raise LabelError("--first says which value --names begin at; give --names as well")
    if found.labels is not None and declared.void is not None:
        raise LabelError("this source declares its void values itself; leave --void out, or give --names as well")
    return found.labels


def infer(void: Sequence[int | Color] | None, splits: Splits, pool: ThreadPoolExecutor, rules: Rules) -> Labels:
    """A contract from the values that the masks hold."""
    values = names.DEFAULT_VOID if void is None else tuple(v for v in void if isinstance(v, int))
    if void is not None and len(values) < len(void):
        raise LabelError("--void names a colour; say which colours are classes with --names name=#rrggbb,...")
    found: set[int] = set()
    pairs = [pair for some in splits.values() for pair in some]
    progress, advance = console.bar("looking at masks", len(pairs))
    with progress:
        for present in ahead(pool, lambda pair: np.unique(_mask(pair, rules)), pairs, 16):
            found |= set(present.tolist())
            advance(1)
    contract = infer_labels(found, values)
    console.say(
        f"no --names given: the masks hold {causes.ranges(found)}, so {contract.num_classes} classes are named by number"
    )
    return contract


def _colored(contract: Labels, palette: str | None, splits: Splits) -> Labels:
    """The contract in the colours that are asked for, else its own, else those of the first mask's palette."""
    if palette:
        return contract.colored(names.palette(palette, contract.num_classes))
    if [c.color for c in contract.classes] != labels.generated_colors(contract.num_classes):
        return contract
    shown = files.palette_of(next(iter(splits.values()))[0].mask.read())
    if shown is None or any(c.raw[0] >= len(shown) for c in contract.classes):
        return contract
    colors = [shown[c.raw[0]] for c in contract.classes]
    return contract.colored(colors) if len(set(colors)) == len(colors) else contract


def _mask(pair: Pair, rules: Rules) -> np.ndarray:
    return pair.decode(pair.mask.read(), pair.mask.name, rules)


def _write_split(dest: str, split: str, pairs: list[Pair], rules: Rules, seed: int, pool: ThreadPoolExecutor) -> Split:
    contract = rules.labels
    assert contract is not None
    shuffle = split not in _IN_ORDER
    order = Permutation(len(pairs), key(seed, 11))(np.arange(len(pairs))) if shuffle else np.arange(len(pairs))
    stored = ahead(pool, files.stored_bytes, (p.image for p in pairs), 64)
    largest = max(image + p.mask.num_bytes for image, p in zip(stored, pairs))
    rows = write.rows_per_group(largest, len(pairs), shuffle)
    writer = ShardWriter(write.below(dest), split, rows)
    raw: dict[int, int] = {}
    sizes = set()
    progress, advance = console.bar(f"preparing {split}", len(pairs))
    with progress:
        pack = partial(encode, rules=rules)
        for row in ahead(pool, pack, (pairs[i] for i in order), 4 * (os.cpu_count() or 1)):
            writer.add(row)
            sizes.add((row.height, row.width))
            for value, count in row.counts.items():
                raw[value] = raw.get(value, 0) + count
            advance(1)
    writer.close()
    return Split(
        num_samples=len(pairs),
        rows_per_group=rows,
        shuffle_seed=seed if shuffle else None,
        class_pixels=tuple(sum(raw.get(v, 0) for v in c.raw) for c in contract.classes),
        void_pixels=sum(raw.get(v, 0) for v in contract.void),
        smallest=min(sizes, key=lambda s: s[0] * s[1]),
        largest=max(sizes, key=lambda s: s[0] * s[1]),
        shards=tuple(writer.shards),
    )


def encode(pair: Pair, rules: Rules) -> Row:
    """A pair as it will rest, checked against the contract."""
    assert rules.labels is not None
    mask = _mask(pair, rules)
    counts = labels.histogram(mask)
    causes.check(counts, rules.labels, pair.mask.name)
    height, width = mask.shape
    image = files.read_image(pair.image, (height, width), rules.max_pixels)
    data, codec = encode_mask(mask)
    return Row(pair.sample_id, image, data, codec, height, width, write.sparse_counts(counts))


def _source_digest(splits: Splits, settings: list[Any], pool: ThreadPoolExecutor) -> str:
    """Of the settings and of every file's content, or in a bucket its ETag: a touched source is the same source."""
    pairs = [(split, pair) for split, found in splits.items() for pair in found]
    digest = hashlib.sha256(json.dumps(settings, default=list).encode())
    progress, advance = console.bar("comparing", len(pairs))
    with progress:
        for (split, pair), content in zip(pairs, ahead(pool, _content_digests, (pair for _, pair in pairs), 16)):
            digest.update(json.dumps([split, pair.sample_id, content]).encode())
            advance(1)
    return digest.hexdigest()


def _content_digests(pair: Pair) -> list[str]:
    return [content.digest() for content in (pair.image, pair.mask)]


def _delete_stale(dest: str, splits: Iterable[str]) -> None:
    """Shards of earlier preparations, now that the index names others, and what killed writers left."""
    storage.remove_stale(dest)
    index = indices.load(dest)  # as it is now: another one may have been written after ours
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
        shown = [labels.hex_of(contract.rgb[v]) if contract.rgb else str(v) for v in raw]
        table.add_row(Text(name), ", ".join(shown), *shares)
    return table
