"""Requests and pictures in the administration: counted and canceled, not opened."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from generation_app import services
from generation_app.models import GeneratedImage, GenerationJob
from studio_project.models import AuditEntry


@admin.register(GenerationJob)
class GenerationJobAdmin(admin.ModelAdmin):
    """All requests by owner, state and date; their prompts stay with their owner."""

    list_display = ("id", "owner", "mode", "status", "phase", "step", "worker", "created_at")
    list_filter = ("status", "mode", "worker")
    search_fields = ("id", "owner__username")
    date_hierarchy = "created_at"
    list_select_related = ("owner", "worker")
    actions = ("cancel",)
    fields = (
        "id", "owner", "mode", "status", "phase", "waiting_reason", "priority", "progress", "step",
        "total_steps", "error_code", "epoch", "crash_count", "worker", "lease_expires_at",
        "cancel_requested", "required_bytes", "created_at", "queued_at", "started_at",
        "finished_at",
    )  # fmt: skip

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Only the place in the queue may be changed by hand."""
        return tuple(name for name in self.fields if name != "priority")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Requests are made on their page or by the API."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Their owners delete them, files and all."""
        return False

    @admin.action(description=_("Cancel the selected requests"))
    def cancel(self, request: HttpRequest, queryset: QuerySet[GenerationJob]) -> None:
        """End each, as its owner could."""
        for job in queryset:
            services.cancel_generation(request.user, job)
            AuditEntry.write(request.user, "generation.canceled", job.pk)


@admin.register(GeneratedImage)
class GeneratedImageAdmin(admin.ModelAdmin):
    """All pictures by owner, size and date, without their contents."""

    list_display = ("id", "owner", "width", "height", "size_bytes", "created_at", "deleted_at")
    list_filter = ("owner",)
    date_hierarchy = "created_at"
    list_select_related = ("owner",)
    fields = ("id", "owner", "job", "width", "height", "size_bytes", "created_at", "deleted_at")
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Pictures are painted."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Their owners delete them."""
        return False
