"""The routes under /api/training/: HTTP in, services called, JSON out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponseBase
from django.utils.text import get_valid_filename
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, OpenApiTypes, extend_schema
from rest_framework import generics
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from models_app.serializers import DiffusionModelSerializer
from studio_project import storage
from studio_project.api import Problem, get_visible, idempotent, signed_in
from studio_project.models import User
from training_app import metrics, services
from training_app.checkpoints import extend_training, register_checkpoint
from training_app.models import TrainingCheckpoint, TrainingJob, TrainingSample
from training_app.serializers import (
    CheckpointChoiceSerializer,
    CheckpointSerializer,
    LogSerializer,
    MetricsSerializer,
    SampleSerializer,
    TrainingCreateSerializer,
    TrainingEditSerializer,
    TrainingEstimateSerializer,
    TrainingExtendSerializer,
    TrainingPlanSerializer,
    TrainingProgressSerializer,
    TrainingSerializer,
)

METRICS_AT_ONCE = 5000
POINT = ("step", "loss", "learning_rate", "gradient_norm")
PICTURE = {(200, "image/png"): OpenApiTypes.BINARY}


class TrainingFilter(filters.FilterSet):
    """What a list of trainings can be narrowed to."""

    status = filters.MultipleChoiceFilter(choices=TrainingJob.Status.choices)
    type = filters.ChoiceFilter(choices=TrainingJob.Type.choices)
    dataset = filters.NumberFilter(field_name="dataset_id")
    base_model = filters.NumberFilter(field_name="base_model_id")
    created_after = filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="gt")
    owner = filters.ChoiceFilter(choices=[("me", "me")], method="of_owner")
    search = filters.CharFilter(method="matching")

    class Meta:
        model = TrainingJob
        fields: tuple[str, ...] = ()

    def of_owner(self, rows: QuerySet[Any], name: str, value: str) -> QuerySet[Any]:
        """Trainings are one's own anyway."""
        return rows

    def matching(self, rows: QuerySet[Any], name: str, value: str) -> QuerySet[Any]:
        """Look for words in the title and in the names of dataset and base."""
        return rows.filter(
            Q(title__icontains=value)
            | Q(dataset_name__icontains=value)
            | Q(base_model_name__icontains=value)
        )


def visible_trainings(user: User) -> QuerySet[TrainingJob]:
    """Return the user's trainings with what their representation needs."""
    return (
        TrainingJob.objects.visible_to(user)
        .select_related("output_model", "owner")
        .defer("manifest", "log_tail")
    )


def find_training(request: Request, pk: UUID) -> TrainingJob:
    """Return one of the user's trainings, or raise 404."""
    rows = TrainingJob.objects.select_related("output_model", "owner")
    return get_visible(rows, signed_in(request), pk)


def represent(request: Request, job: TrainingJob, status: int = 200) -> Response:
    """Answer with a training."""
    body = TrainingSerializer(job, context={"request": request}).data
    return Response(body, status=status, headers={"Location": body["url"]} if status == 201 else {})


class TrainingList(generics.ListAPIView):
    """My trainings."""

    serializer_class = TrainingSerializer
    filterset_class = TrainingFilter

    def get_queryset(self) -> QuerySet[TrainingJob]:
        """My own, newest first."""
        if getattr(self, "swagger_fake_view", False):
            return TrainingJob.objects.none()
        return visible_trainings(signed_in(self.request))

    @extend_schema(request=TrainingCreateSerializer, responses={201: TrainingSerializer})
    @idempotent
    def post(self, request: Request) -> Response:
        """Make a training that waits to be started."""
        asked = TrainingCreateSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        job = services.create_training(signed_in(request), **asked.validated_data)
        return represent(request, job, 201)


class TrainingEstimate(APIView):
    """How long a training would take."""

    @extend_schema(request=TrainingPlanSerializer, responses=TrainingEstimateSerializer)
    def post(self, request: Request) -> Response:
        """Resolve the settings and say how much work they are; nothing is made."""
        asked = TrainingPlanSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        return Response(services.estimate_training(signed_in(request), **asked.validated_data))


