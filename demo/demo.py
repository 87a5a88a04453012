"""The main job, end to end, by the commands a person would type: prepare, train, evaluate, export, predict.

`python demo/demo.py` draws its own street scenes; `--data FOLDER` takes yours (images/ and masks/). The last line on
stdout is the evaluation's JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import streets

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "demo.yaml"


def segdist(*arguments: str) -> dict[str, Any]:
    """Shows and runs one command; the JSON of its last line."""
    print(f"\n$ segdist {shlex.join(arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "segdist", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="your folder with images/ and masks/")
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("overrides", nargs="*", help="section.field=value for the training")
    given = parser.parse_args()
    out = given.out
    if out.exists() and any(out.iterdir()) and not (out / "demo").exists():
        sys.exit(f"{out} holds something else than a demo; give another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "demo").touch()

    source, prepare, fits = given.data, [], []
    if source is None:
        source = out / "streets"
        print(f"drawing street scenes in {source}", file=sys.stderr)
        streets.draw_folder(source, 240)
        prepare = ["--names", str(source / "names.txt")]
    else:
        # Photos are larger than drawn streets, and there may be few of them: smaller pictures, batches and steps.
        fits = ["data.image_size=192", "train.global_batch_size=8", "train.micro_batch_size=8", "train.num_steps=300"]
    data, run = str(out / "data"), str(out / "run")
    segdist("prepare", str(source), data, *prepare)
    trained = segdist("train", str(CONFIG), f"data.uri={data}", f"run.uri={run}", *fits, *given.overrides)
    table = out / "evaluation.json"
    result = segdist("evaluate", run, "--data", data, "--split", "val", "--out", str(table))
    segdist("export", run, str(out / "export"))
    pictures = [str(p) for p in sorted((source / "images").rglob("*.*"))[:4]]
    predicted = segdist("predict", run, *pictures, "--out", str(out / "predictions")) if pictures else {"images": []}

    say = [
        "",
        f"mIoU {result['miou']:.4f} on {result['num_samples']} validation pictures",
        f"checkpoint  {trained['best_checkpoint']}",
        f"table       {table}",
        f"export      {out / 'export'}  (transformers.pipeline('image-segmentation', model=...) loads it)",
        *(f"overlay     {p['overlay']}" for p in predicted["images"][:1]),
        "",
        "On your own folder with images/ and masks/:   make demo DATA=FOLDER",
        f"or step by step, in a copy of {CONFIG.name}:  segdist prepare FOLDER data/mine && "
        f"segdist train {CONFIG.parent.name}/{CONFIG.name} data.uri=data/mine run.uri=runs/mine",
    ]
    print("\n".join(say), file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
