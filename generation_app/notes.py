"""What a finished request has to say about how it was painted, in the reader's language.

The engine knows no languages: it tells codes with parameters, which stand in the job's metrics.
"""

from __future__ import annotations

from collections import defaultdict

from django.utils.translation import gettext_lazy

from generation_app.models import GenerationJob

SENTENCES = {
    "prompt_truncated": gettext_lazy(
        "The prompt has %(tokens)s tokens and the model reads %(limit)s; the rest was left out."
    ),
    "rows_apart": gettext_lazy(
        "There was too little memory to compute it in one go, so it was done in parts, which took "
        "longer. The last bits of the picture may differ."
    ),
    "in_tiles": gettext_lazy(
        "There was too little memory to finish it as a whole, so it was done piece by piece. It "
        "may differ a little from the same picture made with more memory."
    ),
    "networks_in_turn": gettext_lazy(
        "The device does not hold the whole model, so its parts took turns on it, which took "
        "longer. The picture is the same."
    ),
}


def notes_of(job: GenerationJob) -> list[dict[str, str]]:
    """Return the code and the sentence of each note, in the active language."""
    return [
        {
            "code": note["code"],
            "message": str(SENTENCES[note["code"]]) % defaultdict(str, note.get("params") or {}),
        }
        for note in job.metrics.get("notes") or []
        if note.get("code") in SENTENCES
    ]