class TrainingDetail(APIView):
    """One training of mine."""

    @extend_schema(responses=TrainingSerializer)
    def get(self, request: Request, pk: UUID) -> Response:
        """Show it whole."""
        return represent(request, find_training(request, pk))

    @extend_schema(request=TrainingEditSerializer, responses=TrainingSerializer)
    def patch(self, request: Request, pk: UUID) -> Response:
        """Give it another title."""
        job = find_training(request, pk)
        asked = TrainingEditSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        services.rename_training(signed_in(request), job, asked.validated_data["title"])
        return represent(request, find_training(request, pk))

    @extend_schema(responses={204: None})
    def delete(self, request: Request, pk: UUID) -> Response:
        """Remove one that has ended or was never started; its model stays."""
        services.delete_training(signed_in(request), find_training(request, pk))
        return Response(status=204)


class TrainingStart(APIView):
    """Into the queue."""

    @extend_schema(request=None, responses={202: TrainingSerializer})
    @idempotent
    def post(self, request: Request, pk: UUID) -> Response:
        """Freeze its inputs and queue it."""
        job = services.start_training(signed_in(request), find_training(request, pk))
        return represent(request, job, 202)


class TrainingCancel(APIView):
    """Out of the queue, or off the device."""

    @extend_schema(request=None, responses=TrainingSerializer)
    def post(self, request: Request, pk: UUID) -> Response:
        """End it; one that has ended answers with its state."""
        job = services.cancel_training(signed_in(request), find_training(request, pk))
        return represent(request, job)


class TrainingPause(APIView):
    """Off the device, to be gone on with later."""

    @extend_schema(request=None, responses={202: TrainingSerializer})
    def post(self, request: Request, pk: UUID) -> Response:
        """Write a checkpoint and stop."""
        job = services.pause_training(signed_in(request), find_training(request, pk))
        return represent(request, job, 202)


class TrainingResume(APIView):
    """Back into the queue."""

    @extend_schema(request=None, responses={202: TrainingSerializer})
    def post(self, request: Request, pk: UUID) -> Response:
        """Go on from the last checkpoint of a paused training."""
        job = services.resume_training(signed_in(request), find_training(request, pk))
        return represent(request, job, 202)


class TrainingStop(APIView):
    """Off the device for good, with what it has learned."""

    @extend_schema(request=None, responses={202: TrainingSerializer})
    def post(self, request: Request, pk: UUID) -> Response:
        """End it at its next step and register the model that it has become."""
        job = services.stop_training(signed_in(request), find_training(request, pk))
        return represent(request, job, 202)


class TrainingProgress(APIView):
    """How far a training is; small enough to ask for often."""

    @extend_schema(responses=TrainingProgressSerializer)
    def get(self, request: Request, pk: UUID) -> Response:
        """Show status, place, steps, loss and what came out."""
        job = get_visible(visible_trainings(signed_in(request)), signed_in(request), pk)
        return Response(TrainingProgressSerializer(job, context={"request": request}).data)


class TrainingMetrics(APIView):
    """Loss, learning rate and gradient norm of every step."""

    @extend_schema(
        parameters=[OpenApiParameter("after_step", OpenApiTypes.INT)], responses=MetricsSerializer
    )
    def get(self, request: Request, pk: UUID) -> Response:
        """Show the metrics after a step, at most 5000 at once."""
        job = find_training(request, pk)
        after = _whole_number(request, "after_step")
        points = metrics.read(job, after_step=after, limit=METRICS_AT_ONCE)
        body = {
            "results": [dict(zip(POINT, point, strict=True)) for point in points],
            "held_out": [{"step": step, "loss": loss} for step, loss in job.held_out_losses],
            "last_step": points[-1][0] if points else after,
            "epoch": job.epoch,
        }
        return Response(MetricsSerializer(body).data)


