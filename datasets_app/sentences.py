"""The sentence for each reason why a file, an entry or a caption is not taken.

Codes are for programs and stay; sentences are for people, name the way out, and are translated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

SENTENCES: dict[str, str | Promise] = {
    # pictures
    "empty_file": _("This file is empty. Choose it again, or export the picture anew."),
    "not_a_picture": _(
        "This file is not a picture, whatever its name says. Add JPEG, PNG or WebP files."
    ),
    "unsupported_svg": _(
        "This file is a drawing (SVG), not a picture we can read. "
        "Export it as PNG and add it again."
    ),
    "unsupported_heic": _(
        "This file is not a picture we can read (HEIC). Export it as JPEG and add it again."
    ),
    "unsupported_avif": _(
        "This file is not a picture we can read (AVIF). Export it as JPEG and add it again."
    ),
    "unsupported_gif": _(
        "This file is not a picture we can read (GIF). Export it as PNG and add it again."
    ),
    "unsupported_format": _(
        "This file is not a picture we can read (%(format)s). "
        "Export it as JPEG or PNG and add it again."
    ),
    "truncated_picture": _(
        "This picture ends too early: it was not copied completely. Copy it anew and add it again."
    ),
    "damaged_picture": _(
        "This picture is damaged and cannot be read. Open it in a picture program, "
        "export it as PNG and add it again."
    ),
    "too_many_pixels": _(
        "This picture has more than %(megapixels)s megapixels. Make it smaller and add it again."
    ),
    "too_long": _(
        "One side of this picture is longer than %(pixels)s pixels. Crop it and add it again."
    ),
    "animated_picture": _(
        "This picture is an animation. Export the frame you want as PNG and add that."
    ),
    "duplicate_picture": _(
        "The same picture is in this dataset already, as “%(other)s”. It was not added twice."
    ),
    # captions
    "caption_too_long": _(
        "This caption is longer than %(limit)s characters. Shorten it and send it again."
    ),
    "caption_invalid": _("This caption holds characters that are not text. Write it anew."),
    "caption_encoding": _("This text is not in UTF-8. Save it as UTF-8 and add it again."),
    "caption_unmatched": _(
        "No picture of this dataset has this name. Give the text the picture's name, "
        "and add pictures before texts."
    ),
    "caption_ambiguous": _(
        "Several pictures of this dataset have this name. Write their captions on the page."
    ),
    "metadata_invalid": _(
        'Line %(line)s is not an object with "file_name" and "text". '
        "Correct it and add the file again; nothing of it was used."
    ),
    "repeats_invalid": _(
        "Repeats are a whole number from 1 to %(limit)s. Correct it and send it again."
    ),
    "too_many_captions": _(
        "This request holds more than %(limit)s captions. Split it and send the parts one by one."
    ),
    "metadata_too_large": _(
        "This file is larger than %(megabytes)s MB. Split it and add the parts one by one."
    ),
    # archives
    "archive_unreadable": _(
        "This file is not a zip archive we can read. Pack the pictures as an ordinary zip."
    ),
    "archive_empty": _("This archive holds no files. Pack the pictures and add it again."),
    "archive_encrypted": _("This archive has a password. Pack the pictures without one."),
    "archive_too_many_entries": _(
        "This archive holds more than %(limit)s files. Split it and add the parts one by one."
    ),
    "archive_too_large": _(
        "This archive unpacks to more than %(megabytes)s MB. Split it and add the parts one by one."
    ),
    "archive_bomb": _(
        "This archive unpacks to more than %(ratio)s times its size, which pictures never do. "
        "Pack the pictures anew."
    ),
    "archive_unsafe_name": _(
        "This name points outside the archive. Pack the pictures with plain names."
    ),
    "archive_link": _("This is a link, not a file. Pack the picture itself."),
    "archive_nested": _("This is an archive inside the archive. Add it on its own."),
    "archive_method": _("This file is packed in a way we do not read. Use the ordinary method."),
    "archive_entry_too_large": _("This file is too large. Make the picture smaller."),
    "archive_entry_damaged": _("This file is damaged inside the archive. Pack it anew."),
    # room
    "storage_full": _(
        "There is no room left for it: the owner of this dataset may store %(megabytes)s MB. "
        "Delete what is no longer needed, or ask an administrator for more."
    ),
    "disk_full": _(
        "The site's disk is full. Delete what is no longer needed, or ask an administrator."
    ),
}


def sentence(code: str, params: Mapping[str, Any] | None = None) -> str:
    """Return the sentence for a code, in the language of the request."""
    return str(SENTENCES[code]) % (params or {})
