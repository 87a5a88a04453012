"""A run before it begins: what it needs around it, and a rehearsal of two steps through every part of it."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch

from segdist import config, console, storage
from segdist.config import Config
from segdist.data import index as indices
from segdist.data.augment import model_size
from segdist.data.health import Finding, attempt, ok
from segdist.data.index import Index
from segdist.distributed import World, choose_device
from segdist.errors import StorageError, UserError
from segdist.launch import ray_cluster
from segdist.publish.hub import Repo
from segdist.publish.push import check_held
from segdist.runs import checkpoints
from segdist.train.loop import fit
from segdist.train.setup import look, settle

GIB = 1 << 30
WHOLE_PIXELS = 8 << 20  # 2900 x 2900 px; a larger image is seldom meant to be seen at once


def examine(cfg: Config) -> list[Finding]:
    """All findings of a run but for those of its data set. Leaves nothing behind at run.uri."""
    findings = [attempt("config", lambda: _looked(cfg)), *storage_of(cfg.run.uri), _device(cfg), *_machine(cfg)]
    if cfg.hub.repo_id is not None:
        findings.append(attempt("hub", lambda: _mirrored(Repo(cfg.hub.repo_id or ""), cfg)))
    if any(f.severity == "error" for f in findings):
        return findings
    findings += _sizes(cfg, indices.load(cfg.data.uri))
    try:
        text, num_bytes = _rehearse(cfg)
    except UserError as error:
        return [*findings, Finding("error", "rehearsal", str(error))]
    return [*findings, ok("rehearsal", text), *_disk(cfg, num_bytes)]


def _looked(cfg: Config) -> str:
    """What `train` looks at before its first step: data, classes, groups and ranks, the run's identity, weights."""
    found = look(cfg, cfg.scale.num_ranks)
    known = (
        "begins" if found.known is None else f"goes on from attempt {found.known['attempt']} ({found.known['state']})"
    )
    if found.cfg.train.micro_batch_size == "auto":
        groups = f"micro-batches of whatever size fits, of a batch of {cfg.train.global_batch_size},"
    else:
        groups = f"{found.cfg.train.num_groups} micro-batches"
    return f"{groups} on {cfg.scale.num_ranks} rank(s); the run {known}"


def _mirrored(repo: Repo, cfg: Config) -> str:
    """Whether the Hub would take the run's model."""
    there = repo.check()
    if there and not cfg.hub.overwrite:
        check_held(repo, cfg.run.uri)
    return f"{repo.repo_id}: your token may write there; " + ("it exists" if there else "it will be created")


def _sizes(cfg: Config, index: Index) -> list[Finding]:
    """Whether crops fit the images, and whether the largest image can be looked at whole."""
    findings = []
    largest = model_size(cfg.data.image_size, *index.split(cfg.data.train_split).largest)
    reach = tuple(int(side * cfg.data.scale_range[1]) for side in largest)
    if reach[0] < cfg.data.crop_size[0] or reach[1] < cfg.data.crop_size[1]:
        text = (
            f"crops of {_by(cfg.data.crop_size)} px (height x width), but the largest image is {_by(reach)} px even at its "
            "largest scale"
        )
        findings.append(
            Finding("warning", "crop", text, "lower data.crop_size: what lies beyond is padding, and costs as much")
        )
    height, width = model_size(cfg.data.image_size, *index.split(cfg.data.val_split).largest)
    if cfg.eval.mode == "whole" and height * width > WHOLE_PIXELS:
        text = f"the largest image of {cfg.data.val_split} is {height}x{width} px (height x width), looked at whole"
        findings.append(Finding("warning", "evaluation", text, "eval.mode=sliding bounds its memory"))
    return findings


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def storage_of(uri: str) -> list[Finding]:
    """Whether a place can be written, read, listed and deleted, and whether of two writers only one wins."""
    probe = storage.join(uri, f".doctor-{uuid.uuid4().hex[:12]}")
    findings = []
    try:
        findings.append(attempt("storage", lambda: _written(uri, probe)))
        if findings[0].severity == "ok":
            findings.append(_conditional(uri, probe))
    finally:
        try:
            storage.delete(probe)
        except StorageError as error:
            findings.append(
                Finding("warning", "storage", str(error), "old checkpoints could not be removed: allow deletion")
            )
    return findings


def _written(uri: str, probe: str) -> str:
    data, name = os.urandom(4096), "bytes"
    storage.write(storage.join(probe, name), data)
    if storage.read(storage.join(probe, name)) != data:
        raise StorageError(f"{uri}: gives back other bytes than were written; do not use this store")
    if storage.read_range(storage.join(probe, name), 100, 50) != data[100:150]:
        raise StorageError(f"{uri}: a ranged read gives other bytes; do not use this store")
    if storage.sizes(probe) != {name: len(data)}:
        raise StorageError(f"{uri}: what was just written is not listed; do not use this store")
    return f"{uri} can be written, read, and listed"


def _conditional(uri: str, probe: str) -> Finding:
    address = storage.join(probe, "claim")
    first, second = storage.create(address, b"first"), storage.create(address, b"second")
    if first and not second and storage.read(address) == b"first":
        return ok("storage", "conditional writes are honoured: of two attempts at a run one wins")
    return Finding(
        "error",
        "storage",
        f"{uri}: the store ignores If-None-Match: a second writer replaced the first one's claim",
        "two attempts could take one run: use another store or a newer version of it, or start no run twice",
    )