def _whole_number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "0")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        message = _("This has to be a whole number.")
        raise Problem("invalid", f"{name}: {message}", fields={name: [message]})
    return int(text)


class TrainingSamples(generics.ListAPIView):
    """The pictures painted during a training, newest first."""

    serializer_class = SampleSerializer
    filter_backends = ()

    def get_queryset(self) -> QuerySet[TrainingSample]:
        """Those of one training of mine."""
        if getattr(self, "swagger_fake_view", False):
            return TrainingSample.objects.none()
        return find_training(self.request, self.kwargs["pk"]).samples.all()


class TrainingSampleFile(APIView):
    """One picture painted during a training."""

    thumbnail = False

    @extend_schema(responses=PICTURE)
    def get(self, request: Request, pk: UUID, sample_id: int) -> HttpResponseBase:
        """Hand it over, shown in the page unless `?download=1`."""
        job = find_training(request, pk)
        sample = job.samples.filter(pk=sample_id).first()
        key = (sample.thumbnail_key if self.thumbnail else sample.key) if sample else ""
        if sample is None or not key:
            raise Problem("not_found", _("There is no such picture."), status=404)
        suffix, kind = (".webp", "image/webp") if self.thumbnail else (".png", "image/png")
        name = get_valid_filename(f"{job.title[:80]}-{sample.step}-{sample.index}")
        return storage.file_response(
            key,
            filename=name + suffix,
            content_type=kind,
            inline="download" not in request.query_params,
            request=_plain(request),
        )


def _plain(request: Request) -> HttpRequest:
    return request._request


class TrainingCheckpoints(generics.ListAPIView):
    """The steps of a training that a model can be made of, newest first."""

    serializer_class = CheckpointSerializer
    filter_backends = ()

    def get_queryset(self) -> QuerySet[TrainingCheckpoint]:
        """Those of one training of mine."""
        if getattr(self, "swagger_fake_view", False):
            return TrainingCheckpoint.objects.none()
        job = find_training(self.request, self.kwargs["pk"])
        return job.checkpoints.select_related("model", "job").defer("job__manifest")

    def get_serializer_context(self) -> dict[str, Any]:
        """Add the samples by their step."""
        samples: dict[int, list[TrainingSample]] = {}
        if not getattr(self, "swagger_fake_view", False):
            for sample in TrainingSample.objects.filter(job=self.kwargs["pk"]):
                samples.setdefault(sample.step, []).append(sample)
        return {**super().get_serializer_context(), "samples": samples}


class TrainingCheckpointRegister(APIView):
    """A checkpoint that becomes a model."""

    @extend_schema(
        request=CheckpointChoiceSerializer,
        responses={201: DiffusionModelSerializer, 200: DiffusionModelSerializer},
    )
    def post(self, request: Request, pk: UUID, checkpoint_id: int) -> Response:
        """Make a model of it; if there is one already, answer with that."""
        job = find_training(request, pk)
        asked = CheckpointChoiceSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        model, is_new = register_checkpoint(
            signed_in(request), job, checkpoint_id, asked.validated_data["title"]
        )
        body = DiffusionModelSerializer(model, context={"request": request}).data
        return Response(body, status=201 if is_new else 200)


class TrainingExtend(APIView):
    """A training that is made longer."""

    @extend_schema(request=TrainingExtendSerializer, responses={201: TrainingSerializer})
    @idempotent
    def post(self, request: Request, pk: UUID) -> Response:
        """Queue a new training that goes on from the end of this one."""
        job = find_training(request, pk)
        asked = TrainingExtendSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        steps = asked.validated_data["additional_steps"]
        return represent(request, extend_training(signed_in(request), job, steps), 201)


class TrainingLog(APIView):
    """What a training wrote."""

    @extend_schema(responses=LogSerializer)
    def get(self, request: Request, pk: UUID) -> Response:
        """Show the end of its log and its timeline."""
        return Response(LogSerializer(find_training(request, pk)).data)
