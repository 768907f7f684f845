"""Requests and pictures in the administration: counted and canceled, not opened."""

from __future__ import annotations

from django.contrib import admin

from generation_app.models import GeneratedImage, GenerationJob, InputPicture
from studio_project.admin import ReadOnlyAdmin
from studio_project.job_admin import JOB_FIELDS, JobAdmin


@admin.register(GenerationJob)
class GenerationJobAdmin(JobAdmin):
    """All requests by owner, state and date."""

    list_display = (*JobAdmin.list_display, "mode")
    list_filter = (*JobAdmin.list_filter, "mode")
    fields = (*JOB_FIELDS, "mode")


@admin.register(GeneratedImage)
class GeneratedImageAdmin(ReadOnlyAdmin):
    """All pictures by owner, size and date, without their contents."""

    list_display = ("id", "owner", "width", "height", "size_bytes", "created_at", "deleted_at")
    list_filter = ("owner",)
    date_hierarchy = "created_at"
    list_select_related = ("owner",)
    fields = ("id", "owner", "job_id", "width", "height", "size_bytes", "created_at", "deleted_at")


@admin.register(InputPicture)
class InputPictureAdmin(ReadOnlyAdmin):
    """All pictures that requests start from, by owner, size and date, without their contents."""

    list_display = ("id", "owner", "width", "height", "size_bytes", "created_at", "used_at")
    list_filter = ("owner",)
    date_hierarchy = "created_at"
    list_select_related = ("owner",)
    fields = ("id", "owner", "width", "height", "size_bytes", "created_at", "used_at")
