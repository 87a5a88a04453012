"""Predictions as files: class-index masks, colour masks, overlays, probabilities, and tables of class shares.

Files are written in the background. If a prediction was interrupted, the next call reuses the results that are already there,
as long as the images, the model and the inference settings are unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from segdist import console, storage
from segdist.data.labels import Labels
from segdist.errors import MissingError, StorageError, UserError
from segdist.evaluation import figures
from segdist.evaluation.inference import inference_settings
from segdist.predict import batches, inputs, outputs
from segdist.predict.batches import Job
from segdist.predict.outputs import Existing, Stamp, canonical, class_shares
from segdist.runs import checkpoints
from segdist.runs.restore import Trained

SUFFIXES = {  # kind of output -> what its file name adds to NAME, for NAME.jpg
    "mask": ".png", "color": "_color.png", "overlay": "_overlay.png", "probabilities": "_probabilities.npz",
}  # fmt: skip
SETTINGS = "predictions.json"  # in OUT: the model and the inference settings
_WRITING = 16  # images whose files may be queued for writing
_WRITING_BYTES = 1 << 28  # of queued files


def predict_files(
    trained: Trained,
    images: Sequence[str],
    out: str,
    max_megapixels: int = 200,
    kinds: Sequence[str] = ("mask", "overlay"),
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Predict images and write OUT/NAME.png (class-index mask) and the other `kinds` of output (see SUFFIXES).

    `images` are URIs of files, of folders (all images in them), or patterns with *, ? and **. Images of folders keep their
    relative paths; see `inputs.output_stems` for name clashes. Existing results are skipped unless `overwrite`; a changed
    image is predicted again. OUT/shares.csv holds each image's class shares, including those of earlier calls, and
    OUT/shares.jsonl the same as one JSON object per line. Both are also written if the prediction is interrupted.
    Probabilities are a numpy npz file with `probabilities`, float16 (K, H, W), and `names` (K,).

    Raises UserError before the first image if something would be overwritten: the mask of another image, an image itself, or
    the predictions of another model. Images that are unreadable, larger than `max_megapixels`, or too large for probabilities
    do not stop the others; a UserError lists them at the end.
    """
    jobs = _plan(images, out, kinds)
    storage.check_writable(out)
    settings = _settings(trained)
    digest, existing_files = hashlib.sha256(settings).hexdigest(), {entry.name for entry in storage.walk(out)}
    same_settings = _check_settings(out, settings, overwrite)
    earlier = outputs.read_rows(out, existing_files, list(SUFFIXES)) if same_settings else {}
    existing = {} if overwrite else _existing(jobs, out, existing_files, digest, trained.labels)
    storage.write(storage.join(out, SETTINGS), settings)
    complete = [job for job in jobs if job.uri in existing and existing_files.issuperset(job.names.values())]
    done = {job.uri: existing[job.uri].shares for job in complete if {*job.names} <= {*existing[job.uri].kinds}}
    if done:
        console.say(f"{len(done)} of {len(jobs)} images already have results. Use --overwrite to predict them again.")
    todo, writer = [job for job in jobs if job.uri not in done], _Writer()
    failed: list[str] = []

    def write_tables() -> list[dict[str, Any]]:
        records = _records(jobs, done | writer.done, out, trained.labels)
        outputs.write_tables(out, _merged(earlier, records), trained.labels)
        return list(records.values())

    progress, advance = console.bar("predicting", len(jobs), len(done))
    try:
        with progress, writer:
            _predict(trained, todo, existing, digest, out, max_megapixels, writer, failed, advance)
    except BaseException as error:
        with contextlib.suppress(StorageError):  # storage may be what failed
            write_tables()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            num = len(done) + len(writer.done)
            console.say(f"stopped: {num} of {len(jobs)} images are in {out}. Run the same command to continue.")
        raise
    records = write_tables()
    if failed:
        raise UserError(
            "\n".join(
                [
                    *failed,
                    f"{len(failed)} of {len(jobs)} images could not be read. The results of the others are in {out}.",
                ]
            )
        )
    return records


def _predict(
    trained: Trained,
    jobs: list[Job],
    existing: dict[str, Existing],
    digest: str,
    out: str,
    max_megapixels: int,
    writer: _Writer,
    failed: list[str],
    advance: Callable[[int], None],
) -> None:
    """Predict all jobs and queue their files for writing. Unreadable images go to `failed`. `digest`: of the settings."""
    num_kept = trained.labels.num_classes if any("probabilities" in job.names for job in jobs) else 0
    batch_size = trained.cfg.eval.batch_size
    for batch, pixels in batches.batches(jobs, batch_size, max_megapixels, num_kept, failed, advance):
        kept = torch.empty(len(batch), num_kept, *pixels[0].shape[:2], dtype=torch.float16) if num_kept else None
        for i, (job, image, classes) in enumerate(zip(batch, pixels, batches.classify_batch(trained, pixels, kept))):
            earlier = existing[job.uri].kinds if job.uri in existing else ()  # outputs of the same prediction
            kinds = tuple(kind for kind in SUFFIXES if kind in {*job.names, *earlier})
            name = PurePosixPath(storage.redacted(job.uri)).name
            stamp = Stamp(name, outputs.uri_digest(job.uri), job.sha256, job.tag, digest, kinds)
            files = []
            for kind, name in job.names.items():
                if kind == "probabilities":
                    assert kept is not None
                    data = _npz(kept[i].numpy(), trained.labels.names)
                else:
                    data = _image_file(kind, image, classes, trained.labels, stamp)
                files.append((storage.join(out, name), data))
            writer.put(job.uri, class_shares(classes, trained.labels), files[::-1])  # the mask last
            advance(1)


