"""Push a prepared dataset to the Hugging Face Hub.

The repository is itself a prepared dataset, and `data.uri=hf://datasets/OWNER/NAME` streams from it. Its shards are Parquet
files with `Image` columns, so `datasets.load_dataset` and the Hub's viewer also show images and masks. Masks become palette
PNGs of class numbers as in id2label.json, and 255 for void, whatever values the source's masks had.
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
from huggingface_hub import DatasetCardData
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
from segdist.publish.card import escape_cell, licence_fields, published_source
from segdist.publish.hub import Repo, write_manifest
from segdist.threads import map_ahead

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**18, "n>1M"))
_COLUMNS = {  # types for `datasets`
    "sample_id": "string",
    "image": "image",
    "mask": "image",
    "mask_codec": "string",
    "height": "int32",
    "width": "int32",
}
_NUM_SHOWN, _NUM_CANDIDATES = 4, 64  # samples in the card's image, and those they are chosen from


def open_data(index: Index, repo_id: str, private: bool, overwrite: bool) -> tuple[Repo, str]:
    """Create a dataset repository if needed, and return (repository, URL).

    Raises UserError if the token may not write there, or (unless `overwrite`) if the repository holds something else.
    """
    repo = Repo(repo_id, "dataset")
    url = repo.open(private)
    manifest = None if overwrite else repo.manifest()
    if manifest is not None and manifest.get("data", _digest(manifest.get("name"))) != _digest(index.name):
        raise UserError(
            f"{repo_id} on the Hub holds another dataset, not {index.name!r}. Choose another name, or use --overwrite"
        )
    return repo, url


def _digest(name: str | None) -> str:
    """Return a digest that identifies a dataset without revealing its name, which is a folder's and may be private."""
    return hashlib.sha256(str(name).encode()).hexdigest()[:16]


def push_data(
    uri: str, repo_id: str, private: bool = True, overwrite: bool = False, licence: str | None = None
) -> dict[str, Any]:
    """Push the prepared dataset at `uri` to a dataset repository.

    Returns {"repo_id", "url", "commit", "changed", "data"}. Raises UserError, before any work, if the repository is not
    writable or holds something else.
    """
    index = indices.load(uri)
    index = index.model_copy(update={"licence": licence}) if licence else index
    for split in index.splits:
        Source(uri, index, split).check()
    repo, url = open_data(index, repo_id, private, overwrite)
    with tempfile.TemporaryDirectory() as folder:
        _write_folder(uri, index, repo, Path(folder))
        counts = ", ".join(f"{split.num_samples} {name}" for name, split in index.splits.items())
        commit = repo.commit(Path(folder), f"{repo_id.split('/')[1]}: {counts}", overwrite)
    return {"repo_id": repo_id, "url": url, "commit": commit, "changed": repo.changed, "data": uri}


