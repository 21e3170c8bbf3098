"""Who works on what?

In: a JobConfig. Out: a RunReport, when every video is settled. One coordinator leases videos to workers and
alone writes the output. Start with job.py (the run on Ray), coordination.py (the coordinator) or worker.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from pipeline.cluster.actors import Coordinator
    from pipeline.cluster.backlog import Lease, LeasedVideo
    from pipeline.cluster.coordination import Coordination
    from pipeline.cluster.job import RemoteCoordinator, run_job
    from pipeline.cluster.metrics import Metrics
    from pipeline.cluster.preflight import check_healable, check_output
    from pipeline.cluster.protocol import CoordinatorHandle, LeaseReply, Message, Reply, Run, WorkerSeconds
    from pipeline.cluster.report import STATUS_INTERRUPTED, Progress, RunReport, Totals
    from pipeline.cluster.session import ray_session
    from pipeline.cluster.submitting import Submission, submit_job
    from pipeline.cluster.worker import Worker
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "actors": ["Coordinator"],
            "backlog": ["Lease", "LeasedVideo"],
            "preflight": ["check_healable", "check_output"],
            "coordination": ["Coordination"],
            "job": ["RemoteCoordinator", "run_job"],
            "metrics": ["Metrics"],
            "protocol": ["CoordinatorHandle", "LeaseReply", "Message", "Reply", "Run", "WorkerSeconds"],
            "report": ["Progress", "RunReport", "STATUS_INTERRUPTED", "Totals"],
            "session": ["ray_session"],
            "submitting": ["Submission", "submit_job"],
            "worker": ["Worker"],
        },
    )

__all__ = [
    "STATUS_INTERRUPTED",
    "Coordination",
    "Coordinator",
    "CoordinatorHandle",
    "Lease",
    "LeaseReply",
    "LeasedVideo",
    "Message",
    "Metrics",
    "Progress",
    "RemoteCoordinator",
    "Reply",
    "Run",
    "RunReport",
    "Submission",
    "Totals",
    "Worker",
    "WorkerSeconds",
    "check_healable",
    "check_output",
    "ray_session",
    "run_job",
    "submit_job",
]
