"""Classes for images that have no mask: index masks, colour masks, overlays, probabilities, and shares of classes as tables.

Images are decoded ahead in threads, those of one size share a forward pass, and files are written behind. What an
interrupted prediction has written is found again, as long as the images, the model and how it looks at them are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from segdist import console, storage
from segdist.data.augment import model_size, resize_image
from segdist.data.importers.files import check_range, open_picture
from segdist.data.labels import Labels
from segdist.errors import DataError, MissingError, StorageError, UserError
from segdist.evaluation import figures
from segdist.evaluation.inference import inference_settings, segment
from segdist.predict import inputs, outputs
from segdist.predict.outputs import Known, Stamp, place, shares
from segdist.runs import checkpoints
from segdist.runs.restore import Trained
from segdist.threads import ahead

ENDS = {  # of what is written for NAME.jpg
    "mask": ".png", "color": "_color.png", "overlay": "_overlay.png", "probabilities": "_probabilities.npz",
}  # fmt: skip
MARK = "predictions.json"
_AHEAD = 4  # images decoded before their turn
_BATCH_PIXELS = 1 << 24  # in a batch, where it holds more than one image
_BEHIND = 16  # images whose files are on their way out
_BEHIND_BYTES = 1 << 28  # of theirs, together
_KEPT_BYTES = 1 << 28  # of probabilities of a batch, where it holds more than one image
_MOST_BYTES = 1 << 31  # of probabilities of an image


@dataclass(frozen=True)
class _Job:
    uri: str
    names: dict[str, str]  # kind -> its place below OUT
    tag: str | None  # see predictions.Stamp
    sha256: str = ""  # of its file, once it was read


def classify(trained: Trained, image: np.ndarray) -> np.ndarray:
    """uint8 (H, W) classes of a uint8 (H, W, 3) image, at its own size, as the run's evaluation would see it."""
    return _classify(trained, [image])[0]


