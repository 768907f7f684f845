"""How a job of any kind reads in the API.

Kinds of jobs add their own fields; numbers are always finite.
"""

from __future__ import annotations

from typing import Any

from django.utils.translation import get_language
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from studio_project.jobs import Job
from studio_project.jobs.numbers import finite
from studio_project.waiting import Waiting


class FiniteField(serializers.FloatField):
    """A number that JSON can carry; anything else reads as null."""

    def to_representation(self, value: Any) -> float | None:  # type: ignore[override]
        """Drop NaN and infinities."""
        return finite(float(value)) if value is not None else None


class JobErrorSerializer(serializers.Serializer):
    """Why a job failed: a code for programs, a sentence and a way out for people."""

    code = serializers.CharField()
    message = serializers.CharField()
    hint = serializers.CharField(allow_blank=True)


class JobProgressSerializer(serializers.Serializer):
    """How far a job is."""

    id = serializers.UUIDField()
    version = serializers.IntegerField(help_text="Rises with every change; drop what is older.")
    status = serializers.ChoiceField(choices=Job.Status.choices)
    phase = serializers.CharField(help_text="What a running job does; empty otherwise.")
    waiting_reason = serializers.SerializerMethodField()
    position = serializers.SerializerMethodField()
    progress = FiniteField(help_text="0 to 1.")
    step = serializers.IntegerField()
    total_steps = serializers.IntegerField()
    eta_seconds = serializers.SerializerMethodField()
    error = serializers.SerializerMethodField()

    def _waiting(self) -> Waiting:
        """Return one look at the queue for the whole answer."""
        context: Any = self.root.context
        waiting: Waiting = context.setdefault("waiting", Waiting())
        return waiting

    def get_waiting_reason(self, job: Job) -> str:
        """Why a queued job waits: behind_jobs, device_busy, no_worker or queue_paused."""
        return self._waiting().reason(job)

    def get_position(self, job: Job) -> int | None:
        """Place in the queue, the next one being 1."""
        return self._waiting().position(job)

    def get_eta_seconds(self, job: Job) -> int | None:
        """In how many seconds it is done; null if that cannot be told."""
        return job.eta_seconds

    @extend_schema_field(JobErrorSerializer(allow_null=True))
    def get_error(self, job: Job) -> dict[str, str] | None:
        """What went wrong, in the reader's language."""
        error = job.error(get_language())
        return dict(error) if error else None  # type: ignore[arg-type]


class JobSerializer(JobProgressSerializer):
    """A job with its times."""

    created_at = serializers.DateTimeField()
    queued_at = serializers.DateTimeField(allow_null=True)
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
