"""`segdist submit`: run a segdist command as a job on a Ray cluster, from a machine that need not be part of it.

Data and checkpoints are in object storage. The job is an ordinary Ray job, so `ray job logs`, `ray job stop` and the dashboard
work with it.
"""

from segdist.cluster.submit.client import JobClient
from segdist.cluster.submit.job import Job, job_of

__all__ = ["Job", "JobClient", "job_of"]
