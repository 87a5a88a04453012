"""Check a run before it starts: its config, storage, device and disk, and rehearse two steps."""

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
from segdist.data.health import Finding, ok, run_check
from segdist.data.index import Index
from segdist.distributed import World, choose_device
from segdist.errors import StorageError, UserError
from segdist.launch import ray_cluster
from segdist.publish.hub import Repo
from segdist.publish.push import check_held
from segdist.runs import checkpoints
from segdist.train import fit
from segdist.train.setup import inspect_run, resolve_auto

GIB = 1 << 30
WHOLE_PIXELS = 8 << 20  # 2900 x 2900 px; larger images usually need sliding windows


def examine(cfg: Config) -> list[Finding]:
    """Return all findings for a run except those for its dataset. Leaves nothing behind at run.uri."""
    findings = [run_check("config", lambda: _check_run(cfg)), *storage_of(cfg.run.uri), _device(cfg), *_machine(cfg)]
    if cfg.hub.repo_id is not None:
        findings.append(run_check("hub", lambda: _check_hub(Repo(cfg.hub.repo_id or ""), cfg)))
    if any(f.severity == "error" for f in findings):
        return findings
    findings += _sizes(cfg, indices.load(cfg.data.uri))
    try:
        text, num_bytes = _rehearse(cfg)
    except UserError as error:
        return [*findings, Finding("error", "rehearsal", str(error))]
    return [*findings, ok("rehearsal", text), *_disk(cfg, num_bytes)]


def _check_run(cfg: Config) -> str:
    """Run the checks that `train` makes before its first step, and describe the run. Raises UserError."""
    found = inspect_run(cfg, cfg.scale.num_ranks)
    known = (
        "is new" if found.record is None else f"continues attempt {found.record['attempt']} ({found.record['state']})"
    )
    if found.cfg.train.micro_batch_size == "auto":
        groups = f"micro-batches of automatic size in a global batch of {cfg.train.global_batch_size},"
    else:
        groups = f"{found.cfg.train.num_micro_batches} micro-batches"
    return f"{groups} on {cfg.scale.num_ranks} rank(s). The run {known}"


def _check_hub(repo: Repo, cfg: Config) -> str:
    """Check that the run's model can be pushed to the Hub. Raises UserError."""
    there = repo.check()
    if there and not cfg.hub.overwrite:
        check_held(repo, cfg.run.uri)
    return f"{repo.repo_id}: your token has write access. The repository " + ("exists" if there else "will be created")


def _sizes(cfg: Config, index: Index) -> list[Finding]:
    """Report crops that are larger than the images, and images that are too large to process whole."""
    findings = []
    largest = model_size(cfg.data.image_size, *index.split(cfg.data.train_split).largest)
    reach = tuple(int(side * cfg.data.scale_range[1]) for side in largest)
    if reach[0] < cfg.data.crop_size[0] or reach[1] < cfg.data.crop_size[1]:
        text = (
            f"crops are {_by(cfg.data.crop_size)} px (height x width), but the largest image at the largest scale is only "
            f"{_by(reach)} px. The rest of a crop is padding, which costs as much as pixels"
        )
        findings.append(Finding("warning", "crop", text, "Lower data.crop_size"))
    height, width = model_size(cfg.data.image_size, *index.split(cfg.data.val_split).largest)
    if cfg.eval.mode == "whole" and height * width > WHOLE_PIXELS:
        text = f"the largest image of {cfg.data.val_split} is {height}x{width} px and processed whole, which needs much memory"
        findings.append(Finding("warning", "evaluation", text, "Use eval.mode=sliding"))
    return findings


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def storage_of(uri: str) -> list[Finding]:
    """Check that a URI can be written, read, listed and deleted, and that only one of two writers wins."""
    probe = storage.join(uri, f".doctor-{uuid.uuid4().hex[:12]}")
    findings = []
    try:
        findings.append(run_check("storage", lambda: _check_read_write(uri, probe)))
        if findings[0].severity == "ok":
            findings.append(_check_conditional_writes(uri, probe))
    finally:
        try:
            storage.delete(probe)
        except StorageError as error:
            findings.append(
                Finding("warning", "storage", str(error), "Allow deletion. Otherwise old checkpoints cannot be removed")
            )
    return findings


def _check_read_write(uri: str, probe: str) -> str:
    data, name = os.urandom(4096), "bytes"
    storage.write(storage.join(probe, name), data)
    if storage.read(storage.join(probe, name)) != data:
        raise StorageError(f"{uri}: returns other bytes than were written. Do not use this store")
    if storage.read_range(storage.join(probe, name), 100, 50) != data[100:150]:
        raise StorageError(f"{uri}: a ranged read returns wrong bytes. Do not use this store")
    if storage.sizes(probe) != {name: len(data)}:
        raise StorageError(f"{uri}: a file that was just written is not listed. Do not use this store")
    return f"{uri} can be written, read and listed"


def _check_conditional_writes(uri: str, probe: str) -> Finding:
    address = storage.join(probe, "claim")
    first, second = storage.create(address, b"first"), storage.create(address, b"second")
    if first and not second and storage.read(address) == b"first":
        return ok("storage", "conditional writes work, so two attempts cannot write the same run")
    return Finding(
        "error",
        "storage",
        f"{uri}: the store ignores If-None-Match. A second writer replaced a file of the first, so two attempts could "
        "write one run",
        "Use another store or a newer version of it, or never start a run twice",
    )


