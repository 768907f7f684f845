"""Curating models: switch on and off, describe, set defaults and the picture.

Every change goes through the same services as the pages and the API. Private models of other people
are listed; opening one needs a permission of its own and leaves an audit entry.
"""

from __future__ import annotations

from typing import Any, BinaryIO, cast

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import UploadedFile
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from models_app import services, texts
from models_app.models import DiffusionModel
from studio_project.api import Problem
from studio_project.models import AuditEntry, User, Visibility


class CurationForm(ModelForm):
    """What an administrator may change."""

    thumbnail = forms.FileField(label=gettext_lazy("Picture"), required=False)

    class Meta:
        model = DiffusionModel
        fields = ("title", "description", "trigger_words", "default_settings", "is_active")

    def clean(self) -> dict[str, Any]:
        """Say beside each field what the services would refuse."""
        data = super().clean() or self.cleaned_data
        checks = {
            "title": texts.check_title,
            "description": texts.check_description,
            "trigger_words": lambda value: texts.check_trigger_words(value or []),
            "default_settings": lambda value: texts.check_default_settings(
                value or {}, self.instance.category
            ),
        }
        for name, check in checks.items():
            if name in data:
                try:
                    data[name] = check(data[name])
                except Problem as problem:
                    self.add_error(name, problem.detail)
        return data


@admin.register(DiffusionModel)
class DiffusionModelAdmin(admin.ModelAdmin):
    """All models, by owner, size and date."""

    form = CurationForm
    list_display = (
        "title",
        "name",
        "type",
        "category",
        "architecture",
        "is_inpainting",
        "owner",
        "visibility",
        "availability",
        "is_active",
        "size_bytes",
        "created_at",
    )
    list_filter = (
        "type", "category", "architecture", "is_inpainting", "availability", "is_active",
        "visibility",
    )  # fmt: skip
    list_select_related = ("owner",)
    search_fields = ("title", "name", "description", "owner__username", "source")
    show_full_result_count = False
    date_hierarchy = "created_at"
    actions = ("activate_models", "deactivate_models")
    readonly_fields = (
        "name",
        "type",
        "category",
        "architecture",
        "is_inpainting",
        "owner",
        "visibility",
        "base_model",
        "availability",
        "reason",
        "path",
        "size_bytes",
        "sha256",
        "source",
        "revision",
        "licence",
        "created_at",
    )
    fields = (
        "title",
        "description",
        "trigger_words",
        "default_settings",
        "is_active",
        "thumbnail",
        *readonly_fields,
    )

    @admin.display(description=gettext_lazy("why it cannot be used"))
    def reason(self, model: DiffusionModel) -> str:
        """Return the sentence that people read as well."""
        return model.availability_detail

    def get_queryset(self, request: HttpRequest) -> QuerySet[DiffusionModel]:
        """List what was not deleted."""
        rows: QuerySet[DiffusionModel] = super().get_queryset(request)
        return rows.filter(deleted_at=None)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Models come from training or from commands, with their files."""
        return False

    def has_delete_permission(
        self, request: HttpRequest, obj: DiffusionModel | None = None
    ) -> bool:
        """Shared models are deleted on their page, where what builds on them is checked."""
        return False

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Open a model; somebody's private one only with the permission, and on record."""
        model = self.get_object(request, object_id)
        if model is not None and _is_private_of_another(model, request):
            if not request.user.has_perm("models_app.view_private_diffusionmodel"):
                raise PermissionDenied
            AuditEntry.write(_actor(request), "model.opened", model.pk, name=model.name)
        return super().change_view(request, object_id, form_url, extra_context)

    def has_change_permission(
        self, request: HttpRequest, obj: DiffusionModel | None = None
    ) -> bool:
        """Private models of other people can be looked at, not changed."""
        if obj is not None and _is_private_of_another(obj, request):
            return False
        return super().has_change_permission(request, obj)

    def save_model(
        self, request: HttpRequest, obj: DiffusionModel, form: CurationForm, change: bool
    ) -> None:
        """Hand the changed fields to the services; the row itself is not saved here."""
        model = DiffusionModel.objects.get(pk=obj.pk)
        changes = {
            name: form.cleaned_data[name] for name in form.changed_data if name != "thumbnail"
        }
        upload = form.cleaned_data.get("thumbnail")
        try:
            if changes:
                services.edit_model(_actor(request), model, changes)
            if isinstance(upload, UploadedFile):
                services.set_thumbnail(_actor(request), model, cast(BinaryIO, upload.file))
        except Problem as problem:
            messages.error(request, problem.detail)
            return
        AuditEntry.write(
            _actor(request), "model.curated", model.pk, fields=sorted(form.changed_data)
        )

    @admin.action(description=gettext_lazy("Activate the selected models"))
    def activate_models(self, request: HttpRequest, queryset: QuerySet[DiffusionModel]) -> None:
        """Let them be used again."""
        self._switch(request, queryset, is_active=True)

    @admin.action(description=gettext_lazy("Deactivate the selected models"))
    def deactivate_models(self, request: HttpRequest, queryset: QuerySet[DiffusionModel]) -> None:
        """Keep them from being used."""
        self._switch(request, queryset, is_active=False)

    def _switch(
        self, request: HttpRequest, queryset: QuerySet[DiffusionModel], *, is_active: bool
    ) -> None:
        done = 0
        for model in queryset:
            try:
                services.edit_model(_actor(request), model, {"is_active": is_active})
                done += 1
            except Problem as problem:
                messages.error(request, f"{model.shown_title}: {problem.detail}")
        if done:
            text = ngettext("%(count)d model was changed.", "%(count)d models were changed.", done)
            messages.success(request, text % {"count": done})


def _actor(request: HttpRequest) -> User:
    if not isinstance(request.user, User):
        raise PermissionDenied(_("Sign in first"))
    return request.user


def _is_private_of_another(model: DiffusionModel, request: HttpRequest) -> bool:
    return model.visibility == Visibility.PRIVATE and model.owner_id != request.user.pk
