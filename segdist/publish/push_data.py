"""A prepared data set on the Hugging Face Hub, in a form that everybody reads.

The repository is a prepared data set itself: `data.uri=hf://datasets/OWNER/NAME` streams from it. Its shards are Parquet with
`Image` columns, so `datasets.load_dataset` and the Hub's viewer show images and masks, too. For them masks are palette PNGs
of class numbers, 255 for void, as id2label.json has them, whatever values the source's masks held.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from segdist import console
from segdist.data import codec
from segdist.data import index as indices
from segdist.data.index import Index, Split
from segdist.data.labels import Class, Labels, hex_of
from segdist.data.source import Sample, Source
from segdist.data.write import Row, ShardWriter
from segdist.errors import UserError
from segdist.evaluation import figures, previews
from segdist.models import licences
from segdist.ops import IGNORE
from segdist.publish.card import cell, licence_fields, published_source
from segdist.publish.hub import Repo, seal
from segdist.threads import ahead

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**18, "n>1M"))
_COLUMNS = {
    "sample_id": "string",
    "image": "image",
    "mask": "image",
    "mask_codec": "string",
    "height": "int32",
    "width": "int32",
}  # fmt: skip (as `datasets` shall read them)
_SHOWN, _LOOKED_AT = 4, 64  # samples in the card's picture, and those that it is chosen from


def open_data(index: Index, repo_id: str, private: bool, overwrite: bool) -> tuple[Repo, str]:
    """(the repository, its address), ready to take this data set.

    Raises UserError when the token may not write there, or (unless `overwrite`) when it holds something else.
    """
    repo = Repo(repo_id, "dataset")
    url = repo.open(private)
    held = None if overwrite else repo.mark()
    if held is not None and held.get("data", _digest(held.get("name"))) != _digest(index.name):
        raise UserError(
            f"{repo_id} on the Hub holds another data set than this one ({index.name!r}); give another name, or --overwrite"
        )
    return repo, url


def _digest(name: str | None) -> str:
    """Tells a data set from others without its name, which is that of a folder and may be private."""
    return hashlib.sha256(str(name).encode()).hexdigest()[:16]


def push_data(
    uri: str, repo_id: str, private: bool = True, overwrite: bool = False, licence: str | None = None
) -> dict[str, Any]:
    """Makes a data set of the Hub hold the prepared one at `uri`; {"repo_id", "url", "commit", "changed", "data"}.

    Raises UserError before any work when it may not be written.
    """
    index = indices.load(uri)
    index = index.model_copy(update={"licence": licence}) if licence else index
    for split in index.splits:
        Source(uri, index, split).check()
    repo, url = open_data(index, repo_id, private, overwrite)
    with tempfile.TemporaryDirectory() as place:
        write_folder(uri, index, repo, Path(place))
        commit = repo.commit(
            Path(place),
            f"{repo_id.split('/')[1]}: {', '.join(f'{s.num_samples} {n}' for n, s in index.splits.items())}",
            overwrite,
        )
    return {"repo_id": repo_id, "url": url, "commit": commit, "changed": repo.changed, "data": uri}


def write_folder(uri: str, index: Index, repo: Repo, folder: Path) -> None:
    """All that the repository will hold: its shards, sent ahead one by one, and in FOLDER the rest."""
    shared = Labels(tuple(Class(c.name, (k,), c.color) for k, c in enumerate(index.labels.classes)), (IGNORE,))
    splits = {name: _copy_split(uri, index, name, repo) for name in index.splits}
    public = {"name": repo.repo_id.split("/")[1], "source": published_source(index.source)}
    fields = {"contract": shared.to_json(), "meaning": shared.meaning(), "splits": splits, **public}
    indices.save(str(folder), index.model_copy(update=fields))
    id2label = {str(k): name for k, name in enumerate(shared.names)}
    (folder / "id2label.json").write_text(json.dumps(id2label, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "images").mkdir()
    (folder / "images" / "samples.png").write_bytes(figures.png(_samples(uri, index)))
    (folder / "README.md").write_text(data_card(index, repo.repo_id), encoding="utf-8")
    seal(folder, {"data": _digest(index.name)}, [shard.file for split in splits.values() for shard in split.shards])


def _copy_split(uri: str, index: Index, name: str, repo: Repo) -> Split:
    split, source = index.split(name), Source(uri, index, name)
    tables = {np.dtype(t): index.labels.table(t) for t in (np.uint8, np.uint16)}
    palette = index.labels.palette().tobytes()
    writer = ShardWriter(repo.upload, name, split.rows_per_group)
    progress, advance = console.bar(f"copying {name}", split.num_samples)
    with progress, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for row in ahead(pool, partial(_row, tables=tables, palette=palette), samples(source), 64):
            writer.add(row)
            advance(1)
    writer.close()
    return split.model_copy(update={"shards": tuple(writer.shards)})


def samples(source: Source) -> Iterator[Sample]:
    """All rows of a split, in their order."""
    for number in range(len(source.sizes)):
        group = source.fetch(number)
        for row in range(group.num_rows):
            yield group.sample(row)


def _row(sample: Sample, tables: dict[np.dtype, np.ndarray], palette: bytes) -> Row:
    """The sample with its mask as a palette PNG of class numbers."""
    raw = codec.decode_mask(sample.mask, sample.mask_codec, sample.height, sample.width)
    mask = Image.fromarray(tables[raw.dtype][raw])
    mask.putpalette(palette)
    out = io.BytesIO()
    mask.save(out, "PNG")
    return Row(
        sample.sample_id,
        codec.without_metadata(sample.image.to_pybytes()),
        out.getvalue(),
        codec.PNG,
        sample.height,
        sample.width,
        {},
    )


def _samples(uri: str, index: Index) -> Image.Image:
    """Samples of the last split beside their classes: of its first ones those that show most classes not yet shown."""
    first = list(islice(samples(Source(uri, index, next(reversed(index.splits)))), _LOOKED_AT))
    masks = [_classes(sample, index.labels) for sample in first]
    inside = [set(np.unique(mask).tolist()) - {IGNORE} for mask in masks]
    shown: set[int] = set()
    chosen: list[int] = []
    for _ in first[:_SHOWN]:
        rest = [i for i in range(len(first)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: len(inside[i] - shown)))
        shown |= inside[chosen[-1]]
    pixels = [codec.decode_image(first[i].image).permute(1, 2, 0).contiguous().numpy() for i in chosen]
    return previews.pairs(list(zip(pixels, (masks[i] for i in chosen))), index.labels)


def _classes(sample: Sample, labels: Labels) -> np.ndarray:
    """uint8 (H, W), 255 where void."""
    raw = codec.decode_mask(sample.mask, sample.mask_codec, sample.height, sample.width)
    return labels.table(raw.dtype)[raw]


def data_card(index: Index, repo_id: str) -> str:
    """Markdown behind the YAML that the Hub reads."""
    num = sum(split.num_samples for split in index.splits.values())
    header = {
        **licence_fields(licences.named(index.licence)),
        "task_categories": ["image-segmentation"],
        "task_ids": ["semantic-segmentation"],
        "size_categories": [next(text for most, text in _SIZES if num < most)],
        "tags": ["segdist"],
        "dataset_info": {"features": [{"name": name, "dtype": kind} for name, kind in _COLUMNS.items()]},
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"{name}/*.parquet"} for name in index.splits],
            }
        ],
    }
    labels, splits = index.labels, index.splits
    rows = [
        f"| {k} | {cell(c.name)} | `{hex_of(c.color)}` | {_raw(labels, c.raw)} | "
        + " | ".join(_share(s.class_pixels[k], s) for s in splits.values())
        + " |"
        for k, c in enumerate(labels.classes)
    ]
    void = (
        f"| 255 | void | | {_raw(labels, labels.void)} | "
        + " | ".join(_share(s.void_pixels, s) for s in splits.values())
        + " |"
    )
    counts = "\n".join(
        f"| {name} | {s.num_samples} | {s.smallest[0]}x{s.smallest[1]} | {s.largest[0]}x{s.largest[1]} |"
        for name, s in splits.items()
    )
    text = f"""# {repo_id}