def _device(cfg: Config) -> Finding:
    scale, topic = cfg.scale, "device"
    if scale.launcher == "ray":
        return _check_capacity(cfg)
    try:
        device = choose_device(scale.device)
    except UserError as error:
        return Finding("error", topic, str(error))
    if device.type == "cpu":
        text = f"CPU, {scale.cpu_threads or torch.get_num_threads()} thread(s)"
        if cfg.train.precision in ("bf16", "fp16"):
            return Finding(
                "note",
                topic,
                text,
                f"train.precision={cfg.train.precision} is slow on CPUs without hardware support. Use train.precision=fp32",
            )
        return ok(topic, text)
    properties = torch.cuda.get_device_properties(device)
    text = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB; {torch.cuda.device_count()} GPU(s)"
    if cfg.train.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding("warning", topic, f"{text}. It does not support bf16", "Use train.precision=fp16 or auto")
    if not torch.distributed.is_nccl_available():
        return Finding(
            "warning",
            topic,
            f"{text}. This PyTorch build has no NCCL, which several ranks need",
            "Install a CUDA build",
        )
    return ok(topic, text)


def _check_capacity(cfg: Config) -> Finding:
    """Check that this machine has room for the ranks. For a cluster at RAY_ADDRESS, `train` checks it."""
    if address := os.environ.get("RAY_ADDRESS"):
        return ok(
            "device",
            f"{cfg.scale.num_ranks} rank(s) run on the cluster at {address}. `train` checks its resources before it starts",
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
    """Report too little shared memory, and more loader threads than the CPU can use."""
    findings = []
    shm = Path("/dev/shm")
    if cfg.scale.launcher == "ray" and shm.is_dir() and not os.environ.get("RAY_ADDRESS"):
        free = shutil.disk_usage(shm).free
        text = f"/dev/shm has {free / GIB:.1f} GiB free. Ray and NCCL use it"
        remedy = "Start the container with --shm-size=2g, or mount an emptyDir with medium Memory at /dev/shm"
        findings.append(ok("shared memory", text) if free >= GIB else Finding("warning", "shared memory", text, remedy))
    cores, threads = len(os.sched_getaffinity(0)), cfg.io.loader_threads
    if cfg.scale.launcher == "local" and threads > 2 * cores:
        text = f"io.loader_threads={threads}, but there are {cores} core(s)"
        findings.append(Finding("note", "threads", text, f"io.loader_threads={cores} is as fast"))
    return findings


def _rehearse(cfg: Config) -> tuple[str, int]:
    """Train two steps of one micro-batch. Return a description, and the size of a checkpoint in bytes.

    `fit` itself runs, in a temporary folder on this machine. It is stopped after one step and started again, so this covers
    model, loss, update, commit, restore and evaluation. Raises UserError.
    """
    found, device = inspect_run(cfg, cfg.scale.num_ranks), choose_device(cfg.scale.device)
    with console.quiet():
        cfg = resolve_auto(found.cfg, found.index, World(0, cfg.scale.num_ranks, device))
    tree, micro = config.to_tree(cfg), cfg.train.samples_per_micro_batch
    with tempfile.TemporaryDirectory(prefix="segdist-doctor-") as folder:
        tree["run"]["uri"] = folder
        tree["train"] |= {"num_steps": 2, "global_batch_size": micro, "strategy": "ddp", "zero_offload": False}
        tree["optim"] |= {"warmup_steps": 0, "freeze_encoder_steps": 0}  # training all parameters takes the most memory
        tree["eval"] |= {"every_steps": 2, "num_samples": 2, "batch_size": 1}
        tree["scale"] |= {"launcher": "local", "num_ranks": 1, "gpus_per_rank": None}
        small = config.from_tree(tree, "the rehearsal")
        world = World(0, 1, device)
        with console.quiet():
            fit(small, world, notice=lambda: "stop")
            summary = fit(small, world)
            newest = checkpoints.newest(folder, console.say)
        if summary["step"] != 2 or newest is None or checkpoints.step_of(newest) != 2:
            raise UserError(f"the rehearsal ended at step {summary['step']} instead of 2. Please report this")
        num_bytes = sum(storage.sizes(newest).values())
    return (
        f"trained two steps of {micro} images, with a commit and a restore in between, and an evaluation at the end",
        num_bytes,
    )


def _disk(cfg: Config, checkpoint_bytes: int) -> list[Finding]:
    """Check the room for checkpoints if the run is on a local disk."""
    if not storage.is_local(cfg.run.uri):
        return []
    kept = cfg.checkpoint.keep_last + 2  # the best one, and the one being written
    free = shutil.disk_usage(_existing(storage.local_path(cfg.run.uri))).free
    text = f"{free / GIB:.1f} GiB free. The run keeps up to {kept} checkpoints of {checkpoint_bytes / GIB:.2f} GiB"
    if free > 1.2 * kept * checkpoint_bytes:
        return [ok("disk", text)]
    return [Finding("error", "disk", text, "Free some space, lower checkpoint.keep_last, or use another run.uri")]


def _existing(path: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return path if path.exists() else _existing(path.parent)
