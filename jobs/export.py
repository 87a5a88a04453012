"""`segdist export` for `ray job submit`: one process, where the job's driver runs.

ray job submit --working-dir . -- python jobs/export.py s3://BUCKET/runs/photos s3://BUCKET/exports/photos
"""

import sys

from segdist.cli import main

sys.argv[1:] = ["export", *sys.argv[1:]]
main()
