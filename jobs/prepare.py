"""Run `segdist prepare` with `ray job submit`, in one process on the node of the job's driver.

ray job submit --working-dir . -- python jobs/prepare.py s3://BUCKET/photos s3://BUCKET/data --names sky,road,car
"""

import sys

from segdist.cli import main

sys.argv[1:] = ["prepare", *sys.argv[1:]]
main()
