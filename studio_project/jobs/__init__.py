"""Jobs: rows that workers claim, lease, report on and finish.

The database is the only truth here; a Dramatiq message is a doorbell and an event is a hint. What
a job computes is none of this package's business: training and generation bring their own class.
"""

from __future__ import annotations

from studio_project.jobs.base import (
    LOG_TAIL_CHARACTERS,
    MAX_CRASHES,
    InvalidTransition,
    Job,
    JobLost,
)
from studio_project.jobs.caps import count_active, enforce_active_cap, require_stored_room
from studio_project.jobs.choosing import Candidate
from studio_project.jobs.claiming import (
    claim,
    claim_together,
    claimable,
    note_device_busy,
    others_first,
)
from studio_project.jobs.errors import ERRORS, RefusedError, describe_error
from studio_project.jobs.ordering import queue_order
from studio_project.jobs.querysets import JobQuerySet
from studio_project.jobs.registry import job_classes, job_counts, register_job_class, ring
from studio_project.jobs.sweeping import (
    register_chore,
    register_file_references,
    sweep,
    sweep_files,
)

__all__ = [
    "ERRORS",
    "LOG_TAIL_CHARACTERS",
    "MAX_CRASHES",
    "Candidate",
    "InvalidTransition",
    "Job",
    "JobLost",
    "JobQuerySet",
    "RefusedError",
    "claim",
    "claim_together",
    "claimable",
    "count_active",
    "describe_error",
    "enforce_active_cap",
    "job_classes",
    "job_counts",
    "note_device_busy",
    "others_first",
    "queue_order",
    "register_chore",
    "register_file_references",
    "register_job_class",
    "require_stored_room",
    "ring",
    "sweep",
    "sweep_files",
]
