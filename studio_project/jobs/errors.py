"""Error codes of jobs and the sentences they become in a reader's language."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

from django.utils import translation
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _


class RefusedError(Exception):
    """A claimed job cannot run; ``code`` of ``ERRORS`` says why, ``params`` of what."""

    def __init__(self, code: str, **params: Any) -> None:
        super().__init__(code)
        self.code, self.params = code, params


class Sentence(NamedTuple):
    """What went wrong, and the way out."""

    message: str | Promise
    hint: str | Promise


class ErrorText(TypedDict):
    """An error as pages and the API show it."""

    code: str
    message: str
    hint: str


ERRORS: dict[str, Sentence] = {
    "out_of_memory": Sentence(
        _("The device ran out of memory."),
        _("Choose a smaller resolution, batch size or rank, and start it again."),
    ),
    "non_finite_loss": Sentence(
        _("The training became unstable: the loss is no longer a number."),
        _("Start it again with a lower learning rate."),
    ),
    "non_finite_image": Sentence(
        _("The picture came out as no picture: its values are no numbers."),
        _("Try a lower guidance scale, another scheduler or a LoRA weight closer to 1."),
    ),
    "invalid_request": Sentence(
        _("This model cannot work with the value of “%(field)s”."),
        _("Change this value and send the request again."),
    ),
    "dataset_empty": Sentence(
        _("The dataset has no pictures."),
        _("Upload at least one picture, then start the training again."),
    ),
    "captions_missing": Sentence(
        _("Some pictures have no caption and the training has no trigger word."),
        _("Write captions or give a trigger word."),
    ),
    "model_incompatible": Sentence(
        _("The model does not fit this job."),
        _("Choose a model of the same architecture as its base."),
    ),
    "model_unavailable": Sentence(
        _("The model this job needs is not available to you any more."),
        _("Choose another model, or ask its owner or an administrator."),
    ),
    "disk_full": Sentence(
        _("The disk of the machine that did the work is full."),
        _("Delete what is no longer needed, or ask an administrator for more space."),
    ),
    "checkpoint_gone": Sentence(
        _("The checkpoint to go on from cannot be read any more."),
        _("Start the training again from the beginning."),
    ),
    "worker_lost": Sentence(
        _("The work broke off several times without getting any further."),
        _("Try smaller settings; if it happens again, show an administrator the job's log."),
    ),
    "internal": Sentence(
        _("Something unexpected went wrong."),
        _("An administrator finds the details in the log under job %(job)s."),
    ),
}


def describe_error(
    code: str, params: Mapping[str, Any] | None, language: str | None, *, job: object = ""
) -> ErrorText | None:
    """Turn a stored error into sentences.

    Args:
        code: One of ``ERRORS``; an unknown one reads like ``internal``. Empty: no error.
        params: Values for the sentence's placeholders.
        language: Language code of the reader; ``None`` or empty for the active one.
        job: The job's id, for sentences that name it.
    """
    if not code:
        return None
    sentence = ERRORS.get(code, ERRORS["internal"])
    values: defaultdict[str, Any] = defaultdict(str, {"job": job, **(params or {})})
    with translation.override(language or translation.get_language()):
        return {
            "code": code,
            "message": str(sentence.message) % values,
            "hint": str(sentence.hint) % values,
        }
