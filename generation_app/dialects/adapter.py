"""What the dialects share: who asks, one job for one request, the wait for it, its pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django.conf import settings
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from generation_app import services
from generation_app.models import GeneratedImage, GenerationJob
from studio_project import storage
from studio_project.api import (
    BearerAuthentication,
    Problem,
    SessionAuthentication,
    TokenAsPasswordAuthentication,
    get_visible,
    idempotent,
    problem_response,
    signed_in,
    wait_for,
)
from studio_project.models import User

Status = GenerationJob.Status
# The openai package would send a failed request again, and each time paint anew.
FINAL_ANSWER = {"x-should-retry": "false"}


@dataclass(frozen=True)
class Wish:
    """A request in our words.

    Attributes:
        body: What `/api/generate/` takes; a field keeps the name under which it was sent, so that
            an error names it as its sender does.
        ignored: The fields that have no meaning here.
    """

    body: dict[str, Any]
    ignored: list[str] = field(default_factory=list)


class DialectView(APIView):
    """A view that takes our tokens and refuses in the words of its dialect."""

    authentication_classes = (
        BearerAuthentication,
        TokenAsPasswordAuthentication,
        SessionAuthentication,
    )

    def get_exception_handler(self) -> Any:
        """Say in the dialect what the API says as problem+json."""
        return self._refuse

    def _refuse(self, error: Exception, context: dict[str, Any]) -> Response | None:
        answer = problem_response(error, context)
        if answer is not None:
            answer.status_code, answer.data = self.error(answer.status_code, answer.data)
            answer.content_type = None  # plain JSON
        return answer

    def error(self, status: int, problem: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the body with which this dialect refuses."""
        raise NotImplementedError


def body_of(request: Request) -> dict[str, Any]:
    """Return the fields of a request; the parser has seen to it that it is an object."""
    return dict(request.data)


class UnknownRoute:
    """Mixed into a dialect's view for whatever else is asked for below its address."""

    schema = None
    permission_classes = ()

    def http_method_not_allowed(self, request: Any, *args: Any, **kwargs: Any) -> Response:
        """Say that there is no such route."""
        raise Problem("not_found", _("This site does not have this part of the API."), status=404)


class PaintingView(DialectView):
    """A view that paints: it answers when the job has ended."""

    mode: ClassVar[str] = GenerationJob.Mode.TEXT_TO_IMAGE

    def read(self, user: User, body: Mapping[str, Any]) -> Wish:
        """Translate a request.

        Raises:
            Problem: What the API itself does not look at is wrong.
        """
        raise NotImplementedError

    @idempotent
    def _submit(self, request: Request) -> Response:
        """Queue the job. Only this is repeated for a repeated key, so no picture is stored."""
        wish = self.read(signed_in(request), body_of(request))
        job = services.submit_generation(signed_in(request), mode=self.mode, body=wish.body)
        return Response({"job_id": str(job.pk), "ignored_fields": wish.ignored}, status=202)

    def paint(self, request: Request) -> tuple[GenerationJob, list[str]]:
        """Queue a request and wait for its end.

        The client may go away meanwhile: the job goes on, and the wait has its bound.

        Returns:
            The completed job and the fields that were ignored.

        Raises:
            Problem: As `services.submit_generation`; the job failed, was canceled or takes longer.
        """
        submitted = self._submit(request).data
        job = get_visible(GenerationJob.objects.all(), signed_in(request), submitted["job_id"])
        wait_for(job, settings.STUDIO_DIALECT_WAIT_SECONDS)
        if job.status != Status.COMPLETED:
            raise _ending_of(job)
        return job, submitted["ignored_fields"]


def _ending_of(job: GenerationJob) -> Problem:
    """Return the problem that tells how a job ended without all of its pictures."""
    extra: dict[str, Any] = {"headers": FINAL_ANSWER, "job_id": str(job.pk)}
    if job.status == Status.CANCELED:
        return Problem("canceled", _("This request was canceled."), status=409, **extra)
    if error := job.error(get_language()):
        return Problem(error["code"], error["message"], status=500, hint=error["hint"], **extra)
    message = _("The pictures are still on their way; they will be found at %(url)s.")
    url = f"/api/generate/{job.pk}"
    return Problem("still_running", message % {"url": url}, status=504, **extra)


def pictures(job: GenerationJob) -> list[GeneratedImage]:
    """Return a job's pictures in their order."""
    return list(job.images.live().order_by("index"))


def as_base64(image: GeneratedImage) -> str:
    """Return a picture's file as base64."""
    with storage.open_key(image.key) as file:
        return base64.b64encode(file.read()).decode("ascii")
