"""Run `segdist train` with `ray job submit`. The ranks run on the job's cluster.

    ray job submit --working-dir . -- python jobs/train.py configs/camvid_segformer_b0.yaml \\
        data.uri=s3://BUCKET/data run.uri=s3://BUCKET/run scale.num_ranks=4

Submit the same command again to continue the run. To give `ray job stop` the time for a commit, submit with
--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300"}}'.
"""

import sys

from segdist.cli import main

arguments = sys.argv[1:]
words = [i for i, word in enumerate(arguments) if not word.startswith("-")]
if words:
    first = next((i for i in words if "=" in arguments[i]), len(arguments))
    arguments.insert(first, "scale.launcher=ray")  # before the user's overrides, which take precedence
sys.argv[1:] = ["train", *arguments]
main()
