"""OpenAI's images: `POST /v1/images/generations` and `GET /v1/models`.

Source of the shapes: OpenAI's API reference (Images, Models, Error codes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.urls import reverse
from django.utils.translation import gettext as _
from drf_spectacular.utils import OpenApiParameter, OpenApiTypes, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from generation_app.dialects.adapter import (
    DialectView,
    PaintingView,
    UnknownRoute,
    Wish,
    as_base64,
    body_of,
    pictures,
)
from generation_app.dialects.references import best_base, named, usable_models
from generation_app.engine.request import field_names
from generation_app.models import GeneratedImage
from models_app.models import DiffusionModel
from studio_project.api import Problem, signed_in
from studio_project.models import User

FORMATS = ("url", "b64_json")
# What OpenAI knows, and our own fields beside it (`extra_body` of its package).
TAKEN = frozenset({"model", "prompt", "n", "size", "run_alone"}) | field_names("text-to-image")
READ_HERE = frozenset({"response_format", "user", "stream"})
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
ONCE = OpenApiParameter("Idempotency-Key", OpenApiTypes.STR, OpenApiParameter.HEADER)


# How OpenAI refuses.
ERROR = inline_serializer(
    "OpenAIError",
    {
        "error": inline_serializer(
            "OpenAIErrorDetail",
            {
                "message": serializers.CharField(),
                "type": serializers.CharField(),
                "param": serializers.CharField(allow_null=True),
                "code": serializers.CharField(),
            },
        )
    },
)


class OpenAIImagesRequestSerializer(serializers.Serializer):
    """A request; our own fields are taken beside these, all others are ignored and listed."""

    prompt = serializers.CharField()
    model = serializers.CharField(
        required=False, help_text="Id or name of a model; without it the largest ready base."
    )
    n = serializers.IntegerField(required=False)
    size = serializers.CharField(required=False, help_text="WIDTHxHEIGHT, or auto.")
    response_format = serializers.ChoiceField(
        required=False, choices=FORMATS, help_text="Without it each picture comes as both."
    )
    user = serializers.CharField(required=False, help_text="Taken and not used.")


IMAGES = inline_serializer(
    "OpenAIImages",
    {
        "created": serializers.IntegerField(),
        "data": inline_serializer(
            "OpenAIImage",
            {
                "b64_json": serializers.CharField(required=False),
                "url": serializers.CharField(required=False, help_text="Needs the same token."),
            },
            many=True,
        ),
        "job_id": serializers.UUIDField(help_text="The job, under /api/generate/."),
        "ignored_fields": serializers.ListField(child=serializers.CharField()),
    },
)


class OpenAIModelSerializer(serializers.Serializer):
    """A model."""

    id = serializers.CharField(help_text="What `model` takes.")
    object = serializers.CharField()
    created = serializers.IntegerField()
    owned_by = serializers.CharField()


MODELS = inline_serializer(
    "OpenAIModelList",
    {"object": serializers.CharField(), "data": OpenAIModelSerializer(many=True)},
)


class OpenAIView(DialectView):
    """A view that refuses as OpenAI does."""

    def error(self, status: int, problem: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return `{"error": {message, type, param, code}}`."""
        kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        text = " ".join(part for part in (problem["detail"], problem.get("hint")) if part)
        fields = list(problem.get("errors", {}))
        param = fields[0] if fields else None
        return status, {
            "error": {"message": text, "type": kind, "param": param, "code": problem["code"]}
        }


class ImageGenerations(OpenAIView, PaintingView):
    """Pictures from words."""

    @extend_schema(
        operation_id="openai_images_generations",
        tags=["openai"],
        request=OpenAIImagesRequestSerializer,
        responses={200: IMAGES, "default": ERROR},
        parameters=[ONCE],
    )
    def post(self, request: Request) -> Response:
        """Paint, and answer when the pictures are there."""
        job, ignored = self.paint(request)
        wanted = body_of(request).get("response_format")
        return Response(
            {
                "created": int(job.created_at.timestamp()),
                "data": [_picture(request, image, wanted) for image in pictures(job)],
                "job_id": str(job.pk),
                "ignored_fields": ignored,
            }
        )

    def read(self, user: User, body: Mapping[str, Any]) -> Wish:
        """Take our fields and OpenAI's; `size: auto` is the model's own."""
        given = {name: value for name, value in body.items() if value is not None}
        _check(given)
        wish = {name: value for name, value in given.items() if name in TAKEN}
        if wish.get("size") == "auto":
            del wish["size"]
        if "model" not in wish:
            wish["model"] = best_base(user).pk
        return Wish(wish, sorted(set(given) - TAKEN - READ_HERE))


def _check(body: Mapping[str, Any]) -> None:
    """Refuse what the API below does not see."""
    if "prompt" not in body:
        _refuse("prompt", _("This value is needed."))
    if body.get("response_format", "url") not in FORMATS:
        _refuse("response_format", _("Choose url or b64_json."))
    if not isinstance(body.get("user", ""), str):
        _refuse("user", _("This has to be text."))
    if body.get("stream"):
        _refuse("stream", _("Pictures come when they are finished; this site does not stream."))


def _refuse(field: str, message: str) -> None:
    raise Problem("invalid", f"{field}: {message}", fields={field: [message]})


def _picture(request: Request, image: GeneratedImage, wanted: str | None) -> dict[str, str]:
    made = {}
    if wanted in (None, "b64_json"):
        made["b64_json"] = as_base64(image)
    if wanted in (None, "url"):
        made["url"] = request.build_absolute_uri(reverse("image-file", args=[image.pk]))
    return made


class ModelList(OpenAIView):
    """What can be painted with."""

    @extend_schema(
        operation_id="openai_models_list",
        tags=["openai"],
        responses={200: MODELS, "default": ERROR},
    )
    def get(self, request: Request) -> Response:
        """List the models that I can use now."""
        user = signed_in(request)
        rows = [_model(name, model) for name, model in named(user, usable_models(user))]
        return Response({"object": "list", "data": rows})


class ModelDetail(OpenAIView):
    """One model."""

    @extend_schema(
        operation_id="openai_models_retrieve",
        tags=["openai"],
        responses={200: OpenAIModelSerializer, "default": ERROR},
    )
    def get(self, request: Request, reference: str) -> Response:
        """Show a model of the list."""
        user = signed_in(request)
        for name, model in named(user, usable_models(user)):
            if reference in (name, str(model.pk)):
                return Response(_model(name, model))
        message = _("There is no such model that you may use.")
        raise Problem("model_not_found", message, status=404, fields={"model": [message]})


def _model(name: str, model: DiffusionModel) -> dict[str, Any]:
    owner = model.owner.get_username() if model.owner else "studio"
    created = int(model.created_at.timestamp())
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


class OpenAIUnknown(UnknownRoute, OpenAIView):
    """Whatever else is asked for below `/v1/`."""
