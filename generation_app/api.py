"""The routes under /api/generate/ and /api/images/: HTTP in, services called, JSON out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Prefetch, Q, QuerySet
from django.http import HttpResponse, HttpResponseBase
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, OpenApiTypes, extend_schema
from rest_framework import generics
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from generation_app import services
from generation_app.models import GeneratedImage, GenerationJob
from generation_app.serializers import (
    GenerationEstimateSerializer,
    GenerationSerializer,
    ImageSerializer,
    TextToImageRequestSerializer,
)
from studio_project import events, storage
from studio_project.api import Problem, get_visible, idempotent, signed_in, wait_for, wait_seconds
from studio_project.models import User

WAIT = OpenApiParameter(
    "Prefer", OpenApiTypes.STR, OpenApiParameter.HEADER, description="wait=N: answer when it ends."
)
ONCE = OpenApiParameter("Idempotency-Key", OpenApiTypes.STR, OpenApiParameter.HEADER)


class GenerationFilter(filters.FilterSet):
    """What a list of requests can be narrowed to."""

    status = filters.MultipleChoiceFilter(choices=GenerationJob.Status.choices)
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


class ImageFilter(filters.FilterSet):
    """What a list of pictures can be narrowed to."""

    job = filters.UUIDFilter(field_name="job_id")
    model = filters.NumberFilter(field_name="job__model_id")
    created_after = filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="gt")
    owner = filters.ChoiceFilter(choices=[("me", "me")], method="of_owner")
    search = filters.CharFilter(method="matching")

    class Meta:
        model = GeneratedImage
        fields: tuple[str, ...] = ()

    def of_owner(self, rows: QuerySet[Any], name: str, value: str) -> QuerySet[Any]:
        """Pictures are one's own anyway."""
        return rows

    def matching(self, rows: QuerySet[Any], name: str, value: str) -> QuerySet[Any]:
        """Look for words in the prompt and in the model's names."""
        return rows.filter(
            Q(parameters__prompt__icontains=value)
            | Q(job__model_name__icontains=value)
            | Q(job__model_title__icontains=value)
        )


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


class TextToImage(APIView):
    """Pictures from words."""

    @extend_schema(
        request=TextToImageRequestSerializer,
        responses={202: GenerationSerializer, 200: GenerationSerializer},
        parameters=[WAIT, ONCE],
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Queue a request; with `Prefer: wait=N` the answer is 200 when it ended in time."""
        mode = GenerationJob.Mode.TEXT_TO_IMAGE
        job = services.submit_generation(signed_in(request), mode=mode, body=dict(request.data))
        seconds = wait_seconds(request)
        if not seconds:
            return represent(request, job, 202)
        wait_for(job, seconds)
        response = represent(request, job, 200 if job.is_final else 202)
        response.headers["Preference-Applied"] = f"wait={seconds:.0f}"
        return response


class GenerationEstimate(APIView):
    """How long a request would take."""

    @extend_schema(request=TextToImageRequestSerializer, responses=GenerationEstimateSerializer)
    def post(self, request: Request) -> Response:
        """Resolve the values and say how much work they are; nothing is made."""
        mode = GenerationJob.Mode.TEXT_TO_IMAGE
        return Response(
            services.estimate_generation(signed_in(request), mode=mode, body=dict(request.data))
        )


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


def visible_images(user: User) -> QuerySet[GeneratedImage]:
    """Return the user's pictures with what their representation needs."""
    return GeneratedImage.objects.visible_to(user).select_related("job")


class ImageList(generics.ListAPIView):
    """My pictures."""

    serializer_class = ImageSerializer
    filterset_class = ImageFilter

    def get_queryset(self) -> QuerySet[GeneratedImage]:
        """My own, newest first."""
        if getattr(self, "swagger_fake_view", False):
            return GeneratedImage.objects.none()
        return visible_images(signed_in(self.request))


class ImageDetail(APIView):
    """One picture of mine."""

    @extend_schema(responses=ImageSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Show its parameters."""
        image = get_visible(visible_images(signed_in(request)), signed_in(request), pk)
        return Response(ImageSerializer(image, context={"request": request}).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, pk: int) -> Response:
        """Remove it."""
        image = get_visible(visible_images(signed_in(request)), signed_in(request), pk)
        services.delete_image(signed_in(request), image)
        return Response(status=204)


class ImageFile(APIView):
    """A picture's bytes."""

    thumbnail = False

    @extend_schema(responses={(200, "image/png"): OpenApiTypes.BINARY})
    def get(self, request: Request, pk: int) -> HttpResponseBase:
        """Hand it over, shown in the page unless `?download=1`."""
        image = get_visible(visible_images(signed_in(request)), signed_in(request), pk)
        suffix, kind = (".webp", "image/webp") if self.thumbnail else (".png", "image/png")
        return storage.file_response(
            image.thumbnail_key if self.thumbnail else image.key,
            filename=f"studio-{image.pk}-{image.seed}{suffix}",
            content_type=kind,
            inline="download" not in request.query_params,
            request=request._request,
        )
