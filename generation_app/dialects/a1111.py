"""AUTOMATIC1111's API under `/sdapi/v1/`: painting, its progress, and what can be chosen.

Source of the shapes: stable-diffusion-webui, modules/api/api.py and modules/api/models.py.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.utils.translation import gettext as _
from drf_spectacular.utils import OpenApiParameter, OpenApiTypes, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from generation_app import services
from generation_app.dialects import a1111_reading as reading
from generation_app.dialects import a1111_shapes as shapes
from generation_app.dialects.adapter import (
    DialectView,
    PaintingView,
    UnknownRoute,
    Wish,
    body_of,
    pictures,
)
from generation_app.dialects.references import best_base, named, usable_models
from generation_app.engine.vocabulary import SCHEDULERS
from generation_app.foresight import Foresight
from generation_app.inputs import keep_input
from generation_app.models import CheckpointChoice, GenerationJob
from models_app.models import DiffusionModel
from models_app.services import resolve_model
from studio_project import events
from studio_project.api import Problem, signed_in
from studio_project.models import User
from studio_project.waiting import Waiting

ONCE = OpenApiParameter("Idempotency-Key", OpenApiTypes.STR, OpenApiParameter.HEADER)


class A1111View(DialectView):
    """A view that refuses as AUTOMATIC1111 does."""

    def error(self, status: int, problem: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return its error object; wrong fields are listed as FastAPI lists them, with 422."""
        return shapes.error(status, problem)


def _documented(name: str, answer: Any, request: Any = None, **more: Any) -> Any:
    """Describe an operation; without a name of its own two would be called alike."""
    return extend_schema(
        operation_id=f"a1111_{name}",
        tags=["a1111"],
        request=request,
        responses={200: answer, "default": shapes.ERROR},
        **more,
    )


# --- which model ----------------------------------------------------------------------------------
def checkpoint_of(user: User) -> DiffusionModel:
    """Return the model that is used when a request names none.

    Raises:
        Problem: `model_unavailable`, or the chosen one is gone.
    """
    choice = CheckpointChoice.objects.filter(owner=user).first()
    return best_base(user) if choice is None else resolve_model(user, choice.model_id)


def find_checkpoint(user: User, title: Any) -> DiffusionModel:
    """Return the model that a client means by a title of the list, a name or an id.

    Raises:
        Problem: As `resolve_model`; `model_not_found` also if the hash is another model's.
    """
    if not isinstance(title, str) or not title.strip():
        message = _("A model is an id or a name.")
        raise Problem("invalid", message, fields={reading.CHECKPOINT: [message]})
    reference, sha256 = shapes.parse_title(title)
    try:
        model = resolve_model(user, reference)
    except Problem as error:
        error.fields = {reading.CHECKPOINT: [error.detail]}
        raise
    if not model.sha256.startswith(sha256):
        message = _("There is no model “%(ref)s” that you may use.") % {"ref": title[:200]}
        fields = {reading.CHECKPOINT: [message]}
        raise Problem("model_not_found", message, status=404, fields=fields)
    return model


# --- painting -------------------------------------------------------------------------------------
class A1111PaintingView(A1111View, PaintingView):
    """What both ways of painting share."""

    def with_model(self, user: User, wish: Wish, checkpoint: Any) -> Wish:
        """Add the model: the one that the settings name, else the user's."""
        model = find_checkpoint(user, checkpoint) if checkpoint is not None else checkpoint_of(user)
        return replace(wish, body={**wish.body, "model": model.pk})

    def answer(self, request: Request) -> Response:
        """Paint, and answer when the pictures are there."""
        job, ignored = self.paint(request)
        shown = body_of(request).get("send_images") is not False
        return Response(shapes.painted(job, pictures(job), ignored, send_images=shown))


class TextToImage(A1111PaintingView):
    """`txt2img`."""

    def read(self, user: User, body: Mapping[str, Any]) -> Wish:
        """Take what the platform knows; with `enable_hr` also the second pass."""
        return self.with_model(user, *reading.read_request(body, reading.hires_fields(body)))

    @_documented(
        "txt2img", shapes.A1111ImagesSerializer, shapes.A1111RequestSerializer, parameters=[ONCE]
    )
    def post(self, request: Request) -> Response:
        """Paint from words."""
        return self.answer(request)


