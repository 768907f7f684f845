"""The API of models: `/api/models/…`. It translates HTTP; what happens is in ``services``."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponseBase
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
    extend_schema_view,
)
from rest_framework import generics, parsers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from models_app import services
from models_app.filters import ModelFilter
from models_app.models import DiffusionModel
from models_app.serializers import (
    DiffusionModelSerializer,
    ModelChangesSerializer,
    ThumbnailUploadSerializer,
)
from studio_project import storage
from studio_project.api import Problem, get_visible, signed_in

FILE = OpenApiResponse(OpenApiTypes.BINARY)


@extend_schema_view(get=extend_schema(summary="List the models I may see, newest first"))
class ModelList(generics.ListAPIView):
    """Base models, shared models and one's own."""

    serializer_class = DiffusionModelSerializer
    filterset_class = ModelFilter

    def get_queryset(self) -> QuerySet[DiffusionModel]:
        """Start at what the user may see."""
        rows = DiffusionModel.objects.visible_to(self.request.user)
        return rows.select_related("owner", "base_model")


class ModelDetail(APIView):
    """One model."""

    @extend_schema(summary="Read a model", responses=DiffusionModelSerializer)
    def get(self, request: Request, pk: str) -> Response:
        """Read a model."""
        return _answer(_find(request, pk), request)

    @extend_schema(
        summary="Rename, describe or share a model",
        request=ModelChangesSerializer,
        responses=DiffusionModelSerializer,
    )
    def patch(self, request: Request, pk: str) -> Response:
        """Change what is sent and leave the rest."""
        model = _find(request, pk)
        changes = ModelChangesSerializer(data=request.data)
        changes.is_valid(raise_exception=True)
        return _answer(
            services.edit_model(signed_in(request), model, changes.validated_data), request
        )

    @extend_schema(summary="Delete a model", responses={204: None})
    def delete(self, request: Request, pk: str) -> Response:
        """Delete a model that nothing builds on."""
        services.delete_model(signed_in(request), _find(request, pk))
        return Response(status=status.HTTP_204_NO_CONTENT)


class ModelDownload(APIView):
    """The weights."""

    @extend_schema(
        summary="Download the weights of a trained model",
        description=(
            "Adapters are one safetensors file; Range and If-None-Match are understood. A model "
            "that is a whole folder is a zip of it."
        ),
        parameters=[
            OpenApiParameter(
                "layout",
                enum=services.LAYOUTS,
                default=services.LAYOUTS[0],
                description="`kohya` is the file for A1111, Forge and ComfyUI.",
            )
        ],
        responses={
            (200, "application/octet-stream"): FILE,
            (200, "application/zip"): FILE,
        },
    )
    def get(self, request: Request, pk: str) -> HttpResponseBase:
        """Hand over the file, or the folder as an archive."""
        model = _find(request, pk)
        chosen = services.choose_download(model, request.query_params.get("layout"))
        if isinstance(chosen, str):
            return storage.file_response(
                chosen,
                filename=f"{model.name}.{chosen.rpartition('/')[2].partition('.')[2]}",
                content_type="application/octet-stream",
                inline=False,
                request=request._request,
            )
        return storage.zip_response(chosen, filename=f"{model.name}.zip", request=request._request)


class ModelThumbnail(APIView):
    """The picture that stands for a model."""

    parser_classes = (parsers.MultiPartParser,)

    @extend_schema(summary="Read a model's picture", responses={(200, "image/webp"): FILE})
    def get(self, request: Request, pk: str) -> HttpResponseBase:
        """Hand over the picture."""
        model = _find(request, pk)
        if not model.thumbnail_key:
            raise Problem("no_thumbnail", _("This model has no picture."), status=404)
        suffix = model.thumbnail_key.rpartition(".")[2]
        return storage.file_response(
            model.thumbnail_key,
            filename=f"{model.name}.{suffix}",
            content_type={"jpg": "image/jpeg", "png": "image/png"}.get(suffix, "image/webp"),
            inline=True,
            request=request._request,
        )

    @extend_schema(
        summary="Set a model's picture",
        request={"multipart/form-data": ThumbnailUploadSerializer},
        responses=DiffusionModelSerializer,
    )
    def put(self, request: Request, pk: str) -> Response:
        """Replace the picture."""
        model = _find(request, pk)
        upload = ThumbnailUploadSerializer(data=request.data)
        upload.is_valid(raise_exception=True)
        services.set_thumbnail(signed_in(request), model, upload.validated_data["file"])
        return _answer(model, request)

    @extend_schema(summary="Remove a model's picture", responses={204: None})
    def delete(self, request: Request, pk: str) -> Response:
        """Take the picture away."""
        services.set_thumbnail(signed_in(request), _find(request, pk), None)
        return Response(status=status.HTTP_204_NO_CONTENT)


def _find(request: Request, pk: str) -> DiffusionModel:
    rows: Any = DiffusionModel.objects.select_related("owner", "base_model")
    model: DiffusionModel = get_visible(rows, signed_in(request), pk)
    return model


def _answer(model: DiffusionModel, request: Request) -> Response:
    return Response(DiffusionModelSerializer(model, context={"request": request}).data)
