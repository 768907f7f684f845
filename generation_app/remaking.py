"""Makes one picture again, alone, from everything its job kept; the worker compares the two."""

from __future__ import annotations

from django.utils.translation import gettext as _

from generation_app.models import GeneratedImage, GenerationJob
from generation_app.services import queue
from models_app.models import DiffusionModel
from studio_project.api import Problem
from studio_project.models import User


def make_again(user: User, image: GeneratedImage) -> GenerationJob:
    """Queue a job that makes one picture again.

    Its values are those of the job that made the picture, with the picture's own seed and words.

    Raises:
        Problem: `model_unavailable` if a model it was made with cannot be used any more; as
            `queue`.
    """
    job = image.job
    parameters = {**job.parameters, "num_images": 1, "seed": image.seed, "seeds": [image.seed]}
    if "prompts" in job.parameters:
        parameters["prompts"] = [job.parameters["prompts"][image.index]]
    return queue(
        GenerationJob(
            owner=user,
            mode=job.mode,
            model=job.model,
            model_name=job.model_name,
            model_title=job.model_title,
            base_model=job.base_model,
            image=job.image,
            mask_image=job.mask_image,
            parameters=parameters,
            total_steps=job.total_steps // max(job.parameters["num_images"], 1),
            remake_of=image,
        ),
        _needed(user, job),
    )


def _needed(user: User, job: GenerationJob) -> list[DiffusionModel]:
    """Return every model the job was made with, if all of them can still be used."""
    wanted = {job.base_model_id, *(lora["id"] for lora in job.parameters.get("loras", []))}
    rows = DiffusionModel.objects.usable_by(user).filter(pk__in=wanted - {None})
    needed = list(rows)
    if {model.pk for model in needed} != wanted:
        raise Problem(
            "model_unavailable",
            _("A model that this picture was made with cannot be used any more."),
            status=409,
        )
    return needed
