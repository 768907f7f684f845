"""The routes under /api/generate/ and /api/images/: HTTP in, services called, JSON out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Prefetch, QuerySet
from django.http import HttpResponse, HttpResponseBase
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, OpenApiTypes, extend_schema
from rest_framework import generics
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.views import APIView

from generation_app import inputs, recalling, services
from generation_app.models import GeneratedImage, GenerationJob, InputPicture
from generation_app.request_serializers import (
    EstimateRequestSerializer,
    ImageToImageRequestSerializer,
    ImageToVideoRequestSerializer,
    InpaintRequestSerializer,
    RecallTextSerializer,
    TextToImageRequestSerializer,
    UploadRequestSerializer,
)
from generation_app.serializers import (
    GenerationEstimateSerializer,
    GenerationSerializer,
    RecalledSerializer,
    UploadedSerializer,
    UploadSerializer,
)
from studio_project import events, storage
from studio_project.api import (
    Problem,
    StrictJSONParser,
    get_visible,
    idempotent,
    signed_in,
    wait_for,
    wait_seconds,
)
from studio_project.models import User

WAIT = OpenApiParameter(
    "Prefer", OpenApiTypes.STR, OpenApiParameter.HEADER, description="wait=N: answer when it ends."
)
ONCE = OpenApiParameter("Idempotency-Key", OpenApiTypes.STR, OpenApiParameter.HEADER)


class GenerationFilter(filters.FilterSet):
    """What a list of requests can be narrowed to."""

    status = filters.MultipleChoiceFilter(choices=GenerationJob.Status.choices)
    mode = filters.MultipleChoiceFilter(choices=GenerationJob.Mode.choices)
    model = filters.NumberFilter(field_name="model_id")
    base_model = filters.NumberFilter(field_name="base_model_id")
    created_after = filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="gt")
    owner = filters.ChoiceFilter(choices=[("me", "me")], method="of_owner")
    search = filters.CharFilter(field_name="parameters__prompt", lookup_expr="icontains")

    class Meta:
        model = GenerationJob
        fields: tuple[str, ...] = ()

    def of_owner(self, rows: QuerySet[Any], name: str, value: str) -> QuerySet[Any]:
        """Requests are one's own anyway."""
        return rows


def visible_generations(user: User) -> QuerySet[GenerationJob]:
    """Return the user's requests with what their representation needs."""
    images = Prefetch("images", GeneratedImage.objects.live())
    jobs = GenerationJob.objects.visible_to(user).prefetch_related(images)
    return jobs.select_related("owner").defer("log_tail")


def find_generation(request: Request, pk: UUID) -> GenerationJob:
    """Return one of the user's requests, or raise 404."""
    return get_visible(GenerationJob.objects.select_related("owner"), signed_in(request), pk)


def represent(request: Request, job: GenerationJob, status: int = 200) -> Response:
    """Answer with a request."""
    body = GenerationSerializer(job, context={"request": request}).data
    return Response(body, status=status, headers={"Location": body["url"]} if status == 202 else {})


def queued(request: Request, job: GenerationJob) -> Response:
    """Answer with a job that was just queued, after waiting for its end if that was asked for."""
    seconds = wait_seconds(request)
    if not seconds:
        return represent(request, job, 202)
    wait_for(job, seconds)
    response = represent(request, job, 200 if job.is_final else 202)
    response.headers["Preference-Applied"] = f"wait={seconds:.0f}"
    return response


class Generate(APIView):
    """Pictures or clips; one subclass for each mode."""

    mode: GenerationJob.Mode

    def submit(self, request: Request) -> Response:
        """Queue a request; with `Prefer: wait=N` the answer is 200 when it ended in time."""
        user, body = signed_in(request), dict(request.data)
        return queued(request, services.submit_generation(user, mode=self.mode, body=body))


def _described(serializer: type[Serializer]) -> Any:
    return extend_schema(
        request=serializer,
        responses={202: GenerationSerializer, 200: GenerationSerializer},
        parameters=[WAIT, ONCE],
    )


class TextToImage(Generate):
    """Pictures from words."""

    mode = GenerationJob.Mode.TEXT_TO_IMAGE

    @_described(TextToImageRequestSerializer)
    @idempotent
    def post(self, request: Request) -> Response:
        """Paint from words; with `hires_scale` over 1 the picture is enlarged and refined."""
        return self.submit(request)


class ImageToImage(Generate):
    """Pictures from a picture."""

    mode = GenerationJob.Mode.IMAGE_TO_IMAGE

    @_described(ImageToImageRequestSerializer)
    @idempotent
    def post(self, request: Request) -> Response:
        """Paint over a picture; `strength` says how much of it is painted anew."""
        return self.submit(request)


class Inpaint(Generate):
    """A part of a picture."""

    mode = GenerationJob.Mode.INPAINT

    @_described(InpaintRequestSerializer)
    @idempotent
    def post(self, request: Request) -> Response:
        """Paint a picture anew where its mask is white; the rest keeps its pixels."""
        return self.submit(request)


