"""Trainings in the administration: looked at, canceled, not opened."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from studio_project.api import signed_in
from studio_project.job_admin import JOB_FIELDS, JobAdmin
from training_app import services
from training_app.models import TrainingCheckpoint, TrainingJob


class CheckpointInline(admin.TabularInline):
    """The checkpoints of a training."""

    model = TrainingCheckpoint
    fields = ("epoch", "step", "size_bytes", "created_at")
    readonly_fields = fields
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Trainings write them."""
        return False


@admin.register(TrainingJob)
class TrainingJobAdmin(JobAdmin):
    """All trainings by owner, state and date."""

    list_display = (*JobAdmin.list_display, "type")
    list_filter = (*JobAdmin.list_filter, "type")
    fields = (*JOB_FIELDS, "type")
    inlines = (CheckpointInline,)

    def cancel_job(self, request: HttpRequest, job: Any) -> None:
        """End it and drop its checkpoints."""
        services.cancel_training(signed_in(request), job)
