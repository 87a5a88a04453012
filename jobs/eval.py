"""Run `segdist evaluate` with `ray job submit`, in one process on the node of the job's driver.

ray job submit --working-dir . --entrypoint-num-gpus 1 -- python jobs/eval.py s3://BUCKET/runs/photos --split val
"""

import sys

from segdist.cli import main

sys.argv[1:] = ["evaluate", *sys.argv[1:]]
main()
