"""What the administration shows of jobs: whose, in what state, since when; never their contents."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from studio_project.admin import ReadOnlyAdmin
from studio_project.api import signed_in
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

    list_display: tuple[str, ...] = (
        "id",
        "owner",
        "status",
        "phase",
        "step",
        "total_steps",
        "worker",
        "created_at",
    )
    list_filter: tuple[str, ...] = ("status", "worker")
    search_fields: tuple[str, ...] = ("id", "owner__username")
    date_hierarchy = "created_at"
    list_select_related = ("owner", "worker")
    actions: ClassVar[Any] = ("cancel",)
    fields: tuple[str, ...] = JOB_FIELDS

    @admin.action(description=_("Cancel the selected jobs"))
    def cancel(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """End each, as its owner could."""
        for job in queryset:
            self.cancel_job(request, job)
            AuditEntry.write(signed_in(request), f"{job.noun}.canceled", job.pk)

    def cancel_job(self, request: HttpRequest, job: Job) -> None:
        """End one; kinds of jobs with a service of their own call it."""
        job.request_cancel()
