"""The pictures that requests start from: uploaded, from the gallery, or from a dataset.

Each is kept once as a private copy of its own (`InputPicture`), so what a request needs cannot be
deleted under it. Whoever names a picture is checked to see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, BinaryIO

from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction
from django.db.models import F, ProtectedError, QuerySet
from django.db.models.functions import Greatest
from django.utils import timezone
from django.utils.translation import gettext as _
from PIL import Image

from datasets_app.keeping import SUFFIXES, keep, temporary_file
from datasets_app.models import DatasetImage
from datasets_app.refusals import Refused
from datasets_app.sentences import sentence
from generation_app.engine.reading import Limits
from generation_app.engine.request import MODES
from generation_app.engine.vocabulary import FIELD_ALIASES
from generation_app.models import GeneratedImage, InputPicture
from studio_project import storage
from studio_project.api import Problem, whole_number
from studio_project.models import User

UNUSED_FOR = timedelta(hours=24)
MAX_UPLOAD_BYTES = 32 * 1024**2
_BATCH = 200
# A picture keeps its own size where the model is at home with about as many pixels.
_FEWEST, _MOST = 0.5, 2.5


@dataclass(frozen=True)
class Inputs:
    """What one request starts from."""

    image: InputPicture | None = None
    mask_image: InputPicture | None = None


# --- keeping --------------------------------------------------------------------------------------
def upload(user: User, file: UploadedFile | None) -> InputPicture:
    """Keep a picture that somebody sent.

    Raises:
        Problem: `invalid` naming `file`, `request_too_large`, `storage_full` or `disk_full`.
    """
    if file is None or file.file is None:
        message = _("Send a picture in the field “file”.")
        raise Problem("invalid", message, fields={"file": [message]})
    if (file.size or 0) > MAX_UPLOAD_BYTES:
        message = _("This picture is larger than %(megabytes)s MB; export a smaller one.") % {
            "megabytes": MAX_UPLOAD_BYTES // 1024**2
        }
        raise Problem("request_too_large", message, status=413, fields={"file": [message]})
    return keep_input(user, file.file, field="file")  # type: ignore[arg-type]


def keep_input(user: User, stream: BinaryIO, *, field: str) -> InputPicture:
    """Keep a picture, once.

    Args:
        user: Whose it is.
        stream: Its file.
        field: What a refusal calls it.

    Raises:
        Problem: Why it cannot be read, naming the field; `storage_full` or `disk_full`.
    """
    storage.require_free_space(MAX_UPLOAD_BYTES)
    with temporary_file() as kept:
        try:
            picture = keep(stream, kept)
        except Refused as refused:
            message = sentence(refused.code, refused.params)
            raise Problem(refused.code, message, fields={field: [message]}) from refused
        known = InputPicture.objects.filter(owner=user, pixel_sha256=picture.pixel_sha256)
        if (same := _touched(known)) is not None:
            return same
        key = storage.new_key("inputs", user.pk, suffix=SUFFIXES[picture.format])
        try:
            storage.save(key, kept)
            return _insert(
                user,
                key=key,
                width=picture.width,
                height=picture.height,
                size_bytes=picture.size_bytes,
                format=picture.format,
                pixel_sha256=picture.pixel_sha256,
            )
        except IntegrityError:  # the same picture was faster in another request
            storage.delete(key)
            if (same := _touched(known)) is None:
                raise
            return same
        except BaseException:
            storage.delete(key)
            raise


def _touched(known: Any) -> InputPicture | None:
    """Return a picture that is kept already, safe from the sweeper for another day."""
    known.update(used_at=timezone.now())
    found: InputPicture | None = known.first()
    return found


def _insert(user: User, **fields: Any) -> InputPicture:
    """Make the row and count its bytes, in one transaction."""
    size_bytes = fields["size_bytes"]
    with transaction.atomic():
        room = F("stored_bytes") + size_bytes
        owner = User.objects.filter(pk=user.pk, max_stored_bytes__gte=room)
        if not owner.update(stored_bytes=room):
            raise Problem(
                "storage_full",
                _("Your room is used up, so this picture was not stored."),
                status=507,
                hint=_("Delete pictures, datasets or models, or ask an administrator for more."),
            )
        return InputPicture.objects.create(owner=user, **fields)


def remove_unused() -> int:
    """Remove input pictures that no request has needed for a day; return how many."""
    before = timezone.now() - UNUSED_FOR
    old = InputPicture.objects.unused().filter(used_at__lt=before).order_by("used_at")
    number = 0
    for picture in old[:_BATCH]:
        try:
            with transaction.atomic():
                rows = InputPicture.objects.unused().filter(pk=picture.pk, used_at__lt=before)
                gone, _kinds = rows.delete()
                if not gone:
                    continue
                User.objects.filter(pk=picture.owner_id).update(
                    stored_bytes=Greatest(F("stored_bytes") - picture.size_bytes, 0)
                )
        except (ProtectedError, IntegrityError):  # a request has taken it this moment
            continue
        storage.delete(picture.key)
        number += 1
    return number


# --- what a request names -------------------------------------------------------------------------
def resolve_inputs(user: User, mode: str, body: Mapping[str, Any]) -> Inputs:
    """Find the pictures that a request names, by any of the names of their fields.

    Each is an object with one of `upload_id`, `image_id` (of the gallery), `dataset_image_id`.

    Raises:
        Problem: `invalid` or `not_found`, naming the field; `mask_size`, `mask_empty`.
    """
    named = {
        field: (key, value)
        for key, value in body.items()
        if (field := FIELD_ALIASES.get(key, key)) in MODES[mode].inputs and value is not None
    }
    found: dict[str, InputPicture] = {}
    for field in MODES[mode].inputs:
        key, value = named.get(field, (field, None))
        found[field] = _find(user, value, key)
    inputs = Inputs(**found)
    if inputs.image is not None and inputs.mask_image is not None:
        _check_mask(inputs.image, inputs.mask_image, named["mask_image"][0])
    return inputs


def glance_at_inputs(user: User, mode: str, body: Mapping[str, Any]) -> Inputs:
    """Measure the picture that a request would start from; nothing is kept and no file is opened.

    A mask says nothing about the work, so it is not asked for.

    Raises:
        Problem: `invalid` or `not_found`, naming the field.
    """
    if "image" not in MODES[mode].inputs:
        return Inputs()
    named = {FIELD_ALIASES.get(key, key): key for key in body if body[key] is not None}
    field = named.get("image", "image")
    kind, pk = _reference(body.get(field), field)
    rows: QuerySet[Any] = {
        "upload_id": InputPicture.objects.visible_to,
        "image_id": GeneratedImage.objects.visible_to,
        "dataset_image_id": DatasetImage.objects.visible_to,
    }[kind](user)
    size = rows.filter(pk=pk).values("width", "height").first()
    if size is None:
        raise _not_found(field)
    return Inputs(image=InputPicture(**size))


def _reference(value: Any, field: str) -> tuple[str, int]:
    """Return which kind of picture is named, and its id."""
    kinds = ("upload_id", "image_id", "dataset_image_id")
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in kinds:
        raise _wrong(
            field,
            _("Name a picture: an object with “upload_id”, “image_id” or “dataset_image_id”."),
        )
    kind, reference = next(iter(value.items()))
    number = None if isinstance(reference, bool) else whole_number(str(reference))
    if number is None:
        raise _wrong(field, _("A picture's id is a whole number."))
    return kind, number


def _find(user: User, value: Any, field: str) -> InputPicture:
    kind, pk = _reference(value, field)
    if kind == "upload_id":
        uploaded = _touched(InputPicture.objects.visible_to(user).filter(pk=pk))
        if uploaded is None:
            raise _not_found(field)
        return uploaded
    key = _key_of(user, kind, pk)
    if not key:
        raise _not_found(field)
    try:
        with storage.open_key(key) as stream:
            return keep_input(user, stream, field=field)
    except FileNotFoundError as error:
        raise _not_found(field) from error


def _key_of(user: User, kind: str, pk: int) -> str:
    """Return the stored file of a picture this user may see; of a clip, its still."""
    if kind == "dataset_image_id":
        picture = DatasetImage.objects.visible_to(user).filter(pk=pk).first()
        return picture.key if picture else ""
    image = GeneratedImage.objects.visible_to(user).filter(pk=pk).first()
    if image is None:
        return ""
    return image.thumbnail_key if image.is_video else image.key


def _check_mask(image: InputPicture, mask: InputPicture, field: str) -> None:
    if (image.width, image.height) != (mask.width, mask.height):
        raise _wrong(
            field,
            _("The mask is %(mask)s pixels and the picture %(image)s: make them equal.")
            % {
                "mask": f"{mask.width} × {mask.height}",
                "image": f"{image.width} × {image.height}",
            },
            code="mask_size",
        )
    with storage.open_key(mask.key) as stream:
        _darkest, lightest = Image.open(stream).convert("L").getextrema()
    if int(lightest) < 128:  # type: ignore[arg-type]
        raise _wrong(
            field,
            _("The mask is black all over: paint white what shall be painted anew."),
            code="mask_empty",
        )


def _wrong(field: str, message: str, *, code: str = "invalid") -> Problem:
    return Problem(code, message, fields={field: [message]})


def _not_found(field: str) -> Problem:
    message = _("There is no such picture, or you may not see it.")
    return Problem("not_found", message, status=404, fields={field: [message]})


# --- sizes ----------------------------------------------------------------------------------------
def size_like(picture: InputPicture, *, home: tuple[int, int], mode: str) -> dict[str, int]:
    """Return the size that a request gets if it names none.

    Pictures keep their shape, and their own size unless the model is not at home with it; clips
    keep the model's size, turned upright for an upright picture.

    Args:
        picture: What the request starts from.
        home: (width, height) that the model was made for.
        mode: What is asked for.
    """
    width, height = home
    if mode == "image-to-video":
        if (picture.width < picture.height) != (width < height) and width != height:
            width, height = height, width
        return {"width": width, "height": height}
    limits = Limits()
    pixels, own = width * height, picture.width * picture.height
    at_home = _FEWEST * pixels <= own <= min(_MOST * pixels, limits.max_pixels)
    factor = 1.0 if at_home else (pixels / own) ** 0.5
    sides = (
        min(max(int(side * factor) // 8 * 8, limits.min_side), limits.max_side)
        for side in (picture.width, picture.height)
    )
    return dict(zip(("width", "height"), sides, strict=True))