{num} images with a mask each, {labels.num_classes} classes, prepared with segdist from {cell(published_source(index.source))}.
Licence: {index.licence or "not stated by its source"}.

![Some of its images and their classes](images/samples.png)

## What it holds

| split | samples | smallest, px (height x width) | largest, px (height x width) |
| --- | --- | --- | --- |
{counts}

`image` is the image as its source had it (JPEG or PNG; without EXIF and other metadata), `mask` a PNG of the same size whose
values are class numbers, with the classes' colours as its palette; 255 is void: no class, in no score.
`id2label.json` has the names.

| number | class | colour | the source's values | {" | ".join(f"share of {name}" for name in splits)} |
| --- | --- | --- | --- | {" | ".join("---" for _ in splits)} |
{chr(10).join([*rows, void])}

## Use

```python
from datasets import load_dataset

data = load_dataset("{repo_id}")
```

or, streamed while training: `segdist train CONFIG data.uri=hf://datasets/{repo_id}`.
"""
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{text}"


def _raw(labels: Labels, values: tuple[int, ...]) -> str:
    return ", ".join(hex_of(labels.rgb[v]) if labels.rgb else str(v) for v in values)


def _share(pixels: int, split: Split) -> str:
    return f"{pixels / max(1, sum(split.class_pixels) + split.void_pixels):.2%}"
