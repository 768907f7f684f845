"""What people do with datasets: create, rename, share, delete, add pictures, write captions.

Every verb checks who asks, changes rows and the counts kept beside them in one transaction, and
tells everyone concerned on commit. How files are read is in ``intake``; how they go is in
``removal``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Greatest
from django.utils import timezone
from django.utils.translation import gettext as _

from datasets_app.captions import clean_caption, clean_repeats
from datasets_app.intake import Intake, UploadResult, dataset_gone
from datasets_app.models import Dataset, DatasetImage
from datasets_app.names import has_controls
from datasets_app.refusals import Refused
from datasets_app.removal import collect_garbage, register_image_guard
from datasets_app.sentences import sentence
from studio_project import storage
from studio_project.api import Problem
from studio_project.models import AuditEntry, User, Visibility

__all__ = [
    "UploadResult",
    "add_files",
    "collect_garbage",
    "create_dataset",
    "delete_dataset",
    "delete_image",
    "edit_dataset",
    "edit_image",
    "register_image_guard",
    "rename_dataset",
    "repeat_images",
    "request_too_large",
    "share_dataset",
]


# --- datasets -----------------------------------------------------------------------------------
def create_dataset(
    user: User, *, name: str, visibility: str = Visibility.PRIVATE, type: str = Dataset.Type.IMAGE
) -> Dataset:
    """Make an empty dataset.

    Raises:
        Problem: `invalid`, naming the field.
    """
    dataset = Dataset(
        owner=user,
        name=_check_name(name),
        visibility=_check_visibility(visibility),
        type=_check_type(type),
    )
    with transaction.atomic():
        dataset.save()
        dataset.publish()
    return dataset


def rename_dataset(user: User, dataset: Dataset, name: str) -> Dataset:
    """Give a dataset another name."""
    return edit_dataset(user, dataset, name=name)


def share_dataset(user: User, dataset: Dataset, visibility: str) -> Dataset:
    """Let everybody see and use a dataset, or take that back."""
    return edit_dataset(user, dataset, visibility=visibility)


def edit_dataset(
    user: User, dataset: Dataset, *, name: str | None = None, visibility: str | None = None
) -> Dataset:
    """Change name, visibility or both.

    Raises:
        Problem: `invalid`, naming the field; 403 or 404 for those who may not.
    """
    fields: dict[str, str] = {}
    if name is not None:
        fields["name"] = _check_name(name)
    if visibility is not None:
        fields["visibility"] = _check_visibility(visibility)
    if not fields:
        _require_editable(user, dataset)
        return dataset
    with transaction.atomic():
        _lock(user, dataset)
        taken_back = (
            dataset.visibility == Visibility.SHARED
            and fields.get("visibility", Visibility.SHARED) != Visibility.SHARED
        )
        if fields.get("visibility", dataset.visibility) != dataset.visibility:
            AuditEntry.write(user, f"dataset.{fields['visibility']}", dataset.pk, name=dataset.name)
        if taken_back:
            # Those who lose it hear of the version before the row's, so that the owner, who gets
            # both events in any order, ends with the one that keeps the dataset.
            dataset.publish_gone("changed", version=dataset.version + 1)
        _write(dataset, raise_version_by=2 if taken_back else 1, **fields)
    return dataset


def delete_dataset(user: User, dataset: Dataset) -> None:
    """Delete a dataset and its pictures; files that a training needs stay until it has ended.

    Raises:
        Problem: 403 or 404 for those who may not.
    """
    with transaction.atomic():
        _lock(user, dataset)
        dataset.publish_gone("deleted", version=dataset.version + 1)
        now = timezone.now()
        Dataset.objects.filter(pk=dataset.pk).update(deleted_at=now, version=F("version") + 1)
        DatasetImage.objects.live().filter(dataset=dataset).update(deleted_at=now)
        _give_back(dataset, dataset.size_bytes)
        AuditEntry.write(user, "dataset.deleted", dataset.pk, name=dataset.name)


# --- pictures -----------------------------------------------------------------------------------
def add_files(user: User, dataset: Dataset, files: Sequence[UploadedFile]) -> UploadResult:
    """Add pictures, captions and zips of both; each file has an outcome of its own.

    Args:
        user: Who adds them; the room they take is the owner's.
        dataset: Where they go.
        files: The uploads of one request.

    Raises:
        Problem: 400 without files; 413 `request_too_large`, `too_many_files`; 507 `disk_full` when
            nothing could be stored; 403 or 404 for those who may not.
    """
    _require_editable(user, dataset)
    if not files:
        message = _("Send at least one file.")
        raise Problem("required", message, fields={"files": [message]})
    if len(files) > settings.STUDIO_MAX_REQUEST_FILES:
        raise request_too_large("too_many_files")
    total_bytes = sum(file.size or 0 for file in files)
    if total_bytes > settings.STUDIO_MAX_REQUEST_BYTES:
        raise request_too_large("request_too_large")
    storage.require_free_space(total_bytes)
    intake = Intake(dataset)
    try:
        return intake.take(files)
    finally:
        # Also when something broke half-way: what was taken until then is there.
        dataset.refresh_from_db()
        if not intake.result.is_empty:
            dataset.publish()


def edit_image(
    user: User, image: DatasetImage, *, caption: str | None = None, repeats: int | None = None
) -> DatasetImage:
    """Write a picture's caption, its repeats or both; trainings that run keep what they have.

    Raises:
        Problem: `caption_too_long`, `caption_invalid` or `repeats_invalid`, naming the field; 403
            or 404 for those who may not.
    """
    fields: dict[str, object] = {}
    if caption is not None:
        fields["caption"] = _cleaned(clean_caption, caption)
    if repeats is not None:
        fields["repeats"] = _cleaned(clean_repeats, repeats)
    if not fields:
        _require_editable(user, image.dataset)
        return image
    dataset = image.dataset
    with transaction.atomic():
        _lock(user, dataset)
        rows = DatasetImage.objects.live().filter(pk=image.pk)
        if not rows.update(version=F("version") + 1, **fields):
            raise _image_gone()
        _write(dataset)
    image.refresh_from_db(fields=("caption", "repeats", "version"))
    return image


def repeat_images(user: User, dataset: Dataset, image_ids: Collection[int], repeats: int) -> int:
    """Write the repeats of several pictures at once; trainings that run keep what they have.

    Returns:
        How many pictures there were; one that was deleted meanwhile is passed over.

    Raises:
        Problem: `repeats_invalid`, naming the field; 403 or 404 for those who may not.
    """
    value = _cleaned(clean_repeats, repeats)
    with transaction.atomic():
        _lock(user, dataset)
        rows = DatasetImage.objects.live().filter(dataset=dataset, pk__in=image_ids)
        changed = rows.update(version=F("version") + 1, repeats=value)
        if changed:
            _write(dataset)
    return changed


def delete_image(user: User, image: DatasetImage) -> None:
    """Delete a picture; its file stays for as long as a training needs it.

    Raises:
        Problem: 403 or 404 for those who may not, or when somebody was faster.
    """
    dataset = image.dataset
    with transaction.atomic():
        _lock(user, dataset)
        rows = DatasetImage.objects.live().filter(pk=image.pk)
        if not rows.update(deleted_at=timezone.now(), version=F("version") + 1):
            raise _image_gone()
        _give_back(dataset, image.size_bytes)
        _write(
            dataset,
            num_items=F("num_items") - 1,
            size_bytes=Greatest(F("size_bytes") - image.size_bytes, 0),
        )


# --- shared steps -------------------------------------------------------------------------------
def _require_editable(user: User, dataset: Dataset) -> None:
    """Refuse who may not change a dataset.

    Staff change what is shared; with the permission of the admin they also curate what is private,
    which the admin puts on record.
    """
    if Dataset.objects.editable_by(user).filter(pk=dataset.pk).exists():
        return
    live = Dataset.objects.live().filter(pk=dataset.pk)
    if user.is_staff and user.has_perm("datasets_app.change_dataset") and live.exists():
        return
    if not Dataset.objects.visible_to(user).filter(pk=dataset.pk).exists():
        raise dataset_gone()
    raise Problem(
        "permission_denied",
        _("Only its owner and administrators may change this dataset."),
        status=403,
        hint=_("You may train on it as it is, or make a dataset of your own."),
    )


def _lock(user: User, dataset: Dataset) -> None:
    """Hold the owner and the dataset until the transaction ends, then see it as it is.

    The order, user before dataset, is the same everywhere, so that two writers never wait for each
    other.
    """
    list(User.objects.select_for_update().filter(pk=dataset.owner_id).values_list("pk"))
    list(Dataset.objects.select_for_update().filter(pk=dataset.pk).values_list("pk"))
    _require_editable(user, dataset)
    dataset.refresh_from_db()


def _write(dataset: Dataset, *, raise_version_by: int = 1, **fields: object) -> None:
    """Write fields, raise the version and tell everyone."""
    Dataset.objects.filter(pk=dataset.pk).update(version=F("version") + raise_version_by, **fields)
    dataset.refresh_from_db()
    dataset.publish()


def _give_back(dataset: Dataset, size_bytes: int) -> None:
    User.objects.filter(pk=dataset.owner_id).update(
        stored_bytes=Greatest(F("stored_bytes") - size_bytes, 0)
    )


def _cleaned(clean: Callable[[Any], object], value: object) -> object:
    """Return what a picture's field shall hold, or the problem that names the field."""
    try:
        return clean(value)
    except Refused as refused:
        message = sentence(refused.code, refused.params)
        field = refused.code.partition("_")[0]
        raise Problem(refused.code, message, fields={field: [message]}) from refused


