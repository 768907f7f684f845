"""People and machines in the administration."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from studio_project import accounts
from studio_project.models import ApiToken, AuditEntry, Invitation, User, Worker


@admin.register(User)
class StudioUserAdmin(UserAdmin):
    """Accounts with their caps; deactivating goes through the one service that does it whole."""

    list_display = ("username", "email", "is_staff", "is_active", "stored_bytes", "date_joined")
    actions = ("deactivate_users", "activate_users")
    fieldsets = (
        *(UserAdmin.fieldsets or ()),
        (_("Preferences"), {"fields": ("language", "theme")}),
        (
            _("Caps"),
            {"fields": ("max_active_jobs", "max_stored_bytes", "max_images_per_request")},
        ),
    )

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Accounts are deactivated, never deleted: their work stays."""
        return False

    def save_model(self, request: HttpRequest, obj: User, form: ModelForm, change: bool) -> None:
        """Save, and carry out what unticking *active* means."""
        super().save_model(request, obj, form, change)
        if change and "is_active" in form.changed_data and not obj.is_active:
            accounts.deactivate(obj, actor=_actor(request))

    @admin.action(description=_("Deactivate the selected accounts"))
    def deactivate_users(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """End sessions, tokens and queued jobs of each."""
        for user in queryset.exclude(pk=request.user.pk):
            accounts.deactivate(user, actor=_actor(request))

    @admin.action(description=_("Activate the selected accounts"))
    def activate_users(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """Let each sign in again."""
        for user in queryset:
            accounts.activate(user, actor=_actor(request))


def _actor(request: HttpRequest) -> User | None:
    return request.user if isinstance(request.user, User) else None


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows that are looked at, not edited."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Rows are made by the site."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Rows are not edited by hand."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Rows stay."""
        return False


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    """Tokens, never their secrets."""

    list_display = ("name", "owner", "created_at", "expires_at", "last_used_at", "revoked_at")
    list_filter = ("revoked_at",)
    search_fields = ("name", "owner__username")
    exclude = ("digest",)


@admin.register(Invitation)
class InvitationAdmin(ReadOnlyAdmin):
    """Invitations that were sent."""

    list_display = ("email", "created_at", "expires_at", "accepted_at")
    exclude = ("digest",)


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    """Who did what."""

    list_display = ("created_at", "actor", "action", "target")
    list_filter = ("action",)
    search_fields = ("target", "actor__username")


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    """Workers, their devices and health."""

    list_display = (
        "name", "device", "device_name", "state", "refusal", "quarantined", "crash_streak",
        "last_seen_at",
    )  # fmt: skip
    list_filter = ("state", "quarantined")
    actions = ("release",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The list's actions need it; the fields stay read-only."""
        return bool(request.user.is_staff) if obj is None else False

    @admin.action(description=_("Let the selected workers take jobs again"))
    def release(self, request: HttpRequest, queryset: QuerySet[Worker]) -> None:
        """End a quarantine."""
        queryset.update(quarantined=False, crash_streak=0, refusal="")
        AuditEntry.write(_actor(request), "worker.released", ", ".join(w.name for w in queryset))
