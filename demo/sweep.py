"""A sweep with the commands that a user would type: prepare synthetic scenes, tune the learning rate, show the result.

If it is stopped or killed, the same command continues it. The last line on stdout is the JSON of `segdist status`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import streets

from demo import HERE, say, segdist

SWEEP = HERE / "sweep.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("demo-out/sweep"), help="output folder; finished steps are not repeated"
    )
    parser.add_argument("overrides", nargs="*", help="overrides for `segdist tune`, such as budget.num_trials=12")
    given = parser.parse_args()
    out = given.out
    source, data, sweep, plot = out / "source", f"{out}/data", f"{out}/sweep", out / "sweep.png"
    if not (source / "names.txt").exists():  # written last
        say(f"generating synthetic street scenes in {source}")
        streets.draw_folder(source, 160)
    segdist("prepare", str(source), data, "--names", str(source / "names.txt"))
    tuned = segdist("tune", str(SWEEP), f"uri={sweep}", f"set.data.uri={data}", *given.overrides)
    status = segdist("status", sweep, "--plot", str(plot))
    values = ", ".join(f"{key} {value:.3g}" for key, value in tuned["best_values"].items())
    say(
        "",
        f"best       trial {tuned['best_trial']}, {tuned['metric']} {tuned['best_score']:.4f}: {values}",
        f"plot       {plot}",
        f"config     {tuned['best_config']}",
        "",
        "To train at full length with these values:",
        "    . .venv/bin/activate",
        f"    segdist train --from-sweep {sweep} data.uri={data} run.uri={out}/run",
    )
    print(json.dumps(status))


if __name__ == "__main__":
    main()
