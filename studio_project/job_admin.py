"""What the administration shows of jobs: whose, in what state, since when; never their contents."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from studio_project.admin import ReadOnlyAdmin
from studio_project.jobs import Job
from studio_project.models import AuditEntry

JOB_FIELDS = (
    "id", "owner", "status", "phase", "waiting_reason", "progress", "step", "total_steps",
    "error_code", "epoch", "crash_count", "worker", "lease_expires_at", "cancel_requested",
    "required_bytes", "created_at", "queued_at", "started_at", "finished_at",
)  # fmt: skip


class JobAdmin(ReadOnlyAdmin):
    """Jobs by owner, state and date, to be canceled but not opened.

    Titles, prompts, captions and logs are their owner's.
    """

    list_display = ("id", "owner", "status", "phase", "step", "total_steps", "worker", "created_at")
    list_filter = ("status", "worker")
    search_fields = ("id", "owner__username")
    date_hierarchy = "created_at"
    list_select_related = ("owner", "worker")
    actions: ClassVar[Any] = ("cancel",)
    fields = JOB_FIELDS
    # The columns that a job's name is made of, and what stands there instead.
    hidden: ClassVar[dict[str, Any]] = {}

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        """Read a job without the columns that would tell what it is about."""
        job = super().get_object(request, object_id, from_field)
        if job is not None:
            for name, value in self.hidden.items():
                setattr(job, name, value)
        return job

    @admin.action(description=_("Cancel the selected jobs"))
    def cancel(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """End each, as its owner could."""
        for job in queryset:
            self.cancel_job(request, job)
            AuditEntry.write(request.user, f"{job.noun}.canceled", job.pk)

    def cancel_job(self, request: HttpRequest, job: Job) -> None:
        """End one; kinds of jobs with a service of their own call it."""
        job.request_cancel()
