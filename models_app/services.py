"""What people do with models: find, rename, describe, share, switch off, delete.

Every verb checks who asks, changes the row in one guarded UPDATE and tells everyone concerned on
commit. Making models is not here: a finished training registers its model
(`DiffusionModel.objects.register`), and commands install base models (``installation``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Greatest
from django.utils import timezone
from django.utils.translation import gettext as _

from models_app.layouts import KOHYA, kohya_entry, kohya_key
from models_app.models import DiffusionModel
from models_app.texts import (
    check_default_settings,
    check_description,
    check_title,
    check_trigger_words,
)
from models_app.thumbnails import make_thumbnail
from studio_project import storage
from studio_project.api import Problem, whole_number
from studio_project.models import User, Visibility

ModelListener = Callable[[DiffusionModel, str], None]
_listeners: list[ModelListener] = []


def register_model_listener(listener: ModelListener) -> None:
    """Have a function called whenever somebody loses the use of a model.

    It is called inside the transaction, with the model as it is now and one of ``unshared``
    (everyone but the owner lost it), ``deactivated`` and ``deleted`` (everyone did). When a base
    model is switched off, it is also called for each model that builds on it.
    """
    if listener not in _listeners:
        _listeners.append(listener)


def _tell_listeners(model: DiffusionModel, what: str) -> None:
    for listener in _listeners:
        listener(model, what)


# --- finding ------------------------------------------------------------------------------------
def resolve_model(user: User, ref: int | str) -> DiffusionModel:
    """Return the model that an id or an exact name means to this user.

    Names are looked for among usable models, one's own before shared ones.

    Raises:
        Problem: `model_not_found` (404); `model_ambiguous` (409, with the ids); `model_unavailable`
            (409, with the reason).
    """
    text = str(ref).strip()
    rows = DiffusionModel.objects.select_related("base_model")
    usable = rows.usable_by(user)
    if (number := whole_number(text)) is not None:
        seen = rows.visible_to(user).filter(pk=number)
    else:
        named = rows.visible_to(user).filter(name=text)
        matches = list(usable.filter(name=text).order_by("pk"))
        own = [model for model in matches if model.owner_id == user.pk]
        candidates = own or matches
        if len(candidates) > 1:
            raise _ambiguous(text, candidates)
        seen = rows.filter(pk=candidates[0].pk) if candidates else named
    model = seen.first()
    if model is None:
        message = _("There is no model “%(ref)s” that you may use.") % {"ref": text[:200]}
        raise Problem("model_not_found", message, status=404, fields={"model": [message]})
    if not usable.filter(pk=model.pk).exists():
        raise unavailable(model)
    return model


def unavailable(model: DiffusionModel) -> Problem:
    """Return the problem that says why a visible model cannot be used."""
    message = _("The model “%(name)s” cannot be used.") % {"name": model.shown_title}
    reason = model.availability_detail or _("Its base model is not yours to use.")
    return Problem(
        "model_unavailable",
        f"{message} {reason}",
        status=409,
        fields={"model": [f"{message} {reason}"]},
        availability=model.availability,
    )


def _ambiguous(name: str, candidates: list[DiffusionModel]) -> Problem:
    message = _("Several models are called “%(name)s”; choose one by its id.") % {"name": name}
    return Problem(
        "model_ambiguous",
        message,
        status=409,
        fields={"model": [message]},
        ids=[model.pk for model in candidates],
    )


# --- downloading --------------------------------------------------------------------------------
LAYOUTS = ("diffusers", KOHYA)


def choose_download(model: DiffusionModel, layout: str | None) -> str | dict[str, tuple[str, int]]:
    """Decide what of a visible model is handed over.

    Args:
        model: The model.
        layout: One of `LAYOUTS`; None for the first.

    Returns:
        The key of one file; of a folder the key and size of every file, by its name in an archive.

    Raises:
        Problem: `invalid` for another layout, `model_unavailable`, or `download_unavailable` (409)
            for a base model of the site and for a layout that the model does not have.
    """
    if layout not in (None, *LAYOUTS):
        message = _("Choose one of: %(choices)s.") % {"choices": ", ".join(LAYOUTS)}
        raise Problem("invalid", message, fields={"layout": [message]})
    if not model.path:
        raise unavailable(model)
    if layout == KOHYA:
        if kohya_entry(model.files) is None:
            raise _no_download(
                _("“%(name)s” does not exist in this layout.") % {"name": model.shown_title},
                _("Download it without naming a layout."),
            )
        return kohya_key(model.path)
    if model.is_file:
        return model.path
    if model.type == DiffusionModel.Type.BASE:
        raise _no_download(
            _("“%(name)s” is a base model of the site, which cannot be downloaded here.")
            % {"name": model.shown_title},
            _("It comes from: %(source)s") % {"source": model.source} if model.source else "",
        )
    return {
        f"{model.name}/{entry['name']}": (f"{model.path}/{entry['name']}", entry["size"])
        for entry in model.files
    }


def _no_download(message: str, hint: str) -> Problem:
    return Problem("download_unavailable", message, status=409, hint=hint)


# --- changing -----------------------------------------------------------------------------------
def require_editable(user: User, model: DiffusionModel) -> None:
    """Refuse who may see a model but not change it.

    Raises:
        Problem: `not_yours` (403), or `not_found` (404) for a stranger.
    """
    if DiffusionModel.objects.editable_by(user).filter(pk=model.pk).exists():
        return
    if DiffusionModel.objects.visible_to(user).filter(pk=model.pk).exists():
        raise Problem(
            "not_yours", _("Only its owner or an administrator may change this."), status=403
        )
    raise Problem("not_found", _("There is nothing here that you may see."), status=404)


def edit_model(user: User, model: DiffusionModel, changes: Mapping[str, Any]) -> DiffusionModel:
    """Make any of the changes a person may make, all of them or none.

    Args:
        user: Who asks.
        model: What is changed; refreshed.
        changes: Any of ``title, description, trigger_words, default_settings, visibility`` and,
            for staff, ``is_active``.

    Raises:
        Problem: With the field that is wrong, or the reason.
    """
    require_editable(user, model)
    if "is_active" in changes and not user.is_staff:
        message = _("Only an administrator may activate or deactivate a model.")
        raise Problem("staff_only", message, status=403, fields={"is_active": [message]})
    fields: dict[str, Any] = {}
    if "title" in changes:
        fields["title"] = check_title(changes["title"])
    if "description" in changes:
        fields["description"] = check_description(changes["description"])
    if "trigger_words" in changes:
        fields["trigger_words"] = check_trigger_words(changes["trigger_words"])
    if "default_settings" in changes:
        fields["default_settings"] = check_default_settings(
            changes["default_settings"], model.category
        )
    with transaction.atomic():
        _lock(model)
        if fields:
            model.write(**fields)
        visibility = changes.get("visibility", model.visibility)
        if visibility != model.visibility:
            _set_visibility(model, visibility)
        elif fields:
            model.publish("changed")
        if "is_active" in changes and changes["is_active"] != model.is_active:
            _set_active(model, changes["is_active"])
    return model


def rename(user: User, model: DiffusionModel, title: str) -> DiffusionModel:
    """Give a model another title; its name stays, because scripts use it."""
    return edit_model(user, model, {"title": title})


def describe(user: User, model: DiffusionModel, **changes: Any) -> DiffusionModel:
    """Change ``description``, ``trigger_words`` or ``default_settings``."""
    return edit_model(user, model, changes)


def share(user: User, model: DiffusionModel, visibility: str) -> DiffusionModel:
    """Share a model with everyone who has an account, or take it back.

    Raises:
        Problem: `base_not_shared`, `model_in_use` or `site_model` (409).
    """
    return edit_model(user, model, {"visibility": visibility})


def activate_model(user: User, model: DiffusionModel) -> DiffusionModel:
    """Let a model be used again (staff)."""
    return edit_model(user, model, {"is_active": True})


def deactivate_model(user: User, model: DiffusionModel) -> DiffusionModel:
    """Keep a model, and what builds on it, from being used (staff)."""
    return edit_model(user, model, {"is_active": False})


def delete_model(user: User, model: DiffusionModel) -> None:
    """Delete a model; pictures and jobs keep its name.

    Its files stay until the sweeper finds that no row needs them.

    Raises:
        Problem: `model_in_use` (409) while others build on it.
    """
    require_editable(user, model)
    with transaction.atomic():
        _lock(model)
        users = DiffusionModel.objects.building_on(model).count()
        if users:
            message = _("%(count)d models build on “%(name)s”, so it cannot be deleted.") % {
                "count": users,
                "name": model.shown_title,
            }
            raise Problem(
                "model_in_use",
                message,
                status=409,
                hint=_("Delete them first, or have an administrator deactivate it."),
            )
        model.publish_gone("deleted", version=model.version + 1)
        changed = DiffusionModel.objects.filter(pk=model.pk, deleted_at=None).update(
            deleted_at=timezone.now(), version=F("version") + 1
        )
        model.refresh_from_db()
        if not changed:
            return  # somebody else deleted it first, and told everyone
        if model.owner_id is not None:
            User.objects.filter(pk=model.owner_id).update(
                stored_bytes=Greatest(F("stored_bytes") - model.size_bytes, 0)
            )
        _tell_listeners(model, "deleted")


def set_thumbnail(user: User, model: DiffusionModel, upload: BinaryIO | None) -> DiffusionModel:
    """Replace the picture that stands for a model; None takes it away.

    Raises:
        Problem: `thumbnail_invalid`, or `not_found` (404) if it was deleted meanwhile.
    """
    require_editable(user, model)
    key = ""
    if upload is not None:
        picture = make_thumbnail(upload)
        key = storage.new_key("models", model.pk, "thumbs", suffix=".webp")
        storage.save(key, picture)
    try:
        with transaction.atomic():
            _lock(model)
            model.write(thumbnail_key=key)
            model.publish("changed")
    except Problem:
        storage.delete(key)
        raise
    return model


def _lock(model: DiffusionModel) -> None:
    """Hold the model and its base until the transaction ends, then see them as they are.

    Without it a base could be taken back while somebody shares what builds on it.
    """
    wanted = Q(pk=model.pk) | Q(pk=model.base_model_id)
    list(DiffusionModel.objects.select_for_update().filter(wanted).order_by("pk"))
    model.refresh_from_db()
    if model.deleted_at is not None:
        raise Problem("not_found", _("This model was deleted."), status=404)


def _set_visibility(model: DiffusionModel, visibility: str) -> None:
    if visibility == Visibility.SHARED:
        base = model.base_model
        if model.is_adapter and base and base.visibility != Visibility.SHARED:
            message = _("Share its base model “%(base)s” first: without it nobody could use this.")
            message %= {"base": base.shown_title}
            raise Problem("base_not_shared", message, status=409, fields={"visibility": [message]})
        model.write(visibility=Visibility.SHARED)
        # To everyone but its owner it is new, and their pages say so.
        model.publish("registered")
        return
    _require_unshareable(model)
    # Those who lose it hear of the version before the row's, so that the owner, who gets both
    # events in any order, ends with the one that keeps the model.
    model.publish_gone("changed", version=model.version + 1)
    model.write(visibility=Visibility.PRIVATE, raise_version_by=2)
    model.publish("changed")
    _tell_listeners(model, "unshared")


def _require_unshareable(model: DiffusionModel) -> None:
    if model.owner_id is None:
        message = _("Models of the site are always shared; an administrator can deactivate them.")
        raise Problem("site_model", message, status=409, fields={"visibility": [message]})
    others = Q(visibility=Visibility.SHARED) | ~Q(owner=model.owner_id)
    if DiffusionModel.objects.building_on(model).filter(others).exists():
        message = _("Models of others, or shared ones, build on this; it has to stay shared.")
        raise Problem("model_in_use", message, status=409, fields={"visibility": [message]})


def _set_active(model: DiffusionModel, is_active: bool) -> None:
    """Switch a model on or off, and with it what builds on it."""
    model.write(is_active=is_active)
    model.publish("changed")
    dependants = DiffusionModel.objects.building_on(model)
    dependants.update(version=F("version") + 1)
    for dependant in dependants.select_related("base_model"):
        dependant.publish("changed")
        if not is_active:
            _tell_listeners(dependant, "deactivated")
    if not is_active:
        _tell_listeners(model, "deactivated")