def _check_name(name: str) -> str:
    text = " ".join(str(name).split())
    if not text:
        raise _invalid("name", _("Give the dataset a name."))
    if len(text) > Dataset.NAME_LENGTH:
        message = _("Write at most %(limit)d characters.") % {"limit": Dataset.NAME_LENGTH}
        raise _invalid("name", message)
    if has_controls(text):
        raise _invalid("name", _("Remove the control characters."))
    return text


def _check_visibility(visibility: str) -> str:
    if visibility not in Visibility.values:
        raise _invalid("visibility", _("Choose private or shared."))
    return visibility


def _check_type(type: str) -> str:
    if type not in Dataset.Type.values:
        raise _invalid("type", _("Datasets hold pictures: the type is “image”."))
    return type


def _invalid(field: str, message: str) -> Problem:
    return Problem("invalid", message, fields={field: [message]})


def _image_gone() -> Problem:
    return Problem("not_found", _("There is no such picture, or you may not see it."), status=404)


def request_too_large(code: str) -> Problem:
    """Return the problem for a request with too many files or bytes, which names the way out."""
    sentences = {
        "too_many_files": _("This request holds more than %(files)d files."),
        "request_too_large": _("This request is larger than %(megabytes)d MB."),
    }
    limits = {
        "files": settings.STUDIO_MAX_REQUEST_FILES,
        "megabytes": settings.STUDIO_MAX_REQUEST_BYTES // 1024**2,
    }
    return Problem(
        code,
        sentences[code] % limits,
        status=413,
        fields={"files": [sentences[code] % limits]},
        hint=_("Send the files in several requests of at most 8 MB each."),
    )
