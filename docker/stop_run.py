"""preStop hook of a pod: stop the run with a checkpoint, and wait for it.

The driver of each running job gets SIGTERM, whatever its node. It ends after the current step with
a complete checkpoint and exit code 75. Every pod of a deleted cluster runs this; only the first
signal counts. Without a running job this ends at once.
"""

from __future__ import annotations

import os
import signal
import time

import ray
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_S = 2.0


@ray.remote(num_cpus=0)
def terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def running_jobs(client: JobSubmissionClient) -> list[JobDetails]:
    return [
        job
        for job in client.list_jobs()
        if job.type == JobType.SUBMISSION and job.status == JobStatus.RUNNING
    ]


def stop_job(job: JobDetails) -> bool:
    """Signal the driver; False if it has not joined Ray yet."""
    if job.driver_info is None:
        return False
    beside_driver = NodeAffinitySchedulingStrategy(job.driver_node_id, soft=False)
    ray.get(terminate.options(scheduling_strategy=beside_driver).remote(int(job.driver_info.pid)))
    return True


def main() -> None:
    context = ray.init(log_to_driver=False)
    client = JobSubmissionClient(f"http://{context.dashboard_url}")
    signalled: set[str | None] = set()
    while jobs := running_jobs(client):
        for job in jobs:
            if job.submission_id not in signalled and stop_job(job):
                signalled.add(job.submission_id)
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