def predict_files(
    trained: Trained,
    images: Sequence[str],
    out: str,
    max_megapixels: int = 200,
    kinds: Sequence[str] = ("mask", "overlay"),
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Writes OUT/NAME.png (index mask) and whatever else of ENDS `kinds` asks for, for every image; where they went.

    `images` are URIs of files, of folders whose images are all meant, or patterns with *, ? and **. Files of folders keep
    their place below them; of names that would clash see targets.stems. Images whose results are there already are passed
    over, unless `overwrite`; one that has changed since is predicted anew. OUT/shares.csv has the share of each class in
    each image, those of earlier calls included, and OUT/shares.jsonl the same, one JSON object per line; also where the work
    is interrupted. Probabilities are an npz file that numpy reads: `probabilities`, float16 (K, H, W), and `names` (K,).

    Raises UserError before the first image when something would be overwritten: another image's mask, an image itself, or
    what another model predicted. An image that cannot be read, or is larger than `max_megapixels` or than probabilities can
    be of, does not stop the others: UserError names such images at the end.
    """
    jobs = _jobs(images, out, kinds)
    storage.check_writable(out)
    mark = _mark(trained)
    by, there = hashlib.sha256(mark).hexdigest(), {entry.name for entry in storage.walk(out)}
    earlier = outputs.rows(out, there, list(ENDS)) if _is_of(out, mark, overwrite) else {}
    known = {} if overwrite else _known(jobs, out, there, by, trained.labels)
    storage.write(storage.join(out, MARK), mark)
    ready = [job for job in jobs if job.uri in known and there.issuperset(job.names.values())]
    found = {job.uri: known[job.uri].shares for job in ready if {*job.names} <= {*known[job.uri].kinds}}
    if found:
        console.say(f"{len(found)} of {len(jobs)} images have their results already; --overwrite makes them anew")
    todo, writer = [job for job in jobs if job.uri not in found], _Writer()
    failed: list[str] = []

    def put_tables() -> list[dict[str, Any]]:
        records = _records(jobs, found | writer.done, out, trained.labels)
        outputs.put_tables(out, _merged(earlier, records), trained.labels)
        return list(records.values())

    progress, advance = console.bar("predicting", len(jobs), len(found))
    try:
        with progress, writer:
            _predict(trained, todo, known, by, out, max_megapixels, writer, failed, advance)
    except BaseException as error:
        with contextlib.suppress(StorageError):  # it may be what failed
            put_tables()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            num = len(found) + len(writer.done)
            console.say(f"stopped: {num} of {len(jobs)} images are done, in {out}; the same command goes on from there")
        raise
    records = put_tables()
    if failed:
        raise UserError(
            "\n".join([*failed, f"{len(failed)} of {len(jobs)} images could not be read; the others are in {out}"])
        )
    return records


def _predict(
    trained: Trained,
    jobs: list[_Job],
    known: dict[str, Known],
    by: str,
    out: str,
    max_megapixels: int,
    writer: _Writer,
    failed: list[str],
    advance: Callable[[int], None],
) -> None:
    """Puts the results of all jobs on their way; what cannot be read goes to `failed`. `by`: see predictions.Stamp."""
    num_kept = trained.labels.num_classes if any("probabilities" in job.names for job in jobs) else 0
    for batch, pixels in _batches(jobs, trained.cfg.eval.batch_size, max_megapixels, num_kept, failed, advance):
        kept = torch.empty(len(batch), num_kept, *pixels[0].shape[:2], dtype=torch.float16) if num_kept else None
        for i, (job, image, classes) in enumerate(zip(batch, pixels, _classify(trained, pixels, kept))):
            others = known[job.uri].kinds if job.uri in known else ()  # which this prediction would repeat
            kinds = tuple(kind for kind in ENDS if kind in {*job.names, *others})
            name = PurePosixPath(storage.redacted(job.uri)).name
            stamp = Stamp(name, outputs.digest(job.uri), job.sha256, job.tag, by, kinds)
            files = []
            for kind, name in job.names.items():
                if kind == "probabilities":
                    assert kept is not None
                    data = _packed(kept[i].numpy(), trained.labels.names)
                else:
                    data = _drawn(kind, image, classes, trained.labels, stamp)
                files.append((storage.join(out, name), data))
            writer.put(job.uri, shares(classes, trained.labels), files[::-1])  # the mask last
            advance(1)


def _records(jobs: list[_Job], done: dict[str, list[float]], out: str, labels: Labels) -> dict[str, dict[str, Any]]:
    """By the name of its mask, what the tables say of each image that is `done`: {URI: its shares}."""
    return {
        job.names["mask"]: {
            "image": job.uri,
            **{kind: storage.join(out, name) for kind, name in job.names.items()},
            "shares": dict(zip(labels.names, done[job.uri])),
        }
        for job in jobs
        if job.uri in done
    }


def _merged(earlier: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of earlier calls and of this one; an image whose results now have another name is there once."""
    images = {row["image"] for row in now.values()}
    return list(({k: row for k, row in earlier.items() if k in now or row["image"] not in images} | now).values())


def _jobs(images: Sequence[str], out: str, kinds: Sequence[str]) -> list[_Job]:
    """What goes where. Raises UserError when two results, or a result and an image, would be one file."""
    ends = {kind: ENDS[kind] for kind in ENDS if kind in {"mask", *kinds}}
    chosen = inputs.pictures(images, out)
    stems = inputs.stems(chosen, list(ends.values()))
    jobs = [_Job(one.uri, {kind: stems[one.uri] + end for kind, end in ends.items()}, one.tag) for one in chosen]
    taken = {place(job.uri): "" for job in jobs}
    for job in jobs:
        for target in (storage.join(out, name) for name in job.names.values()):
            if other := taken.get(place(target)):
                shown = storage.redacted(job.uri)
                raise UserError(
                    f"the results for {other} and for {shown} would both be {target}; predict them apart, to two folders"
                )
            if other is not None:
                raise UserError(f"{target} would overwrite that image; give another --out")
            taken[place(target)] = storage.redacted(job.uri)
    return jobs


def _mark(trained: Trained) -> bytes:
    """What predicts, and how it looks at images."""
    how = inference_settings(trained.cfg.eval, trained.cfg.data.crop_size)
    now = {
        "checkpoint": trained.uri,
        "checkpoint_digest": trained.digest or checkpoints.digest(trained.uri),
        "weights": trained.weights,
        "image_size": trained.cfg.data.image_size,
        **asdict(how),
    }
    return json.dumps(now, indent=1).encode()


def _is_of(out: str, mark: bytes, overwrite: bool) -> bool:
    """Whether OUT holds predictions of the same model and look; not, where it holds none.

    Raises UserError when, unless `overwrite`, it holds those of another.
    """
    try:
        before = json.loads(storage.read(storage.join(out, MARK)))
    except MissingError:
        return False
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        before = {}
    if before == json.loads(mark):
        return True
    if not overwrite:
        raise UserError(
            f"{out} holds predictions of {before.get('checkpoint', 'something else')}, or made otherwise; give another "
            "--out, or --overwrite"
        )
    return False


def _known(jobs: list[_Job], out: str, there: set[str], by: str, labels: Labels) -> dict[str, Known]:
    """By URI, what is there already. Raises UserError when a mask is there that is another image's."""
    held = [job for job in jobs if job.names["mask"] in there]

    def look(job: _Job) -> Known | None:
        return outputs.known(storage.join(out, job.names["mask"]), job.uri, job.tag, by, labels)

    with ThreadPoolExecutor(_BEHIND, "read") as pool:
        return {job.uri: one for job, one in zip(held, pool.map(look, held)) if one is not None}


def _batches(
    jobs: list[_Job], batch_size: int, max_megapixels: int, num_kept: int, failed: list[str], advance: Any
) -> Iterator[tuple[list[_Job], list[np.ndarray]]]:
    """Images in order, neighbours of one size together; what cannot be read goes to `failed`.

    `num_kept`: of so many classes the probabilities will be held in memory.
    """

    def load(job: _Job) -> tuple[_Job, np.ndarray] | DataError:
        data = storage.read(job.uri)
        try:
            image = _decoded(data, job.uri, max_megapixels)
        except DataError as error:
            return error
        height, width = image.shape[:2]
        if (size := 2 * num_kept * height * width) > _MOST_BYTES:
            return DataError(
                f"{job.uri}: the probabilities of {num_kept} classes at {height}x{width} px (height x width) take "
                f"{size / 1e9:.1f} GB, more than {_MOST_BYTES / 1e9:.1f}; cut it into parts, or predict it "
                "without --save probabilities"
            )
        return replace(job, sha256=hashlib.sha256(data).hexdigest()), image

    def readable() -> Iterator[tuple[_Job, np.ndarray]]:
        for one in ahead(pool, load, jobs, _AHEAD):
            if isinstance(one, DataError):
                failed.append(str(one))
                advance(1)
            else:
                yield one

    with ThreadPoolExecutor(4, "decode") as pool:
        for shape, run in groupby(readable(), lambda pair: pair[1].shape):
            num_pixels = shape[0] * shape[1]
            most = max(1, min(batch_size, _BATCH_PIXELS // num_pixels))
            if num_kept:
                most = max(1, min(most, _KEPT_BYTES // (2 * num_kept * num_pixels)))
            while batch := list(islice(run, most)):
                yield [job for job, _ in batch], [image for _, image in batch]


def _classify(trained: Trained, images: list[np.ndarray], keep: torch.Tensor | None = None) -> np.ndarray:
    """uint8 (B, H, W) classes of uint8 (H, W, 3) images of one size; `keep` (B, K, H, W) takes the probabilities."""
    cfg, size = trained.cfg, images[0].shape[:2]
    small = model_size(cfg.data.image_size, *size)
    seen = torch.stack([resize_image(torch.from_numpy(image).permute(2, 0, 1), small) for image in images])
    how = inference_settings(cfg.eval, cfg.data.crop_size)
    pred, _ = segment(trained.model, seen, size, how, cfg.eval.batch_size, keep=keep)
    return pred.cpu().numpy()


def _drawn(kind: str, image: np.ndarray, classes: np.ndarray, labels: Labels, stamp: Stamp) -> bytes:
    if kind == "overlay":
        return figures.png(figures.overlay(image, classes, labels))
    mask = figures.index_mask(classes, labels)
    return outputs.stamped(mask, stamp) if kind == "mask" else figures.png(mask.convert("RGB"))


def _packed(probabilities: np.ndarray, names: list[str]) -> bytes:
    """An npz file. Deflated lightly: most probabilities are near 0 or 1, and the default level takes five times as long."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in (("probabilities", probabilities), ("names", np.array(names))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return out.getvalue()


class _Writer:
    """Files on their way out, those of a few images at a time; the first that cannot be written stops the work."""

    def __init__(self) -> None:
        self.done: dict[str, list[float]] = {}  # by URI of the image: its shares, once all its files are written

    def __enter__(self) -> _Writer:
        self._pool = ThreadPoolExecutor(4, "write")
        self._pending: list[tuple[int, Future[None]]] = []  # bytes of each
        return self

    def put(self, image: str, scores: list[float], files: list[tuple[str, bytes]]) -> None:
        """The files of one image, (URI, bytes), which are written one after the other."""
        num_bytes = sum(len(data) for _, data in files)
        most = max(_BEHIND_BYTES, num_bytes)
        while len(self._pending) >= _BEHIND or sum(size for size, _ in self._pending) + num_bytes > most:
            self._pending.pop(0)[1].result()
        self._pending.append((num_bytes, self._pool.submit(self._write, image, scores, files)))

    def _write(self, image: str, scores: list[float], files: list[tuple[str, bytes]]) -> None:
        for uri, data in files:
            storage.write(uri, data)
        self.done[image] = scores

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True)
        if error[0] is None:
            for _, one in self._pending:
                one.result()


def read_image(uri: str, max_megapixels: int) -> np.ndarray:
    """uint8 (H, W, 3) pixels, upright. Raises DataError when they cannot be read, or are too many."""
    return _decoded(storage.read(uri), uri, max_megapixels)


def _decoded(data: bytes, uri: str, max_megapixels: int) -> np.ndarray:
    Image.MAX_IMAGE_PIXELS = None  # our own limit, with a remedy, stands before the decode
    with open_picture(data, uri, max_megapixels * 10**6) as opened:
        check_range(opened, uri)
        return np.array(ImageOps.exif_transpose(opened).convert("RGB"))
