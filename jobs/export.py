"""Run `segdist export` with `ray job submit`, in one process on the node of the job's driver.

ray job submit --working-dir . -- python jobs/export.py s3://BUCKET/runs/photos s3://BUCKET/exports/photos
"""

import sys

from segdist.cli import main

sys.argv[1:] = ["export", *sys.argv[1:]]
main()