class ImageToVideo(Generate):
    """A clip from a picture."""

    mode = GenerationJob.Mode.IMAGE_TO_VIDEO

    @_described(ImageToVideoRequestSerializer)
    @idempotent
    def post(self, request: Request) -> Response:
        """Let a picture move."""
        return self.submit(request)


class GenerationEstimate(APIView):
    """How long a request would take."""

    @extend_schema(request=EstimateRequestSerializer, responses=GenerationEstimateSerializer)
    def post(self, request: Request) -> Response:
        """Resolve the values and say how much work they are; nothing is made."""
        body: dict[str, Any] = dict(request.data)
        mode = str(body.pop("mode", GenerationJob.Mode.TEXT_TO_IMAGE))
        return Response(services.estimate_generation(signed_in(request), mode=mode, body=body))


class UploadList(APIView):
    """Pictures and masks that requests start from."""

    parser_classes = (MultiPartParser,)

    @extend_schema(
        request={"multipart/form-data": UploadRequestSerializer},
        responses={201: UploadedSerializer},
    )
    def post(self, request: Request) -> Response:
        """Keep a picture; what no request has needed for a day is removed.

        Nothing but pixels is kept, so the answer says in `recalled` how the picture was made.
        """
        user, file = signed_in(request), request.FILES.get("file")
        picture = inputs.upload(user, file)
        picture.recalled = recalling.recall_quietly(user, file)  # type: ignore[attr-defined]
        return Response(UploadedSerializer(picture).data, status=201)


class UploadDetail(APIView):
    """One picture that requests start from."""

    @extend_schema(responses=UploadSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Show its measures."""
        return Response(UploadSerializer(find_upload(request, pk)).data)


class UploadFile(APIView):
    """Its bytes."""

    @extend_schema(responses={(200, "image/png"): OpenApiTypes.BINARY})
    def get(self, request: Request, pk: int) -> HttpResponseBase:
        """Hand it over."""
        picture = find_upload(request, pk)
        return storage.file_response(
            picture.key,
            filename=f"studio-input-{picture.pk}.{picture.format}",
            content_type=f"image/{picture.format}",
            inline=True,
            request=request._request,
        )


def find_upload(request: Request, pk: int) -> InputPicture:
    """Return one of the user's input pictures, or raise 404."""
    return get_visible(InputPicture.objects.all(), signed_in(request), pk)


class Recall(APIView):
    """How a picture was made."""

    parser_classes = (MultiPartParser, StrictJSONParser)

    @extend_schema(
        request={
            "multipart/form-data": UploadRequestSerializer,
            "application/json": RecallTextSerializer,
        },
        responses=RecalledSerializer,
    )
    def post(self, request: Request) -> Response:
        """Read the parameters in a file or in a pasted text, and answer a form's values."""
        user: User = signed_in(request)
        body: dict[str, Any] = dict(request.data)
        if "text" in body:
            return Response(recalling.recall_text(user, body["text"]))
        return Response(recalling.recall_file(user, request.FILES.get("file")))


class GenerationList(generics.ListAPIView):
    """My requests."""

    serializer_class = GenerationSerializer
    filterset_class = GenerationFilter

    def get_queryset(self) -> QuerySet[GenerationJob]:
        """My own, newest first."""
        if getattr(self, "swagger_fake_view", False):
            return GenerationJob.objects.none()
        return visible_generations(signed_in(self.request))


class GenerationDetail(APIView):
    """One request of mine."""

    @extend_schema(responses=GenerationSerializer, parameters=[WAIT])
    def get(self, request: Request, pk: UUID) -> Response:
        """Show it with the pictures there are; `Prefer: wait=N` waits for its end."""
        job = find_generation(request, pk)
        seconds = wait_seconds(request)
        return represent(request, wait_for(job, seconds) if seconds else job)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, pk: UUID) -> Response:
        """Remove one that has ended, with its pictures."""
        services.delete_generation(signed_in(request), find_generation(request, pk))
        return Response(status=204)


class GenerationCancel(APIView):
    """Off the device."""

    @extend_schema(request=None, responses=GenerationSerializer)
    def post(self, request: Request, pk: UUID) -> Response:
        """End it; one that has ended answers with its state."""
        job = services.cancel_generation(signed_in(request), find_generation(request, pk))
        return represent(request, job)


class GenerationPreview(APIView):
    """The picture in the making."""

    @extend_schema(responses={(200, "image/jpeg"): OpenApiTypes.BINARY})
    def get(self, request: Request, pk: UUID) -> HttpResponseBase:
        """Hand over the last preview; there is none before the first and two minutes after."""
        job = find_generation(request, pk)
        picture = events.get_preview(job.pk)
        if picture is None:
            raise Problem("not_found", _("There is no preview at the moment."), status=404)
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return HttpResponse(picture, content_type="image/jpeg", headers=headers)
