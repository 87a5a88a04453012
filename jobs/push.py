"""Run `segdist push` with `ray job submit`, in one process on the node of the job's driver. That node needs HF_TOKEN.

ray job submit --working-dir . -- python jobs/push.py s3://BUCKET/runs/photos OWNER/NAME
"""

import sys

from segdist.cli import main

sys.argv[1:] = ["push", *sys.argv[1:]]
main()
