"""`segdist tune` for `ray job submit`: the trials run on the cluster that the job was submitted to.

    ray job submit --working-dir . -- python jobs/tune.py configs/sweeps/lr_and_crop.yaml \\
        uri=s3://BUCKET/sweeps/lr_and_crop set.data.uri=s3://BUCKET/data

The same command again continues the sweep; `segdist status s3://BUCKET/sweeps/lr_and_crop --follow` looks on from anywhere.
`ray job stop` lets every trial commit first if it is given the time: submit with
--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300"}}'.
"""

import sys

from segdist.cli import main

sys.argv[1:] = ["tune", *sys.argv[1:]]
main()