def _device(cfg: Config) -> Finding:
    scale, topic = cfg.scale, "device"
    if scale.launcher == "ray":
        return _room(cfg)
    try:
        device = choose_device(scale.device)
    except UserError as error:
        return Finding("error", topic, str(error))
    if device.type == "cpu":
        text = f"CPU, {scale.cpu_threads or torch.get_num_threads()} thread(s)"
        if cfg.train.precision in ("bf16", "fp16"):
            return Finding("note", topic, text, f"train.precision={cfg.train.precision} is slow on CPUs that lack it")
        return ok(topic, text)
    properties = torch.cuda.get_device_properties(device)
    text = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB; {torch.cuda.device_count()} such"
    if cfg.train.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding("warning", topic, f"{text}; it has no bf16", "use train.precision=fp16, or auto")
    if not torch.distributed.is_nccl_available():
        return Finding("warning", topic, f"{text}; PyTorch has no NCCL", "several ranks need it: install a CUDA build")
    return ok(topic, text)


def _room(cfg: Config) -> Finding:
    """Whether Ray can hold the ranks, where it would be started on this machine; of another cluster the launcher asks."""
    if address := os.environ.get("RAY_ADDRESS"):
        return ok(
            "device",
            f"the cluster at {address} gives {cfg.scale.num_ranks} rank(s) their devices; `train` asks it first",
        )
    resources = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
    need = ray_cluster.needs(cfg.scale, resources["GPU"])
    lacking = ray_cluster.shortage(cfg.scale, need, [{"NodeManagerAddress": "this machine", "Resources": resources}])
    return (
        Finding("error", "device", lacking)
        if lacking
        else ok("device", f"this machine has room for {cfg.scale.num_ranks} rank(s)")
    )


def _machine(cfg: Config) -> list[Finding]:
    """Shared memory, which Ray and NCCL use, and threads."""
    findings = []
    shm = Path("/dev/shm")
    if cfg.scale.launcher == "ray" and shm.is_dir() and not os.environ.get("RAY_ADDRESS"):
        free = shutil.disk_usage(shm).free
        text = f"/dev/shm has {free / GIB:.1f} GiB free"
        remedy = "Ray and NCCL want it: docker run --shm-size=2g, or an emptyDir of medium Memory at /dev/shm"
        findings.append(ok("shared memory", text) if free >= GIB else Finding("warning", "shared memory", text, remedy))
    cores, threads = len(os.sched_getaffinity(0)), cfg.io.loader_threads
    if cfg.scale.launcher == "local" and threads > 2 * cores:
        text = f"io.loader_threads={threads} on {cores} core(s)"
        findings.append(Finding("note", "threads", text, f"io.loader_threads={cores} decodes as fast"))
    return findings


def _rehearse(cfg: Config) -> tuple[str, int]:
    """Two steps of a micro-batch through model, loss, update, commit, restore and scores; in words, and a checkpoint's bytes.

    It is `fit` itself that runs, in a temporary folder of this machine, stopped after one step and begun again.
    """
    found, device = look(cfg, cfg.scale.num_ranks), choose_device(cfg.scale.device)
    with console.quiet():
        cfg = settle(found.cfg, found.index, World(0, cfg.scale.num_ranks, device))
    tree, micro = config.to_tree(cfg), cfg.train.group_size
    with tempfile.TemporaryDirectory(prefix="segdist-doctor-") as folder:
        tree["run"]["uri"] = folder
        tree["train"] |= {"num_steps": 2, "global_batch_size": micro, "strategy": "ddp", "zero_offload": False}
        tree["optim"] |= {"warmup_steps": 0, "freeze_encoder_steps": 0}  # all of it learns: that takes most memory
        tree["eval"] |= {"every_steps": 2, "num_samples": 2, "batch_size": 1}
        tree["scale"] |= {"launcher": "local", "num_ranks": 1, "gpus_per_rank": None}
        small = config.from_tree(tree, "the rehearsal")
        world = World(0, 1, device)
        with console.quiet():
            fit(small, world, notice=lambda: "stop")
            summary = fit(small, world)
            newest = checkpoints.newest(folder, console.say)
        if summary["step"] != 2 or newest is None or checkpoints.step_of(newest) != 2:
            raise UserError(f"the rehearsal ended at step {summary['step']} instead of 2; please report this")
        num_bytes = sum(storage.sizes(newest).values())
    return f"two steps of {micro} images: committed after one, restored, ended, and scored", num_bytes


def _disk(cfg: Config, checkpoint_bytes: int) -> list[Finding]:
    """Room for checkpoints, where the run is on a disk of this machine."""
    if not storage.is_local(cfg.run.uri):
        return []
    kept = cfg.checkpoint.keep_last + 2  # the best one, and the one under way
    free = shutil.disk_usage(_existing(storage.local_path(cfg.run.uri))).free
    text = f"{free / GIB:.1f} GiB free; {kept} checkpoints of {checkpoint_bytes / GIB:.2f} GiB may lie there"
    if free > 1.2 * kept * checkpoint_bytes:
        return [ok("disk", text)]
    return [Finding("error", "disk", text, "make room, lower checkpoint.keep_last, or give another run.uri")]


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return path if path.exists() else _existing(path.parent)
