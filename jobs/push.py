"""`segdist push` for `ray job submit`: one process, where the job's driver runs. Its token: HF_TOKEN on that machine.

ray job submit --working-dir . -- python jobs/push.py s3://BUCKET/runs/photos OWNER/NAME
"""

import sys

from segdist.cli import main

sys.argv[1:] = ["push", *sys.argv[1:]]
main()
