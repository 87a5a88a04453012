"""Classes for images that have no mask: index masks, colour masks, overlays, probabilities, and shares of classes as tables.

Images are decoded ahead in threads, those of one size share a forward pass, and files are written behind. What an
interrupted prediction has written is found again, as long as the images, the model and how it looks at them are the same.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from segdist import checkpoint, figures, log, predictions, storage
from segdist.data.augment import model_size, resize_image
from segdist.data.importers.files import IMAGE_SUFFIXES, check_range, open_picture
from segdist.data.labels import Labels
from segdist.errors import DataError, MissingError, UserError
from segdist.inference import recipe, segment
from segdist.predictions import Known, Stamp, place, shares
from segdist.threads import ahead
from segdist.trained import Trained

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

    `images` are URIs of files, of folders whose images are all meant, or patterns with * and ?. Files of folders keep
    their place below them. Images whose results are there already are passed over, unless `overwrite`; one that has
    changed since is predicted anew. OUT/shares.csv has the share of each class in each image, those of earlier calls
    included, and OUT/shares.jsonl the same, one JSON object per line. Probabilities are an npz file that numpy reads:
    `probabilities`, float16 (K, H, W), and `names` (K,).

    Raises UserError before the first image when something would be overwritten: another image's mask, an image itself, or
    what another model predicted. An image that cannot be read, or is larger than `max_megapixels` or than probabilities can
    be of, does not stop the others: UserError names such images at the end.
    """
    jobs = _jobs(images, out, kinds)
    storage.check_writable(out)
    mark = _mark(trained)
    by, there = hashlib.sha256(mark).hexdigest(), {entry.name for entry in storage.walk(out)}
    earlier = predictions.rows(out, there, list(ENDS)) if _is_of(out, mark, overwrite) else {}
    known = {} if overwrite else _known(jobs, out, there, by, trained.labels)
    storage.write(storage.join(out, MARK), mark)
    failed: list[str] = []
    progress, advance = log.bar("predicting", len(jobs))
    with progress, _Writer() as writer:
        ready = [job for job in jobs if job.uri in known and there.issuperset(job.names.values())]
        found = {job.uri: known[job.uri].shares for job in ready if {*job.names} <= {*known[job.uri].kinds}}
        todo = [job for job in jobs if job.uri not in found]
        advance(len(found))
        if found:
            log.say(f"{len(found)} of {len(jobs)} images have their results already; --overwrite makes them anew")
        num_kept = trained.labels.num_classes if "probabilities" in kinds else 0
        for batch, pixels in _batches(todo, trained.cfg.eval.batch_size, max_megapixels, num_kept, failed, advance):
            kept = torch.empty(len(batch), num_kept, *pixels[0].shape[:2], dtype=torch.float16) if num_kept else None
            for i, (job, image, classes) in enumerate(zip(batch, pixels, _classify(trained, pixels, kept))):
                found[job.uri] = shares(classes, trained.labels)
                others = known[job.uri].kinds if job.uri in known else ()  # which this prediction would repeat
                kinds_of = tuple(kind for kind in ENDS if kind in {*job.names, *others})
                stamp = Stamp(
                    PurePosixPath(storage.shown(job.uri)).name,
                    predictions.digest(job.uri),
                    job.sha256,
                    job.tag,
                    by,
                    kinds_of,
                )
                files = []
                for kind, name in job.names.items():
                    if kind == "probabilities":
                        assert kept is not None
                        data = _packed(kept[i].numpy(), trained.labels.names)
                    else:
                        data = _drawn(kind, image, classes, trained.labels, stamp)
                    files.append((storage.join(out, name), data))
                writer.put(files[::-1])  # the mask last
                advance(1)
    done = [job for job in jobs if job.uri in found]
    records = [
        {
            "image": job.uri,
            **{kind: storage.join(out, name) for kind, name in job.names.items()},
            "shares": dict(zip(trained.labels.names, found[job.uri])),
        }
        for job in done
    ]
    merged = earlier | {job.names["mask"]: row for job, row in zip(done, records)}
    predictions.put_tables(out, list(merged.values()), trained.labels)
    if failed:
        raise UserError(
            "\n".join([*failed, f"{len(failed)} of {len(jobs)} images could not be read; the others are in {out}"])
        )
    return records


