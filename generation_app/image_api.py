"""The routes under /api/images/: what was made, its files, and making one again."""

from __future__ import annotations

from typing import Any

from django.db.models import Q, QuerySet
from django.http import HttpResponseBase
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiTypes, extend_schema
from rest_framework import generics
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from generation_app import remaking, services
from generation_app.api import WAIT, queued
from generation_app.models import GeneratedImage
from generation_app.serializers import GenerationSerializer, ImageSerializer
from studio_project import storage
from studio_project.api import Problem, get_visible, signed_in
from studio_project.models import User


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


class MakeAgain(APIView):
    """The same picture once more."""

    @extend_schema(
        request=None,
        responses={202: GenerationSerializer, 200: GenerationSerializer},
        parameters=[WAIT],
    )
    def post(self, request: Request, pk: int) -> Response:
        """Make it again, alone; the new picture's `difference` tells how far the two are apart."""
        rows = GeneratedImage.objects.select_related("job", "job__model", "job__base_model")
        image = get_visible(rows, signed_in(request), pk)
        return queued(request, remaking.make_again(signed_in(request), image))


class ImageFile(APIView):
    """A picture's bytes."""

    part = "file"

    @extend_schema(responses={(200, "image/png"): OpenApiTypes.BINARY})
    def get(self, request: Request, pk: int) -> HttpResponseBase:
        """Hand it over, shown in the page unless `?download=1`."""
        image = get_visible(visible_images(signed_in(request)), signed_in(request), pk)
        key, kind, suffix = {
            "file": (image.key, image.media_type, image.suffix),
            "thumbnail": (image.thumbnail_key, "image/webp", ".webp"),
            "animation": (image.animation_key, "image/webp", ".webp"),
        }[self.part]
        if not key:
            raise Problem("not_found", _("There is no such file."), status=404)
        return storage.file_response(
            key,
            filename=f"studio-{image.pk}-{image.seed}{suffix}",
            content_type=kind,
            inline="download" not in request.query_params,
            request=request._request,
        )