def _write_folder(uri: str, index: Index, repo: Repo, folder: Path) -> None:
    """Upload the shards one by one, and write all other files of the repository into FOLDER."""
    shared = Labels(tuple(Class(c.name, (k,), c.color) for k, c in enumerate(index.labels.classes)), (IGNORE,))
    splits = {name: _copy_split(uri, index, name, repo) for name in index.splits}
    public = {"name": repo.repo_id.split("/")[1], "source": published_source(index.source)}
    fields = {"contract": shared.to_json(), "meaning": shared.meaning(), "splits": splits, **public}
    indices.save(str(folder), index.model_copy(update=fields))
    id2label = {str(k): name for k, name in enumerate(shared.names)}
    (folder / "id2label.json").write_text(json.dumps(id2label, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "images").mkdir()
    (folder / "images" / "samples.png").write_bytes(figures.png(_samples(uri, index)))
    (folder / "README.md").write_text(_data_card(index, repo.repo_id), encoding="utf-8")
    shards = [shard.file for split in splits.values() for shard in split.shards]
    write_manifest(folder, {"data": _digest(index.name)}, shards)


def _copy_split(uri: str, index: Index, name: str, repo: Repo) -> Split:
    """Upload a split with its masks as class numbers. Return its description with the new shards."""
    split, source = index.split(name), Source(uri, index, name)
    tables = {np.dtype(t): index.labels.table(t) for t in (np.uint8, np.uint16)}
    palette = index.labels.palette().tobytes()
    writer = ShardWriter(repo.upload, name, split.rows_per_group)
    progress, advance = console.bar(f"copying {name}", split.num_samples)
    with progress, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for row in map_ahead(pool, partial(_row, tables=tables, palette=palette), samples(source), 64):
            writer.add(row)
            advance(1)
    writer.close()
    return split.model_copy(update={"shards": tuple(writer.shards)})


def samples(source: Source) -> Iterator[Sample]:
    """Yield all samples of a split, in order."""
    for number in range(len(source.sizes)):
        group = source.fetch(number)
        for row in range(group.num_rows):
            yield group.sample(row)


def _row(sample: Sample, tables: dict[np.dtype, np.ndarray], palette: bytes) -> Row:
    """Return the sample with its mask as a palette PNG of class numbers."""
    raw = codec.decode_mask(sample.mask, sample.mask_codec, sample.height, sample.width)
    mask = Image.fromarray(tables[raw.dtype][raw])
    mask.putpalette(palette)
    out = io.BytesIO()
    mask.save(out, "PNG")
    return Row(
        sample.sample_id,
        codec.strip_metadata(sample.image.to_pybytes()),
        out.getvalue(),
        codec.PNG,
        sample.height,
        sample.width,
        {},
    )


def _samples(uri: str, index: Index) -> Image.Image:
    """Draw samples of the last split beside their masks: among the first ones, those that add the most classes."""
    candidates = list(islice(samples(Source(uri, index, next(reversed(index.splits)))), _NUM_CANDIDATES))
    masks = [_classes(sample, index.labels) for sample in candidates]
    classes = [set(np.unique(mask).tolist()) - {IGNORE} for mask in masks]
    covered: set[int] = set()
    chosen: list[int] = []
    for _ in candidates[:_NUM_SHOWN]:
        rest = [i for i in range(len(candidates)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: len(classes[i] - covered)))
        covered |= classes[chosen[-1]]
    pixels = [codec.decode_image(candidates[i].image).permute(1, 2, 0).contiguous().numpy() for i in chosen]
    return previews.pairs(list(zip(pixels, (masks[i] for i in chosen))), index.labels)


def _classes(sample: Sample, labels: Labels) -> np.ndarray:
    """Return the sample's mask as classes, uint8 (H, W), with 255 for void."""
    raw = codec.decode_mask(sample.mask, sample.mask_codec, sample.height, sample.width)
    return labels.table(raw.dtype)[raw]


def _metadata(index: Index) -> DatasetCardData:
    """Return the metadata that the Hub reads."""
    num = sum(split.num_samples for split in index.splits.values())
    files = [{"split": name, "path": f"{name}/*.parquet"} for name in index.splits]
    return DatasetCardData(
        **licence_fields(licences.named(index.licence)),
        task_categories=["image-segmentation"],
        task_ids=["semantic-segmentation"],
        size_categories=[next(text for most, text in _SIZES if num < most)],
        tags=["segdist"],
        dataset_info={"features": [{"name": name, "dtype": kind} for name, kind in _COLUMNS.items()]},
        configs=[{"config_name": "default", "data_files": files}],
    )


def _data_card(index: Index, repo_id: str) -> str:
    """Return the card: a YAML header and Markdown."""
    num = sum(split.num_samples for split in index.splits.values())
    labels, splits = index.labels, index.splits
    rows = [
        f"| {k} | {escape_cell(c.name)} | `{hex_of(c.color)}` | {_raw(labels, c.raw)} | "
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
    source = escape_cell(published_source(index.source))
    text = f"""# {repo_id}

{num} images with masks of {labels.num_classes} classes, prepared with segdist from {source}.
Licence: {index.licence or "not stated by its source"}.

![Images of the dataset and their masks](images/samples.png)

## Contents

| split | samples | smallest, px (height x width) | largest, px (height x width) |
| --- | --- | --- | --- |
{counts}

`image` is the source's file (JPEG or PNG) without EXIF and other metadata. `mask` is a palette PNG of the same size: its values
are class numbers, its palette has the class colours, and 255 is void (no class, not scored). `id2label.json` has the names.

| number | class | colour | value in the source's masks | {" | ".join(f"share of {name}" for name in splits)} |
| --- | --- | --- | --- | {" | ".join("---" for _ in splits)} |
{chr(10).join([*rows, void])}

## Use

```python
from datasets import load_dataset

data = load_dataset("{repo_id}")
```

To stream it during training: `segdist train CONFIG data.uri=hf://datasets/{repo_id}`.
"""
    return f"---\n{_metadata(index).to_yaml()}\n---\n\n{text}"


def _raw(labels: Labels, values: tuple[int, ...]) -> str:
    return ", ".join(hex_of(labels.rgb[v]) if labels.rgb else str(v) for v in values)


def _share(pixels: int, split: Split) -> str:
    return f"{pixels / max(1, sum(split.class_pixels) + split.void_pixels):.2%}"