class ImageToImage(A1111PaintingView):
    """`img2img`, and with a mask inpainting."""

    def read(self, user: User, body: Mapping[str, Any]) -> Wish:
        """Keep the pictures as uploads are kept, and start from them."""
        wish, checkpoint = reading.read_request(body, reading.started_fields(body))
        wish = self.with_model(user, replace(wish, mode=reading.mode_of(body)), checkpoint)
        inputs = {
            name: {"upload_id": keep_input(user, file, field=field).pk}
            for name, (field, file) in reading.input_files(body).items()
        }
        return replace(wish, body={**wish.body, **inputs})

    @_documented(
        "img2img",
        shapes.A1111ImagesSerializer,
        shapes.A1111StartedRequestSerializer,
        parameters=[ONCE],
    )
    def post(self, request: Request) -> Response:
        """Paint over a picture, or where its mask is white."""
        return self.answer(request)


# --- my job ---------------------------------------------------------------------------------------
def current_job(user: User) -> GenerationJob | None:
    """Return the user's job that is at work, else the one that comes next."""
    mine = GenerationJob.objects.visible_to(user).defer("log_tail").order_by("created_at")
    return mine.running().first() or mine.queued().first()


class Progress(A1111View):
    """How far my current job is; nobody else's is shown."""

    @_documented("progress", shapes.A1111ProgressSerializer)
    def get(self, request: Request) -> Response:
        """Show it, with the picture in the making unless `skip_current_image`."""
        user = signed_in(request)
        job = current_job(user)
        count = GenerationJob.objects.visible_to(user).live().count()
        skipped = request.query_params.get("skip_current_image", "").lower() in ("1", "true")
        preview = events.get_preview(job.pk) if job and not skipped else None
        picture = base64.b64encode(preview).decode("ascii") if preview else None
        eta = Foresight(Waiting()).eta_seconds(job) if job else None
        return Response(shapes.progress(job, count, picture, eta))


class Interrupt(A1111View):
    """Ends my current job; nobody else's is touched."""

    @_documented("interrupt", OpenApiTypes.OBJECT)
    def post(self, request: Request) -> Response:
        """Cancel it; there may be none."""
        user = signed_in(request)
        job = current_job(user)
        if job is not None:
            services.cancel_generation(user, job)
        return Response({})


# --- what can be chosen ---------------------------------------------------------------------------
class Checkpoints(A1111View):
    """`sd-models`: everything I can paint with; a LoRA in it brings its base."""

    @_documented("sd_models", shapes.A1111CheckpointSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List them."""
        user = signed_in(request)
        models = named(user, usable_models(user, with_masks=True))
        models.sort(key=lambda pair: pair[1].type != DiffusionModel.Type.BASE)
        return Response([shapes.checkpoint(name, model) for name, model in models])


class Loras(A1111View):
    """`loras`: what `<lora:name:weight>` may name."""

    @_documented("loras", shapes.A1111LoraSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List them."""
        user = signed_in(request)
        models = named(user, usable_models(user))
        return Response([shapes.lora(name, model) for name, model in models if model.is_adapter])


class Samplers(A1111View):
    """`samplers`."""

    @_documented("samplers", shapes.A1111SamplerSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List them by the names they have there."""
        return Response(
            [
                {"name": words.a1111, "aliases": [name, words.title], "options": {}}
                for name, words in SCHEDULERS.items()
            ]
        )


class Options(A1111View):
    """`options`: the one setting that is the user's own is the model."""

    @_documented("options", shapes.A1111OptionsSerializer)
    def get(self, request: Request) -> Response:
        """Show which model is used when a request names none."""
        user = signed_in(request)
        models = usable_models(user, with_masks=True)
        try:
            chosen = checkpoint_of(user)
        except Problem:
            return Response(shapes.options(None))
        titles = {model.pk: shapes.title_of(name, model) for name, model in named(user, models)}
        return Response(shapes.options(chosen, titles.get(chosen.pk)))

    @_documented("set_options", OpenApiTypes.OBJECT, shapes.A1111OptionsSerializer)
    def post(self, request: Request) -> Response:
        """Choose the model for my later requests; other settings are ignored and listed."""
        user = signed_in(request)
        given = {name: value for name, value in body_of(request).items() if value is not None}
        if reading.CHECKPOINT in given:
            model = find_checkpoint(user, given[reading.CHECKPOINT])
            CheckpointChoice.objects.update_or_create(owner=user, defaults={"model": model})
        return Response({"ignored_fields": sorted(set(given) - {reading.CHECKPOINT})})


class Fixed(A1111View):
    """What is the same for everyone, and mostly empty: clients ask before they paint."""

    answer: Any = None

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        """Return it."""
        return Response(self.answer)


class Refresh(A1111View):
    """`refresh-checkpoints`, `refresh-loras`: the lists are always true."""

    @extend_schema(exclude=True)
    def post(self, request: Request) -> Response:
        """Do nothing."""
        return Response({})


class A1111Unknown(UnknownRoute, A1111View):
    """Whatever else is asked for below `/sdapi/`."""
