"""Classes for images that have no mask: index masks, colour masks, overlays, probabilities, and shares of classes as tables.

Images are decoded ahead in threads, those of one size share a forward pass, and files are written behind. What an
interrupted prediction has written is found again, as long as the model and how it looks at images are the same.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from segdist import checkpoint, figures, log, storage
from segdist.data.augment import model_size, resize_image
from segdist.data.importers.files import IMAGE_SUFFIXES, check_range, open_picture
from segdist.data.labels import Labels
from segdist.errors import DataError, MissingError, UserError
from segdist.inference import recipe, segment
from segdist.threads import ahead
from segdist.trained import Trained

ENDS = {  # of what is written for NAME.jpg
    "mask": ".png", "color": "_color.png", "overlay": "_overlay.png", "probabilities": "_probabilities.npz",
}  # fmt: skip
MARK, SHARES, LINES = "predictions.json", "shares.csv", "shares.jsonl"
_AHEAD = 4  # images decoded before their turn
_BATCH_PIXELS = 1 << 24  # in a batch, where it holds more than one image
_BEHIND = 16  # files on their way out
_BEHIND_BYTES = 1 << 28  # of theirs, together
_KEPT_BYTES = 1 << 28  # of probabilities of a batch, where it holds more than one image
_MOST_BYTES = 1 << 31  # of probabilities of an image


@dataclass(frozen=True)
class _Job:
    uri: str
    names: dict[str, str]  # kind -> its place below OUT


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
    their place below them. Images whose results are there already are passed over, unless `overwrite`. OUT/shares.csv has
    the share of each class in each image, and OUT/shares.jsonl the same, one JSON object per line. Probabilities are an npz
    file that numpy reads: `probabilities`, float16 (K, H, W), and `names` (K,).

    Raises UserError before the first image when something would be overwritten: another image's mask, an image itself, or
    what another model predicted. An image that cannot be read, or is larger than `max_megapixels` or than probabilities can
    be of, does not stop the others: UserError names such images at the end.
    """
    jobs = _jobs(images, out, kinds)
    storage.check_writable(out)
    done_before = _begin(trained, out, overwrite)
    failed: list[str] = []
    progress, advance = log.bar("predicting", len(jobs))
    with progress, _Writer() as writer:
        ready = [job for job in jobs if done_before.issuperset(job.names.values())]
        with ThreadPoolExecutor(_BEHIND, "read") as pool:
            known = pool.map(lambda job: _shares_of(job, out, trained.labels), ready)
            found = {job.uri: of for job, of in zip(ready, known) if of is not None}
        todo = [job for job in jobs if job.uri not in found]
        advance(len(found))
        if found:
            log.say(f"{len(found)} of {len(jobs)} images have their results already; --overwrite makes them anew")
        num_kept = trained.labels.num_classes if "probabilities" in kinds else 0
        for batch, pixels in _batches(todo, trained.cfg.eval.batch_size, max_megapixels, num_kept, failed, advance):
            kept = torch.empty(len(batch), num_kept, *pixels[0].shape[:2], dtype=torch.float16) if num_kept else None
            for i, (job, image, classes) in enumerate(zip(batch, pixels, _classify(trained, pixels, kept))):
                found[job.uri] = shares(classes, trained.labels)
                for kind, name in job.names.items():
                    if kind == "probabilities":
                        assert kept is not None
                        data = _packed(kept[i].numpy(), trained.labels.names)
                    else:
                        data = _drawn(kind, image, classes, trained.labels)
                    writer.put(storage.join(out, name), data)
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
    storage.write(storage.join(out, SHARES), _table(done, found, trained.labels).encode())
    storage.write(storage.join(out, LINES), "".join(f"{json.dumps(one)}\n" for one in records).encode())
    if failed:
        raise UserError(
            "\n".join([*failed, f"{len(failed)} of {len(jobs)} images could not be read; the others are in {out}"])
        )
    return records


def _jobs(images: Sequence[str], out: str, kinds: Sequence[str]) -> list[_Job]:
    """What goes where. Raises UserError when two results, or a result and an image, would be one file."""
    wanted = [kind for kind in ENDS if kind in {"mask", *kinds}]
    found = {uri: name for given in images for uri, name in _images(given) if not _is_result(uri, given, out)}
    jobs = [
        _Job(uri, {kind: str(PurePosixPath(name).with_suffix("")) + ENDS[kind] for kind in wanted})
        for uri, name in found.items()
    ]
    taken = {_place(job.uri): "" for job in jobs}
    for job in jobs:
        for target in (storage.join(out, name) for name in job.names.values()):
            if other := taken.get(_place(target)):
                raise UserError(
                    f"the results for {other} and for {job.uri} would both be {target}; give images of different names"
                )
            if other is not None:
                raise UserError(f"{target} would overwrite that image; give another --out")
            taken[_place(target)] = job.uri
    return jobs


