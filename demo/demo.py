"""The whole workflow with the commands that a user would type: prepare, train, evaluate, export, predict.

Data, checkpoints and the export are in a bucket, on an S3 server that runs on this machine during the demo. Two Ray ranks
train, and the demo kills one of them on the way. `--local` uses one process and local files instead. The demo generates
synthetic street scenes; `--data FOLDER` uses your images/ and masks/. The last line on stdout is the JSON of the evaluation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import s3_server
import streets

from segdist import storage
from segdist.runs import record, segments

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "demo.yaml"
ON_RAY = ["scale.launcher=ray", "scale.num_ranks=2"]


def say(*lines: str) -> None:
    print("\n".join(lines), file=sys.stderr, flush=True)


def segdist(*arguments: str) -> dict[str, Any]:
    """Print and run one command, and return the JSON on its last line."""
    say("", f"$ segdist {shlex.join(arguments)}")
    process = subprocess.Popen(
        [sys.executable, "-m", "segdist", *arguments, "--json"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    while process.poll() is None or not lines:
        try:
            lines += process.stdout.readlines()
            process.wait()
            break
        except KeyboardInterrupt:  # the command received it too: it saves a checkpoint and says so
            continue
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(lines[-1])


def copy(source: str, target: str) -> None:
    """Copy all files below one URI to another."""
    for entry in storage.walk(source):
        storage.write(storage.join(target, entry.name), storage.read(storage.join(source, entry.name)))


@contextmanager
def bucket(kept: Path) -> Iterator[str]:
    """Yield the URI of a bucket that starts with the files in `kept` and is copied back there at the end."""
    import boto3

    with s3_server.serving() as address:
        os.environ |= s3_server.settings(address)
        say(f"S3 server in memory: {address}")
        boto3.client("s3").create_bucket(Bucket="demo")
        copy(str(kept), "s3://demo")
        try:
            yield "s3://demo"
        finally:
            fresh = kept.with_name(f"{kept.name}.new")
            storage.delete(str(fresh))
            copy("s3://demo", str(fresh))
            storage.delete(str(kept))
            fresh.rename(kept)


class RankKiller(threading.Thread):
    """Send SIGKILL to rank 0 of a run's first attempt, a few seconds after its first committed checkpoint."""

    def __init__(self, run_uri: str) -> None:
        super().__init__(daemon=True)
        self._run_uri = run_uri
        self.pid: int | None = None  # of the killed process

    def run(self) -> None:
        folder = storage.join(self._run_uri, "checkpoints")
        while not any("COMMITTED" in storage.names(storage.join(folder, n)) for n in storage.names(folder)):
            time.sleep(0.5)
        time.sleep(5)  # steps that will be repeated
        pid = json.loads(storage.read(storage.join(self._run_uri, "attempts", "0001.json")))["pid"]
        with contextlib.suppress(ProcessLookupError):  # the run has already ended
            os.kill(pid, signal.SIGKILL)
            self.pid = pid

    def report(self) -> list[str]:
        """Return lines that say which steps were repeated, from the run's metrics."""
        state = record.load(self._run_uri)
        if self.pid is None or state is None or state["attempt"] < 2:
            return ["rank 0     was not killed: the run ended first"]
        rows = [row for row in segments.read_metrics(self._run_uri) if row["kind"] == "train"]
        first = {row["step"] for row in rows if row["attempt"] == 1}
        again = {row["step"] for row in rows if row["attempt"] == 2}
        return [
            f"rank 0     (process {self.pid}) was killed, and nothing was lost:",
            f"           attempt 1 logged steps {min(first)} to {max(first)}, attempt 2 steps {min(again)} to {max(again)},",
            "           with the same samples in the same order",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="your folder with images/ and masks/")
    parser.add_argument(
        "--out",
        type=Path,
        help="output folder; finished steps are not repeated. Default: demo-out/NAME, after the data",
    )
    parser.add_argument("--local", action="store_true", help="one process and local files: no S3, no Ray")
    parser.add_argument("overrides", nargs="*", help="section.field=value, passed to `segdist train`")
    given = parser.parse_args()
    out = given.out or Path("demo-out") / (given.data.resolve().name if given.data else "streets")
    out.mkdir(parents=True, exist_ok=True)
    if given.local:
        demo(given, out, str(out))
    else:
        with bucket(out / "bucket") as root:
            demo(given, out, root)


def demo(given: argparse.Namespace, out: Path, root: str) -> None:
    source, prepare, fits = given.data, [], []
    if source is None:
        source = out / "source"
        if not (source / "names.txt").exists():  # written last
            say(f"generating synthetic street scenes in {source}")
            streets.draw_folder(source, 240)
        prepare = ["--names", str(source / "names.txt")]
    else:
        # Photos are larger than the synthetic scenes, and there may be few: resize them, use small batches and a lower rate.
        fits = ["data.image_size=192", "train.global_batch_size=8", "train.micro_batch_size=4", "optim.lr=2e-3"]
    data, run, exported = f"{root}/data", f"{root}/run", f"{root}/export"
    segdist("prepare", str(source), data, *prepare)

    scale = [] if given.local else ON_RAY
    killer = None
    if not given.local and not storage.exists(run):
        killer = RankKiller(run)
        killer.start()
    trained = segdist("train", str(CONFIG), f"data.uri={data}", f"run.uri={run}", *fits, *scale, *given.overrides)
    table = out / "evaluation.json"
    result = segdist("evaluate", run, "--data", data, "--split", "val", "--out", str(table))
    segdist("export", run, exported, "--overwrite")
    images = [str(p) for p in sorted((source / "images").rglob("*.*"))[:4]]
    predicted = segdist("predict", run, *images, "--out", str(out / "predictions")) if images else {"images": []}

    kept = str(out if given.local else out / "bucket")
    say(
        "",
        f"mIoU       {result['miou']:.4f} on {result['num_samples']} validation images",
        *(killer.report() if killer else []),
        f"checkpoint {trained['best_checkpoint'].replace(root, kept)}",
        f"table      {table}",
        f"export     {kept}/export  (transformers.pipeline('image-segmentation', model=...) loads it)",
        *(f"overlay    {p['overlay']}" for p in predicted["images"][:1]),
        *([] if given.local else [f"bucket     {kept} is a copy of s3://demo, whose server stops with the demo"]),
        "",
        "With your own folder of images/ and masks/:   make demo DATA=FOLDER",
        "or step by step, with all options:",
        "    . .venv/bin/activate",
        "    segdist prepare FOLDER data/mine --names sky,road,car",
        f"    segdist train {CONFIG.parent.name}/{CONFIG.name} data.uri=data/mine run.uri=runs/mine data.image_size=192 "
        "train.global_batch_size=8 train.micro_batch_size=8 optim.lr=2e-3",
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
