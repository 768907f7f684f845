"""How many jobs one user may have active at once, and room for what comes out of them."""

from __future__ import annotations

from django.db import connection
from django.utils.translation import gettext as _

from studio_project.api import Problem
from studio_project.jobs.base import Job
from studio_project.jobs.registry import job_classes
from studio_project.models import User


def count_active(user: User) -> int:
    """How many of the user's jobs wait or run, of every kind."""
    active = (Job.Status.QUEUED, Job.Status.RUNNING)
    return sum(
        job_class.objects.filter(owner=user, status__in=active).count()
        for job_class in job_classes()
    )


def enforce_active_cap(user: User) -> None:
    """Refuses one more active job than the user may have.

    Call it inside the transaction that queues the job: it locks the user's row, so that parallel
    requests are counted one after the other.

    Raises:
        Problem: ``active_jobs_limit``, status 429.
    """
    rows = User.objects.filter(pk=user.pk)
    if connection.features.has_select_for_update:
        rows = rows.select_for_update()
    limit = rows.values_list("max_active_jobs", flat=True).get()
    if count_active(user) >= limit:
        raise Problem(
            "active_jobs_limit",
            _("You have %(limit)s active jobs, which is the most you may have.") % {"limit": limit},
            status=429,
            hint=_("Wait until one has finished, or cancel one."),
            headers={"Retry-After": "30"},
        )


def require_stored_room(user: User) -> None:
    """Refuses a job whose outcome could not be kept, because the user's room is used up.

    Raises:
        Problem: ``storage_full``, status 507.
    """
    user.refresh_from_db(fields=["stored_bytes", "max_stored_bytes"])
    if user.stored_bytes >= user.max_stored_bytes:
        raise Problem(
            "storage_full",
            _("Your room of %(megabytes)s MB is used up.")
            % {"megabytes": user.max_stored_bytes // 1024**2},
            status=507,
            hint=_("Delete pictures, datasets or models, or ask an administrator for more room."),
        )
