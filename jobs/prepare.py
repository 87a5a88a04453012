"""`segdist prepare` for `ray job submit`: one process, where the job's driver runs.

ray job submit --working-dir . -- python jobs/prepare.py s3://BUCKET/photos s3://BUCKET/data --names sky,road,car
"""

import sys

from segdist.cli import main

sys.argv[1:] = ["prepare", *sys.argv[1:]]
main()
