"""Run `segdist predict` with `ray job submit`, in one process on the node of the job's driver. Submit it again to continue.

ray job submit --working-dir . --entrypoint-num-gpus 1 -- python jobs/predict.py s3://BUCKET/runs/photos s3://BUCKET/new \\
    --out s3://BUCKET/masks
"""

import sys

from segdist.cli import main

sys.argv[1:] = ["predict", *sys.argv[1:]]
main()
