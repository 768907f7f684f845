"""What people ask of the generator: paint, cancel, delete.

Each verb checks, writes and rings; none of them paints. Problems are raised as
`studio_project.api.Problem`, which the API and the pages both show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Greatest
from django.utils import timezone
from django.utils.translation import gettext as _

from generation_app import files
from generation_app.chosen import Chosen, base_of, choose_loras, require_mode, resolve_named
from generation_app.company import joint_key, take_run_alone
from generation_app.engine.errors import MESSAGES
from generation_app.engine.request import (
    ARCHITECTURE_DEFAULTS,
    MODES,
    GenerationRequest,
    Limits,
    PictureRequest,
    RequestError,
    resolve_request,
)
from generation_app.foresight import foresee
from generation_app.history import Forecast, forecast
from generation_app.inputs import Inputs, glance_at_inputs, resolve_inputs, size_like
from generation_app.models import GeneratedImage, GenerationJob
from generation_app.wording import TooManyVariations, take_loras, variations
from models_app.models import DiffusionModel
from models_app.withdrawal import fail_waiting
from studio_project import events, jobs, storage
from studio_project.api import Problem
from studio_project.jobs.workers import live_workers
from studio_project.models import User

Status = GenerationJob.Status
# Room for one request's pictures; the floor of the disk comes on top.
WORKING_BYTES = 16 * 1024**2
_NOWHERE = {"width": 512, "height": 512}


FindInputs = Callable[[User, str, Mapping[str, Any]], Inputs]


@dataclass(frozen=True)
class Asked:
    """A request, understood: its values, its models, its pictures, and each image's own words."""

    request: GenerationRequest
    chosen: Chosen
    inputs: Inputs
    prompts: tuple[str, ...]
    run_alone: bool

    def as_parameters(self) -> dict[str, Any]:
        """Return everything a job keeps of it, as plain JSON."""
        loras = [
            {"id": lora.pk, "name": lora.name, "title": lora.title, "weight": weight}
            for lora, weight in self.chosen.loras
        ]
        values = {**self.request.as_parameters(), "loras": loras, "seeds": self.request.seeds}
        if self.prompts:
            values["prompts"] = list(self.prompts)
        if self.run_alone:
            values["run_alone"] = True
        return values


# --- ask ------------------------------------------------------------------------------------------
def submit_generation(user: User, *, mode: str, body: Mapping[str, Any]) -> GenerationJob:
    """Queue a request for pictures.

    Args:
        user: Who asks.
        mode: A value of `GenerationJob.Mode`.
        body: The request as it came; `model` is an id or a name.

    Raises:
        Problem: `method_unavailable`, `model_not_found`, `model_ambiguous`, `model_unavailable`,
            `model_incompatible`, `invalid` with the fields that are wrong, `not_found` for a
            picture, `disk_full`, `storage_full` or `active_jobs_limit`.
    """
    asked = _understand(user, mode, body)
    return queue(_job_of(user, mode, asked), asked.chosen.all)


def _job_of(user: User, mode: str, asked: Asked) -> GenerationJob:
    model = asked.chosen.model
    return GenerationJob(
        owner=user,
        mode=mode,
        model=model,
        model_name=model.name,
        model_title=model.shown_title,
        base_model=asked.chosen.base,
        image=asked.inputs.image,
        mask_image=asked.inputs.mask_image,
        parameters=asked.as_parameters(),
        total_steps=asked.request.steps_per_image * asked.request.num_images,
    )


def queue(job: GenerationJob, needed: list[DiffusionModel]) -> GenerationJob:
    """Save a new job and ring, if there is room and its owner may have one more.

    Raises:
        Problem: `disk_full`, `storage_full` or `active_jobs_limit`.
    """
    storage.require_free_space(WORKING_BYTES)
    jobs.require_stored_room(job.owner)
    job.status, job.queued_at = Status.QUEUED, timezone.now()
    _foretell(job, needed)
    with transaction.atomic():
        jobs.enforce_active_cap(job.owner)
        job.save(force_insert=True)
        job.needed_models.set(needed)
        job.announce()
        jobs.ring(GenerationJob.queue_name)
    return job


