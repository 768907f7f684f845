"""Trainings in the administration: looked at, canceled, not edited."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from studio_project.models import AuditEntry
from training_app import services
from training_app.models import TrainingCheckpoint, TrainingJob


class CheckpointInline(admin.TabularInline):
    """The checkpoints of a training."""

    model = TrainingCheckpoint
    fields = ("epoch", "step", "size_bytes", "created_at", "model")
    readonly_fields = fields
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Trainings write them."""
        return False


@admin.register(TrainingJob)
class TrainingJobAdmin(admin.ModelAdmin):
    """All trainings by owner, state and date; what they are about stays with their owner."""

    list_display = (
        "id", "owner", "type", "status", "phase", "step", "total_steps", "worker", "created_at",
    )  # fmt: skip
    list_filter = ("status", "type", "worker")
    search_fields = ("id", "owner__username")
    date_hierarchy = "created_at"
    list_select_related = ("owner", "worker")
    inlines = (CheckpointInline,)
    actions = ("cancel",)
    # Captions, prompts, titles and logs are private content.
    fields = (
        "id", "owner", "type", "status", "phase", "waiting_reason", "priority", "progress", "step",
        "total_steps", "error_code", "epoch", "crash_count", "worker", "lease_expires_at",
        "cancel_requested", "required_bytes", "created_at", "queued_at", "started_at",
        "finished_at", "output_model",
    )  # fmt: skip

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Only the place in the queue may be changed by hand."""
        return tuple(name for name in self.fields if name != "priority")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Trainings are made on their page or by the API."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Their owners delete them, files and all."""
        return False

    @admin.action(description=_("Cancel the selected trainings"))
    def cancel(self, request: HttpRequest, queryset: QuerySet[TrainingJob]) -> None:
        """End each, as its owner could."""
        for job in queryset:
            services.cancel_training(request.user, job)
            AuditEntry.write(request.user, "training.canceled", job.pk)