def _records(jobs: list[Job], done: dict[str, list[float]], out: str, labels: Labels) -> dict[str, dict[str, Any]]:
    """Return the table rows of finished images by the name of their mask. `done`: {URI: class shares}."""
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
    """Return the rows of earlier calls and of this one, with one row per image even if its results were renamed."""
    images = {row["image"] for row in now.values()}
    return list(({k: row for k, row in earlier.items() if k in now or row["image"] not in images} | now).values())


def _plan(images: Sequence[str], out: str, kinds: Sequence[str]) -> list[Job]:
    """Return the images and the names of their outputs. Raises UserError if two outputs, or an output and an image, clash."""
    suffixes = {kind: SUFFIXES[kind] for kind in SUFFIXES if kind in {"mask", *kinds}}
    found = inputs.find_images(images, out)
    stems = inputs.output_stems(found, list(suffixes.values()))
    jobs = [Job(one.uri, {kind: stems[one.uri] + end for kind, end in suffixes.items()}, one.tag) for one in found]
    owners = {
        canonical(job.uri): "" for job in jobs
    }  # of each file: the image whose output it is; "" for an input image
    for job in jobs:
        for target in (storage.join(out, name) for name in job.names.values()):
            if other := owners.get(canonical(target)):
                raise UserError(
                    f"{target} would be the result of both {other} and {storage.redacted(job.uri)}. Predict them "
                    "separately, into two folders"
                )
            if other is not None:
                raise UserError(f"{target} is an input image and would be overwritten. Choose another --out")
            owners[canonical(target)] = storage.redacted(job.uri)
    return jobs


def _settings(trained: Trained) -> bytes:
    """Return the content of OUT's predictions.json: the model and the inference settings."""
    settings = inference_settings(trained.cfg.eval, trained.cfg.data.crop_size)
    tree = {
        "checkpoint": trained.uri,
        "checkpoint_digest": trained.digest or checkpoints.digest(trained.uri),
        "weights": trained.weights,
        "image_size": trained.cfg.data.image_size,
        **asdict(settings),
    }
    return json.dumps(tree, indent=1).encode()


def _check_settings(out: str, settings: bytes, overwrite: bool) -> bool:
    """Return whether OUT holds predictions with the same model and settings.

    Raises UserError if it holds predictions with others, unless `overwrite`.
    """
    try:
        before = json.loads(storage.read(storage.join(out, SETTINGS)))
    except MissingError:
        return False
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        before = {}
    if before == json.loads(settings):
        return True
    if not overwrite:
        checkpoint = before.get("checkpoint", "an unknown checkpoint")
        raise UserError(
            f"{out} holds predictions of {checkpoint} or with other settings. Choose another --out, or use --overwrite"
        )
    return False


def _existing(jobs: list[Job], out: str, existing_files: set[str], digest: str, labels: Labels) -> dict[str, Existing]:
    """Return usable existing results by image URI. Raises UserError if a mask belongs to another image."""
    held = [job for job in jobs if job.names["mask"] in existing_files]

    def read(job: Job) -> Existing | None:
        return outputs.read_existing(storage.join(out, job.names["mask"]), job.uri, job.tag, digest, labels)

    with ThreadPoolExecutor(_WRITING, "read") as pool:
        return {job.uri: one for job, one in zip(held, pool.map(read, held)) if one is not None}


def _image_file(kind: str, image: np.ndarray, classes: np.ndarray, labels: Labels, stamp: Stamp) -> bytes:
    """Return the PNG of a mask, colour mask or overlay."""
    if kind == "overlay":
        return figures.png(figures.overlay(image, classes, labels))
    mask = figures.index_mask(classes, labels)
    return outputs.encode_mask(mask, stamp) if kind == "mask" else figures.png(mask.convert("RGB"))


def _npz(probabilities: np.ndarray, names: list[str]) -> bytes:
    """Return an npz file, at the lightest compression: most values are near 0 or 1, and the default takes five times longer."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in (("probabilities", probabilities), ("names", np.array(names))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return out.getvalue()


class _Writer:
    """Writes the files of a few images at a time in the background. The first failed write is raised and stops the work."""

    def __init__(self) -> None:
        self.done: dict[str, list[float]] = {}  # image URI -> class shares, once all its files are written

    def __enter__(self) -> _Writer:
        self._pool = ThreadPoolExecutor(4, "write")
        self._pending: list[tuple[int, Future[None]]] = []  # (bytes, write)
        return self

    def put(self, image: str, shares: list[float], files: list[tuple[str, bytes]]) -> None:
        """Queue the files (URI, bytes) of one image, which are written one after the other. Waits if the queue is full."""
        num_bytes = sum(len(data) for _, data in files)
        most = max(_WRITING_BYTES, num_bytes)
        while len(self._pending) >= _WRITING or sum(size for size, _ in self._pending) + num_bytes > most:
            self._pending.pop(0)[1].result()
        self._pending.append((num_bytes, self._pool.submit(self._write, image, shares, files)))

    def _write(self, image: str, shares: list[float], files: list[tuple[str, bytes]]) -> None:
        for uri, data in files:
            storage.write(uri, data)
        self.done[image] = shares

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True)
        if error[0] is None:
            for _, write in self._pending:
                write.result()
