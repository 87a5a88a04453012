"""`segdist submit`: a command of segdist as a job on a Ray cluster, from a machine that need not be part of it.

Data and checkpoints lie in object storage. The job is one of Ray's own, so `ray job logs`, `ray job stop` and the dashboard
know it too.
"""

from segdist.cluster.submit.cluster import Cluster
from segdist.cluster.submit.job import Job, job_of

__all__ = ["Cluster", "Job", "job_of"]