def _foretell(job: GenerationJob, needed: list[DiffusionModel]) -> Forecast | None:
    """Note on a new job what it needs, who may share its batch and how long it will take."""
    job.required_bytes = sum(model.size_bytes for model in needed)
    if job.base_model is None:
        return None
    if job.remake_of is None:
        job.joint_key = joint_key(job.mode, job.parameters, job.base_model, needed)
    workers = live_workers(GenerationJob.queue_name)
    told = forecast(job.base_model, job.mode, job.parameters, workers)
    if told is not None:
        job.expected_seconds, job.expected_load_seconds = told.seconds, told.load_seconds
        job.expected_joint_seconds = told.joint_seconds
    return told


def estimate_generation(user: User, *, mode: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Say how long a request would take, without making it.

    Of the picture it would start from only the measures are looked at, and a mask is not needed.

    Returns:
        `total_steps`, `num_images`; `seconds` for the painting itself, `load_seconds` for a model
        that is not ready and `basis`, as in `history.Forecast`; `position` in the queue and
        `eta_seconds` until it is done. None stands for what nothing here tells yet.

    Raises:
        Problem: As `submit_generation`.
    """
    asked = _understand(user, mode, body, find_inputs=glance_at_inputs)
    job = _job_of(user, mode, asked)
    told = _foretell(job, asked.chosen.all)
    return {
        "total_steps": job.total_steps,
        "num_images": asked.request.num_images,
        "seconds": round(told.seconds, 1) if told else None,
        "load_seconds": round(told.load_seconds, 1) if told else None,
        "basis": told.basis if told else None,
        **foresee(job),
    }


def _understand(
    user: User, mode: str, body: Mapping[str, Any], *, find_inputs: FindInputs = resolve_inputs
) -> Asked:
    """Resolve every value of a request and every model and picture it names."""
    if mode not in GenerationJob.Mode.values:
        raise Problem("method_unavailable", _("This site cannot do that yet."), status=404)
    model = resolve_named(user, body.get("model"), "model")
    base = base_of(user, model)
    require_mode(mode, base)
    body, run_alone = take_run_alone(_with_tagged_loras(body))
    defaults = {**base.default_settings, **model.default_settings}
    if base.architecture not in MODES[mode].architectures:
        defaults = {}  # refused below, and its sizes mean nothing here
    inputs = find_inputs(user, mode, body)
    if inputs.image is not None:
        home = {**ARCHITECTURE_DEFAULTS.get(base.architecture, _NOWHERE), **defaults}
        size = (home["width"], home["height"])
        defaults |= size_like(inputs.image, home=size, mode=mode)
    request, prompts = _varied(user, _resolve(user, mode, body, base, defaults))
    chosen = Chosen(model, base, choose_loras(user, model, base, request))
    return Asked(request, chosen, inputs, prompts, run_alone)


def _with_tagged_loras(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Move the LoRAs that a prompt names into the list of LoRAs."""
    prompt, loras = body.get("prompt"), body.get("loras")
    if not isinstance(prompt, str) or not (loras is None or isinstance(loras, list)):
        return body
    prompt, tags = take_loras(prompt)
    if not tags:
        return body
    tagged = [{"model": tag.name, "weight": tag.weight} for tag in tags]
    return {**body, "prompt": prompt, "loras": [*(loras or []), *tagged]}


def _varied(user: User, request: GenerationRequest) -> tuple[GenerationRequest, tuple[str, ...]]:
    """Write out the variations of a prompt: each is painted, all of them equally often."""
    if not isinstance(request, PictureRequest):
        return request, ()
    most = user.max_images_per_request
    try:
        found = variations(request.prompt, most=most)
    except TooManyVariations as error:
        message = _("These variations mean %(count)s pictures; you may ask for %(most)s.") % {
            "count": error.count if error.count < 10**6 else "1000000+",
            "most": most,
        }
        raise Problem("too_many_variations", message, fields={"prompt": [message]}) from error
    if found == [request.prompt]:
        return request, ()
    rounds = min(-(-request.num_images // len(found)), most // len(found))
    return replace(request, num_images=rounds * len(found)), tuple(found * rounds)


def _resolve(
    user: User,
    mode: str,
    body: Mapping[str, Any],
    base: DiffusionModel,
    defaults: Mapping[str, Any],
) -> GenerationRequest:
    try:
        return resolve_request(
            body,
            architecture=base.architecture,
            mode=mode,
            defaults=defaults,
            limits=Limits(max_images=user.max_images_per_request),
        )
    except RequestError as error:
        fields = _sentences(error)
        name, sentences = next(iter(fields.items()))
        raise Problem("invalid", f"{name}: {sentences[0]}", fields=fields) from error


def _sentences(error: RequestError) -> dict[str, list[str]]:
    """Return what is wrong in the reader's language, by field."""
    fields: dict[str, list[str]] = {}
    for found in error.problems:
        sentence = _(MESSAGES[found.code]) % found.params
        fields.setdefault(found.field or "body", []).append(sentence)
    return fields


# --- change ---------------------------------------------------------------------------------------
def cancel_generation(user: User, job: GenerationJob) -> GenerationJob:
    """Ask a request to end; one that has ended already stays as it is."""
    job.request_cancel()
    job.refresh_from_db()
    return job


def delete_generation(user: User, job: GenerationJob) -> None:
    """Remove a request that has ended, with its pictures.

    Raises:
        Problem: `job_active` while it waits or runs.
    """
    with transaction.atomic():
        row = GenerationJob.objects.select_for_update().filter(pk=job.pk).first()
        if row is None:
            return
        if not row.is_final:
            raise Problem(
                "job_active",
                _("This request is still on its way."),
                status=409,
                hint=_("Cancel it first."),
            )
        images = list(row.images.all())
        freed = sum(image.size_bytes for image in images if image.deleted_at is None)
        User.objects.filter(pk=job.owner_id).update(
            stored_bytes=Greatest(F("stored_bytes") - freed, 0)
        )
        row.delete()
        _announce_deletion(job.noun, str(job.pk), job.version + 1, job.owner_id)
        transaction.on_commit(lambda: files.remove(images), robust=True)


def delete_image(user: User, image: GeneratedImage) -> None:
    """Remove one picture; its row stays without its file, so that the job's count is honest."""
    with transaction.atomic():
        changed = GeneratedImage.objects.filter(pk=image.pk, deleted_at=None).update(
            deleted_at=timezone.now()
        )
        if not changed:
            return
        User.objects.filter(pk=image.owner_id).update(
            stored_bytes=Greatest(F("stored_bytes") - image.size_bytes, 0)
        )
        _announce_deletion("generated_image", image.pk, 1, image.owner_id)
        transaction.on_commit(lambda: files.remove([image]), robust=True)


def _announce_deletion(noun: str, pk: int | str, version: int, owner_id: int) -> None:
    event = {
        "type": f"{noun}.deleted",
        "id": pk,
        "version": version,
        "ts": timezone.now().isoformat(),
    }
    events.publish(event, users=[owner_id])


# --- what other apps ask --------------------------------------------------------------------------
def check_default_settings(settings: Mapping[str, Any], category: str) -> dict[str, list[str]]:
    """Return what a request would refuse of a model's default settings, by field."""
    is_video = category == DiffusionModel.Category.VIDEO
    # The family only decides what is filled in, and nothing of that is looked at here.
    mode, architecture = ("image-to-video", "svd") if is_video else ("text-to-image", "sd1")
    try:
        resolve_request(settings, architecture=architecture, mode=mode)
    except RequestError as error:
        return _sentences(error)
    return {}


def model_changed(model: DiffusionModel, what: str) -> None:
    """End the queued requests that need a model which their owner may no longer use.

    Pictures already painted keep the model's name.
    """
    waiting = (
        GenerationJob.objects.filter(needed_models=model, status=Status.QUEUED)
        .select_related("owner")
        .distinct()
    )
    fail_waiting(waiting, model)