def _images(uri: str) -> list[tuple[str, str]]:
    """(URI, name below OUT) of the image, of those of the folder, or of those that match. Raises UserError without any."""
    if any(sign in PurePosixPath(uri).name for sign in "*?[") and not storage.exists(uri):
        folder, _, pattern = uri.rpartition("/")
        names = [e.name for e in storage.walk(folder or ".") if fnmatch.fnmatchcase(e.name, pattern)]
        names = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
        if not names:
            raise UserError(f"{uri}: no image matches")
        return [(storage.join(folder or ".", name), name) for name in names]
    found = [e.name for e in storage.walk(uri) if PurePosixPath(e.name).suffix.lower() in IMAGE_SUFFIXES]
    if found:
        return [(storage.join(uri, name), name) for name in found]
    if not storage.exists(uri):
        raise UserError(f"{uri}: no such image or folder")
    if storage.is_local(uri) and Path(uri.removeprefix("file://")).is_dir():
        raise UserError(f"{uri}: this folder holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [(uri, PurePosixPath(uri).name)]


def _is_result(uri: str, given: str, out: str) -> bool:
    """Whether an image of a given folder is a prediction: OUT lies within that folder, and the image within OUT."""
    folder = given.rpartition("/")[0] if any(sign in given for sign in "*?[") else given
    return _place(out).startswith(f"{_place(folder)}/") and _place(uri).startswith(f"{_place(out)}/")


def _place(uri: str) -> str:
    """What two URIs of one file have in common."""
    return str(Path(uri.removeprefix("file://")).expanduser().resolve()) if storage.is_local(uri) else uri


def _begin(trained: Trained, out: str, overwrite: bool) -> set[str]:
    """Marks OUT with what predicts there; the files that it holds already, and that count.

    Raises UserError when another model, or the same one looking otherwise, has left its predictions there.
    """
    how = recipe(trained.cfg.eval, trained.cfg.data.crop_size)
    now = {
        "checkpoint": trained.uri,
        "checkpoint_digest": checkpoint.digest(trained.uri),
        "weights": trained.weights,
        "image_size": trained.cfg.data.image_size,
        **json.loads(json.dumps(asdict(how))),
    }
    address = storage.join(out, MARK)
    try:
        before = json.loads(storage.read(address))
    except MissingError:
        before = None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        before = {}
    if before == json.loads(json.dumps(now)):
        return set() if overwrite else {entry.name for entry in storage.walk(out)}
    if before is not None and not overwrite:
        raise UserError(
            f"{out} holds predictions of {before.get('checkpoint', 'something else')}, or made otherwise; give another "
            "--out, or --overwrite"
        )
    storage.write(address, json.dumps(now, indent=1).encode())
    return set()


def _shares_of(job: _Job, out: str, labels: Labels) -> list[float] | None:
    """The shares of classes in a mask that is there already; None where it cannot be read, and must be made anew."""
    data = storage.read(storage.join(out, job.names["mask"]))
    try:
        return shares(np.array(Image.open(io.BytesIO(data))), labels)
    except (OSError, SyntaxError, ValueError):
        return None


def _batches(
    jobs: list[_Job], batch_size: int, max_megapixels: int, num_kept: int, failed: list[str], advance: Any
) -> Iterator[tuple[list[_Job], list[np.ndarray]]]:
    """Images in order, neighbours of one size together; what cannot be read goes to `failed`.

    `num_kept`: of so many classes the probabilities will be held in memory.
    """

    def load(job: _Job) -> np.ndarray | DataError:
        try:
            image = read_image(job.uri, max_megapixels)
        except DataError as error:
            return error
        height, width = image.shape[:2]
        if (size := 2 * num_kept * height * width) > _MOST_BYTES:
            return DataError(
                f"{job.uri}: the probabilities of {num_kept} classes at {width}x{height} px take {size / 1e9:.1f} GB, more "
                f"than {_MOST_BYTES / 1e9:.1f}; cut it into parts, or predict it without --save probabilities"
            )
        return image

    def readable() -> Iterator[tuple[_Job, np.ndarray]]:
        for job, image in zip(jobs, ahead(pool, load, jobs, _AHEAD)):
            if isinstance(image, DataError):
                failed.append(str(image))
                advance(1)
            else:
                yield job, image

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


def shares(classes: np.ndarray, labels: Labels) -> list[float]:
    """The share of each class."""
    counts = np.bincount(classes.ravel(), minlength=labels.num_classes)[: labels.num_classes]
    return [float(c / classes.size) for c in counts]


def _drawn(kind: str, image: np.ndarray, classes: np.ndarray, labels: Labels) -> bytes:
    if kind == "overlay":
        return figures.png(figures.overlay(image, classes, labels))
    mask = figures.index_mask(classes, labels)
    return figures.png(mask if kind == "mask" else mask.convert("RGB"))


def _packed(probabilities: np.ndarray, names: list[str]) -> bytes:
    """An npz file. Deflated lightly: most probabilities are near 0 or 1, and the default level takes five times as long."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in (("probabilities", probabilities), ("names", np.array(names))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return out.getvalue()


def _table(jobs: list[_Job], found: dict[str, list[float]], labels: Labels) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", *labels.names])
    writer.writerows([job.uri, *(f"{share:.6f}" for share in found[job.uri])] for job in jobs)
    return out.getvalue()


class _Writer:
    """Files on their way out, a few at a time; the first that cannot be written stops the work."""

    def __enter__(self) -> _Writer:
        self._pool = ThreadPoolExecutor(4, "write")
        self._pending: list[tuple[int, Future[None]]] = []  # bytes of each
        return self

    def put(self, uri: str, data: bytes) -> None:
        most = max(_BEHIND_BYTES, len(data))
        while len(self._pending) >= _BEHIND or sum(size for size, _ in self._pending) + len(data) > most:
            self._pending.pop(0)[1].result()
        self._pending.append((len(data), self._pool.submit(storage.write, uri, data)))

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True)
        if error[0] is None:
            for _, one in self._pending:
                one.result()


def read_image(uri: str, max_megapixels: int) -> np.ndarray:
    """uint8 (H, W, 3) pixels, upright. Raises DataError when they cannot be read, or are too many."""
    Image.MAX_IMAGE_PIXELS = None  # our own limit, with a remedy, stands before the decode
    with open_picture(storage.read(uri), uri, max_megapixels * 10**6) as opened:
        check_range(opened, uri)
        return np.array(ImageOps.exif_transpose(opened).convert("RGB"))
