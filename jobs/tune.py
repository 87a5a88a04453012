"""Run `segdist tune` with `ray job submit`. The trials run on the job's cluster.

    ray job submit --working-dir . -- python jobs/tune.py configs/sweeps/lr_and_crop.yaml \\
        uri=s3://BUCKET/sweeps/lr_and_crop set.data.uri=s3://BUCKET/data

Submit the same command again to continue the sweep. `segdist status s3://BUCKET/sweeps/lr_and_crop --follow` shows its state
from any machine. To give `ray job stop` the time for the trials' commits, submit with
--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300"}}'.
"""

import sys

from segdist.cli import main

sys.argv[1:] = ["tune", *sys.argv[1:]]
main()
