"""Datasets for administrators: by owner, size and date; read-only but for two actions.

Private datasets of other people are listed; opening one needs a permission of its own and leaves an
audit entry. The actions go through the same services as the pages and the API.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from datasets_app import services
from datasets_app.models import Dataset, DatasetImage
from studio_project.api import Problem
from studio_project.models import AuditEntry, User, Visibility

SHOWN_IMAGES = 200


@admin.register(Dataset)
class DatasetAdmin(admin.ModelAdmin):
    """All datasets that were not deleted."""

    list_display = ("name", "owner", "visibility", "num_items", "size", "created_at")
    list_filter = ("visibility", "type")
    list_select_related = ("owner",)
    search_fields = ("name", "owner__username", "owner__email")
    ordering = ("-created_at", "-id")
    show_full_result_count = False
    date_hierarchy = "created_at"
    actions = ("take_back", "delete_datasets")
    fields = (
        "name", "owner", "type", "visibility", "num_items", "size", "version", "created_at",
        "contents",
    )  # fmt: skip
    readonly_fields = fields

    @admin.display(description=gettext_lazy("size"), ordering="size_bytes")
    def size(self, dataset: Dataset) -> str:
        """Return the size as people read it."""
        return filesizeformat(dataset.size_bytes)

    @admin.display(description=gettext_lazy("contents"))
    def contents(self, dataset: Dataset) -> SafeString:
        """Return the names and captions of its newest pictures."""
        images = DatasetImage.objects.live().filter(dataset=dataset)[:SHOWN_IMAGES]
        rows = (
            (image.shown_name, image.width, image.height, image.caption or "—") for image in images
        )
        return format_html_join("\n", "<p>{} · {} × {}<br>{}</p>", rows)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Dataset]:
        """List what was not deleted."""
        rows: QuerySet[Dataset] = super().get_queryset(request)
        return rows.filter(deleted_at=None)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Open a dataset; somebody's private one only with the permission, and on record."""
        dataset = self.get_object(request, object_id)
        if (
            dataset is not None
            and dataset.visibility == Visibility.PRIVATE
            and dataset.owner_id != request.user.pk
        ):
            if not request.user.has_perm("datasets_app.view_private_dataset"):
                raise PermissionDenied
            AuditEntry.write(_actor(request), "dataset.opened", dataset.pk, name=dataset.name)
        return super().change_view(request, object_id, form_url, extra_context)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """People make their own datasets."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Dataset | None = None) -> bool:
        """Contents are read-only here."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Dataset | None = None) -> bool:
        """Rows go through the action, which keeps the counts and the files right."""
        return False

    def has_curate_permission(self, request: HttpRequest) -> bool:
        """Who may use the actions."""
        return request.user.has_perm("datasets_app.change_dataset")

    @admin.action(
        description=gettext_lazy("Make the selected datasets private"), permissions=["curate"]
    )
    def take_back(self, request: HttpRequest, queryset: QuerySet[Dataset]) -> None:
        """Unshare them."""

        def unshare(dataset: Dataset) -> None:
            services.share_dataset(_actor(request), dataset, Visibility.PRIVATE)

        self._each(request, queryset, unshare)

    @admin.action(description=gettext_lazy("Delete the selected datasets"), permissions=["curate"])
    def delete_datasets(self, request: HttpRequest, queryset: QuerySet[Dataset]) -> None:
        """Delete them with their pictures."""

        def delete(dataset: Dataset) -> None:
            services.delete_dataset(_actor(request), dataset)

        self._each(request, queryset, delete)

    def _each(
        self, request: HttpRequest, queryset: QuerySet[Dataset], verb: Callable[[Dataset], None]
    ) -> None:
        done = 0
        for dataset in queryset:
            try:
                verb(dataset)
                done += 1
            except Problem as problem:
                messages.error(request, f"{dataset.name}: {problem.detail}")
        if done:
            text = ngettext(
                "%(count)d dataset was changed.", "%(count)d datasets were changed.", done
            )
            messages.success(request, text % {"count": done})


def _actor(request: HttpRequest) -> User:
    if not isinstance(request.user, User):
        raise PermissionDenied(_("Sign in first"))
    return request.user
