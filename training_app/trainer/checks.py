"""What is wrong with pictures and captions, told before any time is spent on them.

Nothing here stops a run: a picture that is cropped, enlarged or described at too great
length is trained on all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models_app.architectures import get_architecture
from models_app.loading import load_components
from training_app.trainer.buckets import cropped_share, enlargement
from training_app.trainer.dataset import Example
from training_app.trainer.reporting import Reporter
from training_app.trainer.request import TrainingRequest

#: Less than this share of a picture may be cut off without a word.
CROPPED_SHARE = 0.1
#: A picture may become this much larger without a word.
ENLARGED = 1.25


def report_problems(
    examples: Sequence[Example], request: TrainingRequest, reporter: Reporter
) -> None:
    """Tells the worker what its owner may want to mend.

    Raises:
        LoadingError: If the base model's tokenizer cannot be loaded.
    """
    sizes = [(each.image.width, each.image.height, each.bucket) for each in examples]
    cropped = [share for size in sizes if (share := cropped_share(*size)) > CROPPED_SHARE]
    if cropped:
        reporter.note("pictures_cropped", count=len(cropped), share=round(max(cropped), 3))
    enlarged = [factor for size in sizes if (factor := enlargement(*size)) > ENLARGED]
    if enlarged:
        reporter.note("pictures_enlarged", count=len(enlarged), factor=round(max(enlarged), 2))
    if count := _count_too_long([each.prompt for each in examples], request):
        reporter.note("text_too_long", count=count)


def _count_too_long(prompts: Iterable[str], request: TrainingRequest) -> int:
    """How many prompts have an end that no text encoder of the base model sees."""
    family = get_architecture(request.architecture)
    names = family.tokenizers
    parts = load_components(request.base_folder, request.architecture, only=names)
    return sum(
        any(len(parts[n](prompt).input_ids) > parts[n].model_max_length for n in names)
        for prompt in prompts
    )
