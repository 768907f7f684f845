"""The API of datasets: `/api/datasets/…`. It translates HTTP; what happens is in ``services``."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent, TooManyFilesSent
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

from datasets_app import services
from datasets_app.filters import DatasetFilter, DatasetImageFilter
from datasets_app.models import Dataset, DatasetImage
from datasets_app.serializers import (
    DatasetChangesSerializer,
    DatasetImageChangesSerializer,
    DatasetImageSerializer,
    DatasetSerializer,
    ImagesChangedSerializer,
    ImagesRepeatedSerializer,
    NewDatasetSerializer,
    UploadResultSerializer,
    UploadSerializer,
)
from studio_project import storage
from studio_project.api import Problem, get_visible, idempotent, signed_in
from studio_project.json_parser import StrictJSONParser

FILE = OpenApiResponse(OpenApiTypes.BINARY)
DATASET_ID = OpenApiParameter("id", OpenApiTypes.INT, OpenApiParameter.PATH)
IMAGE_ID = OpenApiParameter("image_id", OpenApiTypes.INT, OpenApiParameter.PATH)
CSRF_FIELD = "csrfmiddlewaretoken"


@extend_schema_view(get=extend_schema(summary="List the datasets I may see, newest first"))
class DatasetList(generics.ListAPIView):
    """One's own datasets and shared ones."""

    serializer_class = DatasetSerializer
    filterset_class = DatasetFilter

    def get_queryset(self) -> QuerySet[Dataset]:
        """Start at what the user may see."""
        rows = Dataset.objects.visible_to(self.request.user)
        return rows.with_cover().select_related("owner")

    @extend_schema(
        summary="Make a dataset", request=NewDatasetSerializer, responses={201: DatasetSerializer}
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Make an empty dataset."""
        given = NewDatasetSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        dataset = services.create_dataset(signed_in(request), **given.validated_data)
        return Response(DatasetSerializer(dataset).data, status=status.HTTP_201_CREATED)


@extend_schema(parameters=[DATASET_ID])
class DatasetDetail(APIView):
    """One dataset."""

    @extend_schema(summary="Read a dataset", responses=DatasetSerializer)
    def get(self, request: Request, pk: str) -> Response:
        """Read a dataset."""
        return Response(DatasetSerializer(_find(request, pk)).data)

    @extend_schema(
        summary="Rename or share a dataset",
        request=DatasetChangesSerializer,
        responses=DatasetSerializer,
    )
    def patch(self, request: Request, pk: str) -> Response:
        """Change what is sent and leave the rest."""
        dataset = _find(request, pk)
        given = DatasetChangesSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        services.edit_dataset(signed_in(request), dataset, **given.validated_data)
        return Response(DatasetSerializer(dataset).data)

    @extend_schema(summary="Delete a dataset", responses={204: None})
    def delete(self, request: Request, pk: str) -> Response:
        """Delete a dataset with its pictures; models trained on it stay."""
        services.delete_dataset(signed_in(request), _find(request, pk))
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(parameters=[DATASET_ID])
@extend_schema_view(get=extend_schema(summary="List a dataset's pictures, newest first"))
class DatasetImages(generics.ListAPIView):
    """The pictures of a dataset."""

    serializer_class = DatasetImageSerializer
    filterset_class = DatasetImageFilter
    parser_classes = (parsers.MultiPartParser,)

    def get_queryset(self) -> QuerySet[DatasetImage]:
        """Start at a dataset the user may see."""
        if getattr(self, "swagger_fake_view", False):
            return DatasetImage.objects.none()
        dataset = get_visible(Dataset.objects.all(), signed_in(self.request), self.kwargs["pk"])
        return DatasetImage.objects.live().filter(dataset=dataset)

    def get_parsers(self) -> list[parsers.BaseParser]:
        """Take files as a form, and what is to be written as JSON."""
        if getattr(self.request, "method", "") == "PATCH":
            return [StrictJSONParser()]
        return super().get_parsers()

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Say in our words when the body, which the CSRF check reads first, holds too much."""
        try:
            super().initial(request, *args, **kwargs)
            request.FILES  # noqa: B018  (reading is parsing)
        except TooManyFilesSent as error:
            raise services.request_too_large("too_many_files") from error
        except (RequestDataTooBig, TooManyFieldsSent) as error:
            raise services.request_too_large("request_too_large") from error

    @extend_schema(
        summary="Add pictures, captions or zips of both",
        request={"multipart/form-data": UploadSerializer},
        responses={201: UploadResultSerializer, 422: UploadResultSerializer},
    )
    def post(self, request: Request, pk: str) -> Response:
        """Add files; each has an outcome of its own, and 422 says that nothing was taken."""
        dataset = get_visible(Dataset.objects.all(), signed_in(request), pk)
        _refuse_unknown_parts(request)
        result = services.add_files(signed_in(request), dataset, request.FILES.getlist("files"))
        code = status.HTTP_422_UNPROCESSABLE_ENTITY if result.is_empty else status.HTTP_201_CREATED
        return Response(UploadResultSerializer(result).data, status=code)

    @extend_schema(
        operation_id="datasets_images_bulk_partial_update",
        summary="Write the repeats of several pictures",
        request={"application/json": ImagesRepeatedSerializer},
        responses=ImagesChangedSerializer,
    )
    def patch(self, request: Request, pk: str) -> Response:
        """Set the repeats of pictures; those that were deleted meanwhile are passed over."""
        dataset = get_visible(Dataset.objects.all(), signed_in(request), pk)
        given = ImagesRepeatedSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data
        changed = services.repeat_images(
            signed_in(request), dataset, wanted["images"], wanted["repeats"]
        )
        return Response({"changed": changed})


@extend_schema(parameters=[DATASET_ID, IMAGE_ID])
class DatasetImageDetail(APIView):
    """One picture of a dataset."""

    @extend_schema(summary="Read a picture", responses=DatasetImageSerializer)
    def get(self, request: Request, pk: str, image_id: str) -> Response:
        """Read what is known of a picture."""
        return Response(DatasetImageSerializer(_find_image(request, pk, image_id)).data)

    @extend_schema(
        summary="Write a picture's caption or its repeats",
        request=DatasetImageChangesSerializer,
        responses=DatasetImageSerializer,
    )
    def patch(self, request: Request, pk: str, image_id: str) -> Response:
        """Change what is sent and leave the rest."""
        image = _find_image(request, pk, image_id)
        given = DatasetImageChangesSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        services.edit_image(signed_in(request), image, **given.validated_data)
        return Response(DatasetImageSerializer(image).data)

    @extend_schema(summary="Delete a picture", responses={204: None})
    def delete(self, request: Request, pk: str, image_id: str) -> Response:
        """Delete a picture; trainings that run keep it until they end."""
        services.delete_image(signed_in(request), _find_image(request, pk, image_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(parameters=[DATASET_ID, IMAGE_ID])
class DatasetImageFile(APIView):
    """The kept file of a picture."""

    @extend_schema(
        summary="Open a picture",
        responses={(200, "image/png"): FILE, (200, "image/jpeg"): FILE, (200, "image/webp"): FILE},
    )
    def get(self, request: Request, pk: str, image_id: str) -> HttpResponseBase:
        """Hand over the file."""
        image = _find_image(request, pk, image_id)
        return storage.file_response(
            image.key,
            filename=image.download_name,
            content_type=image.content_type,
            inline=True,
            request=request._request,
        )


@extend_schema(parameters=[DATASET_ID, IMAGE_ID])
class DatasetImageThumbnail(APIView):
    """The small picture of a picture."""

    @extend_schema(summary="Open a picture's thumbnail", responses={(200, "image/webp"): FILE})
    def get(self, request: Request, pk: str, image_id: str) -> HttpResponseBase:
        """Hand over the file."""
        image = _find_image(request, pk, image_id)
        return storage.file_response(
            image.thumbnail_key,
            filename=f"{image.pk}.webp",
            content_type="image/webp",
            inline=True,
            request=request._request,
        )


def _find(request: Request, pk: str) -> Dataset:
    return get_visible(Dataset.objects.select_related("owner"), signed_in(request), pk)


def _find_image(request: Request, pk: str, image_id: str) -> DatasetImage:
    rows = DatasetImage.objects.filter(
        dataset=get_visible(Dataset.objects.all(), signed_in(request), pk)
    )
    return get_visible(rows.select_related("dataset"), signed_in(request), image_id)


def _refuse_unknown_parts(request: Request) -> None:
    """Refuse parts of a form that would be left unread, by name."""
    unknown = sorted(set(request.data) - {"files", CSRF_FIELD} | (set(request.FILES) - {"files"}))
    if "files" in request.data and "files" not in request.FILES:
        unknown.append("files")
    if unknown:
        message = _("This field is not known here: send files in the repeated field “files”.")
        raise Problem(
            "unknown_field",
            f"{unknown[0]}: {message}",
            fields={name: [message] for name in unknown},
        )
