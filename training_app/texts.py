"""Sentences about trainings, looked up by code so that each reader's language is used.

The trainer knows no languages: it raises codes with parameters. The errors of jobs have theirs in
`studio_project.jobs.errors`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy

from training_app.trainer.config import ConfigError

CONFIG_SENTENCES = {
    "unknown_field": gettext_lazy("A training has no such setting."),
    "wrong_type": gettext_lazy("This is the wrong kind of value."),
    "not_finite": gettext_lazy("This has to be a finite number."),
    "out_of_range": gettext_lazy("Choose a value from %(minimum)s to %(maximum)s."),
    "not_a_choice": gettext_lazy("Choose one of: %(choices)s."),
    "not_a_multiple": gettext_lazy("This has to be a multiple of %(multiple)s."),
    "too_long": gettext_lazy("Use at most %(maximum)s characters."),
    "too_many": gettext_lazy("Give at most %(maximum)s."),
    "required": gettext_lazy("This is needed here."),
    "not_for_method": gettext_lazy("The chosen method has no such setting."),
    "not_trainable": gettext_lazy("Models of this family cannot be trained here yet."),
    "not_installed": gettext_lazy(
        "This needs the package %(package)s, which is not installed. Choose another value, or ask "
        "an administrator to install it."
    ),
    "needs_validation": gettext_lazy("This needs at least one held-out picture."),
    "unequal_shares": gettext_lazy(
        "%(devices)s devices cannot share a batch of %(batch)s pictures equally. Change one of the "
        "two."
    ),
}
WANTED_SENTENCES = {
    "a whole number": gettext_lazy("This has to be a whole number."),
    "a number": gettext_lazy("This has to be a number."),
    "text": gettext_lazy("This has to be text."),
    "a list of texts": gettext_lazy("This has to be a list of texts."),
    "true or false": gettext_lazy("This has to be true or false."),
}
NOTES = {
    "started": gettext_lazy("Started on %(worker)s."),
    "restarted": gettext_lazy("Started again on %(worker)s."),
    "resumed": gettext_lazy("Went on from the checkpoint at step %(step)s."),
    "started_anew": gettext_lazy("No checkpoint could be used, so it began at the first step."),
    "checkpoint_skipped": gettext_lazy(
        "The checkpoint %(checkpoint)s was damaged, so an older one was looked for."
    ),
    "sample_failed": gettext_lazy("The sample pictures of step %(step)s could not be painted."),
    "sample_out_of_memory": gettext_lazy(
        "There was no memory for the sample pictures of step %(step)s."
    ),
    "rolled_back": gettext_lazy(
        "The loss was no longer a number, so it went back to step %(step)s and goes on with half "
        "the learning rate (%(learning_rate)s)."
    ),
    "micro_batch_halved": gettext_lazy(
        "There was too little memory, so it looks at %(train_batch_size)s pictures at a time and "
        "adds up %(gradient_accumulation_steps)s batches for each step. The result is the same."
    ),
    "not_compiled": gettext_lazy(
        "The network could not be compiled on this machine, so it is trained the ordinary way."
    ),
    "pictures_cropped": ngettext_lazy(
        "%(count)s picture does not fit its size; up to %(share)s%% of it is cut off.",
        "%(count)s pictures do not fit their size; up to %(share)s%% of one is cut off.",
        "count",
    ),
    "pictures_enlarged": ngettext_lazy(
        "%(count)s picture is small and was enlarged %(factor)s times. A larger one would give a "
        "sharper model.",
        "%(count)s pictures are small and were enlarged, up to %(factor)s times. Larger ones would "
        "give a sharper model.",
        "count",
    ),
    "class_images_made": gettext_lazy(
        "Pictures of the class: %(count)s painted by the base model, %(reused)s used again from "
        "earlier trainings."
    ),
    "text_too_long": ngettext_lazy(
        "%(count)s caption is longer than the model reads; its end is not learned.",
        "%(count)s captions are longer than the model reads; their ends are not learned.",
        "count",
    ),
    "crashed": gettext_lazy("The training process ended unexpectedly at step %(step)s."),
    "given_back": gettext_lazy("The worker stopped; the training waits for another one."),
    "slice_over": gettext_lazy(
        "Its turn was over at step %(step)s, and somebody else was waiting. It goes on when it is "
        "its turn again."
    ),
    "stood_aside": gettext_lazy(
        "Waited %(seconds)s s in all while pictures were made that would not fit beside it."
    ),
    "could_not_stand_aside": gettext_lazy(
        "The machine has too little RAM for it to stand aside, so pictures that do not fit beside "
        "it wait until it is done."
    ),
    "paused": gettext_lazy("Paused at step %(step)s."),
    "kept": gettext_lazy(
        "Stopped at step %(step)s of %(total)s; what it had learned by then is kept."
    ),
    "nothing_to_keep": gettext_lazy("Stopped before its first step, so there was nothing to keep."),
    "canceled": gettext_lazy("Canceled at step %(step)s."),
    "failed": gettext_lazy("Failed at step %(step)s."),
    "chosen": gettext_lazy("The checkpoint at step %(step)s became the model “%(model)s”."),
    "registered": gettext_lazy("The model “%(model)s” is ready."),
}


def config_sentence(error: ConfigError) -> str:
    """Return what is wrong with a setting, in the active language."""
    if error.code == "wrong_type" and error.params.get("wanted") in WANTED_SENTENCES:
        return str(WANTED_SENTENCES[error.params["wanted"]])
    params = dict(error.params)
    if "choices" in params:
        params["choices"] = ", ".join(map(str, params["choices"]))
    return _filled(str(CONFIG_SENTENCES.get(error.code, error.message)), params)


def note_sentence(code: str, params: Mapping[str, Any]) -> str:
    """Return one line of a timeline, in the active language."""
    values = {"code": code, **params}
    if isinstance(values.get("share"), int | float):
        values["share"] = round(100 * values["share"])
    return _filled(NOTES.get(code, _("Note: %(code)s.")), values)


def _filled(sentence: str | Promise, params: Mapping[str, Any]) -> str:
    values = {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in params.items()
    }
    # A sentence with a plural chooses it here, by its count.
    return str(sentence % defaultdict(str, values))  # type: ignore[operator]
