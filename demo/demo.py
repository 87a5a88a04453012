"""The main job, end to end, by the commands a person would type: prepare, train, evaluate, export, predict.

`python demo/demo.py` draws its own street scenes; `--data FOLDER` takes yours (images/ and masks/). The last line on
stdout is the evaluation's JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
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
        except KeyboardInterrupt:  # the command has heard it too: it commits, and says so
            continue
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="your folder with images/ and masks/")
    parser.add_argument("--out", type=Path, help="default: demo-out/NAME, by the name of the data; done work is kept")
    parser.add_argument("overrides", nargs="*", help="section.field=value for the training")
    given = parser.parse_args()
    out = given.out or Path("demo-out") / (given.data.resolve().name if given.data else "streets")
    out.mkdir(parents=True, exist_ok=True)

    source, prepare, fits = given.data, [], []
    if source is None:
        source = out / "source"
        if not (source / "names.txt").exists():  # written last
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
    segdist("export", run, str(out / "export"), "--overwrite")
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
        "or step by step, to see and choose more:",
        "    . .venv/bin/activate",
        "    segdist prepare FOLDER data/mine --names sky,road,car",
        f"    segdist train {CONFIG.parent.name}/{CONFIG.name} data.uri=data/mine run.uri=runs/mine data.image_size=192 "
        "train.global_batch_size=8 train.micro_batch_size=8",
    ]
    print("\n".join(say), file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