def _jobs(images: Sequence[str], out: str, kinds: Sequence[str]) -> list[_Job]:
    """What goes where. Raises UserError when two results, or a result and an image, would be one file."""
    wanted = [kind for kind in ENDS if kind in {"mask", *kinds}]
    found = {
        uri: (name, tag) for given in images for uri, name, tag in _images(given) if not _is_result(uri, given, out)
    }
    jobs = [
        _Job(uri, {kind: str(PurePosixPath(name).with_suffix("")) + ENDS[kind] for kind in wanted}, tag)
        for uri, (name, tag) in found.items()
    ]
    taken = {place(job.uri): "" for job in jobs}
    for job in jobs:
        for target in (storage.join(out, name) for name in job.names.values()):
            if other := taken.get(place(target)):
                raise UserError(
                    f"the results for {other} and for {job.uri} would both be {target}; give images of different names"
                )
            if other is not None:
                raise UserError(f"{target} would overwrite that image; give another --out")
            taken[place(target)] = job.uri
    return jobs


def _images(uri: str) -> list[tuple[str, str, str | None]]:
    """(URI, name below OUT, tag) of the image, of those of the folder, or of those that match. Raises UserError without any.

    A tag comes of a listing that is made anyway, never of a request for each image.
    """
    if any(sign in PurePosixPath(uri).name for sign in "*?[") and not storage.exists(uri):
        folder, _, pattern = uri.rpartition("/")
        found = _pictures(folder or ".", pattern)
        if not found:
            raise UserError(f"{uri}: no image matches")
        return found
    if found := _pictures(uri, "*"):
        return found
    if not storage.exists(uri):
        raise UserError(f"{uri}: no such image or folder")
    if storage.is_local(uri) and Path(uri.removeprefix("file://")).is_dir():
        raise UserError(f"{uri}: this folder holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [(uri, PurePosixPath(uri).name, None)]


def _pictures(folder: str, pattern: str) -> list[tuple[str, str, str | None]]:
    return [
        (storage.join(folder, e.name), e.name, e.tag)
        for e in storage.walk(folder)
        if fnmatch.fnmatchcase(e.name, pattern) and PurePosixPath(e.name).suffix.lower() in IMAGE_SUFFIXES
    ]


def _is_result(uri: str, given: str, out: str) -> bool:
    """Whether an image of a given folder is a prediction: OUT lies within that folder, and the image within OUT."""
    folder = given.rpartition("/")[0] if any(sign in given for sign in "*?[") else given
    return place(out).startswith(f"{place(folder)}/") and place(uri).startswith(f"{place(out)}/")


def _mark(trained: Trained) -> bytes:
    """What predicts, and how it looks at images."""
    how = recipe(trained.cfg.eval, trained.cfg.data.crop_size)
    now = {
        "checkpoint": trained.uri,
        "checkpoint_digest": checkpoint.digest(trained.uri),
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
        return predictions.known(storage.join(out, job.names["mask"]), job.uri, job.tag, by, labels)

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
                f"{job.uri}: the probabilities of {num_kept} classes at {width}x{height} px take {size / 1e9:.1f} GB, more "
                f"than {_MOST_BYTES / 1e9:.1f}; cut it into parts, or predict it without --save probabilities"
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
    how = recipe(cfg.eval, cfg.data.crop_size)
    pred, _ = segment(trained.model, seen, size, how, cfg.eval.batch_size, keep=keep)
    return pred.cpu().numpy()


def _drawn(kind: str, image: np.ndarray, classes: np.ndarray, labels: Labels, stamp: Stamp) -> bytes:
    if kind == "overlay":
        return figures.png(figures.overlay(image, classes, labels))
    mask = figures.index_mask(classes, labels)
    return predictions.stamped(mask, stamp) if kind == "mask" else figures.png(mask.convert("RGB"))


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

    def __enter__(self) -> _Writer:
        self._pool = ThreadPoolExecutor(4, "write")
        self._pending: list[tuple[int, Future[None]]] = []  # bytes of each
        return self

    def put(self, files: list[tuple[str, bytes]]) -> None:
        """The files of one image, (URI, bytes), which are written one after the other."""
        num_bytes = sum(len(data) for _, data in files)
        most = max(_BEHIND_BYTES, num_bytes)
        while len(self._pending) >= _BEHIND or sum(size for size, _ in self._pending) + num_bytes > most:
            self._pending.pop(0)[1].result()
        self._pending.append((num_bytes, self._pool.submit(self._write, files)))

    @staticmethod
    def _write(files: list[tuple[str, bytes]]) -> None:
        for uri, data in files:
            storage.write(uri, data)

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
