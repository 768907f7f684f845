"""What every API shares: who is asking, how errors read, how lists page.

Errors are RFC 9457 `application/problem+json` with a stable `code`; what is not yours answers 404.
"""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied
from django.db import IntegrityError, OperationalError, models, transaction
from django.http import Http404, HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from rest_framework import authentication, exceptions, pagination, serializers, status
from rest_framework.response import Response

from studio_project.models import ApiToken, IdempotencyKey, User

if TYPE_CHECKING:
    from rest_framework.request import Request

logger = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Row = TypeVar("Row", bound=models.Model)


class Problem(Exception):
    """A refusal with a stable code and a sentence; services raise it, API and pages show it.

    Args:
        code: Stable name of what is wrong, for programs.
        detail: One sentence for people, in the request's language.
        status: HTTP status.
        fields: Messages by the name of the field they are about.
        hint: The way out, if the detail does not say it.
        headers: Extra response headers such as Retry-After.
        extra: Further members of the problem object.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int = 400,
        fields: Mapping[str, list[str]] | None = None,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(str(detail))
        self.code, self.detail, self.status = code, str(detail), status
        self.fields = {
            name: [str(text) for text in texts] for name, texts in (fields or {}).items()
        }
        self.hint, self.headers, self.extra = str(hint), dict(headers or {}), extra

    def as_dict(self) -> dict[str, Any]:
        """Return the members of the problem object."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": _TITLES.get(self.status, gettext_lazy("Request refused")),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        body["title"] = str(body["title"])
        if self.hint:
            body["hint"] = self.hint
        if self.fields:
            body["errors"] = {
                name: [{"code": self.code, "message": text} for text in texts]
                for name, texts in self.fields.items()
            }
        return {**body, **self.extra}


_TITLES = {
    400: gettext_lazy("Invalid request"),
    401: gettext_lazy("Sign in first"),
    403: gettext_lazy("Not allowed"),
    404: gettext_lazy("Not found"),
    405: gettext_lazy("Method not allowed"),
    409: gettext_lazy("Conflict"),
    413: gettext_lazy("Request too large"),
    415: gettext_lazy("Unsupported media type"),
    422: gettext_lazy("Nothing was taken"),
    429: gettext_lazy("Too many requests"),
    500: gettext_lazy("Server error"),
    507: gettext_lazy("Disk full"),
}


def disk_full() -> Problem:
    """Return the one problem that says there is no room."""
    return Problem(
        "disk_full",
        _("The site's disk is full, so nothing was stored."),
        status=507,
        hint=_("Delete what is no longer needed, or ask an administrator for more space."),
    )


def is_disk_full(error: BaseException) -> bool:
    """Say whether an error of the file system or the database means that there is no room."""
    if isinstance(error, OperationalError):
        return "disk is full" in str(error) or "No space left" in str(error)
    return isinstance(error, OSError) and error.errno in NO_ROOM


def problem(error: Problem) -> Response:
    """Return a problem as a response."""
    return Response(
        error.as_dict(),
        status=error.status,
        headers=error.headers,
        content_type="application/problem+json",
    )


def _field_errors(detail: Any, prefix: str = "") -> dict[str, list[dict[str, str]]]:
    """Flatten DRF's nested details to dotted field names."""
    if isinstance(detail, Mapping):
        merged: dict[str, list[dict[str, str]]] = {}
        for name, inner in detail.items():
            merged.update(_field_errors(inner, f"{prefix}.{name}" if prefix else str(name)))
        return merged
    items = detail if isinstance(detail, list) else [detail]
    nested = [item for item in items if isinstance(item, Mapping | list)]
    if nested:
        merged = {}
        for index, item in enumerate(items):
            merged.update(_field_errors(item, f"{prefix}.{index}" if prefix else str(index)))
        return merged
    return {
        prefix or "body": [
            {"code": getattr(item, "code", "invalid"), "message": str(item)} for item in items
        ]
    }


def problem_response(error: Exception, context: dict[str, Any]) -> Response | None:
    """Turn any exception of a view into problem+json (DRF's EXCEPTION_HANDLER)."""
    if is_disk_full(error):
        logger.error("the disk is full: %s", error)
        error = disk_full()
    if isinstance(error, Problem):
        return problem(error)
    # DRF's own handler cannot be used: its module imports the classes this one defines.
    code, errors = "invalid", {}
    headers: dict[str, str] = {}
    if isinstance(error, exceptions.ValidationError):
        errors = _field_errors(error.detail)
        first, texts = next(iter(errors.items()))
        status_code, detail = error.status_code, f"{first}: {texts[0]['message']}"
    elif isinstance(error, exceptions.APIException):
        status_code, detail = error.status_code, str(error.detail)
        code = str(error.get_codes())
        if auth_header := getattr(error, "auth_header", ""):
            headers["WWW-Authenticate"] = auth_header
        if wait := getattr(error, "wait", None):
            headers["Retry-After"] = f"{wait:.0f}"
    elif isinstance(error, Http404):
        status_code, code = 404, "not_found"
        detail = _("There is nothing here that you may see.")
    elif isinstance(error, PermissionDenied):
        status_code, code, detail = 403, "permission_denied", _("You may not do this.")
    else:
        logger.exception("unexpected error in %s", type(context.get("view")).__name__)
        status_code, code = 500, "internal"
        detail = _("Something went wrong on our side; it has been written to the log.")
    body = Problem(code, detail, status=status_code).as_dict()
    if errors:
        body["errors"] = errors
    return Response(
        body, status=status_code, headers=headers, content_type="application/problem+json"
    )


class SessionAuthentication(authentication.SessionAuthentication):
    """The browser's session, with CSRF; without one the answer is 401, not 403."""

    def authenticate_header(self, request: Request) -> str:
        """Name the scheme that scripts use."""
        return "Bearer"


class BearerAuthentication(authentication.BaseAuthentication):
    """`Authorization: Bearer <token>` for scripts."""

    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        """Return the token's owner, None without a token, or refuse a bad one."""
        kind, _sep, secret = request.headers.get("Authorization", "").partition(" ")
        return self.admit(secret.strip()) if kind.lower() == "bearer" else None

    def admit(self, secret: str, username: str | None = None) -> tuple[User, ApiToken]:
        """Return the owner of a living token, who is the named user if one is named.

        Raises:
            AuthenticationFailed: There is no such token.
        """
        token = ApiToken.find(secret)
        if token is None or username not in (None, token.owner.get_username()):
            raise exceptions.AuthenticationFailed(
                _("This token is not valid, has expired or was revoked."), code="token_invalid"
            )
        now = timezone.now()
        if token.last_used_at is None or (now - token.last_used_at).total_seconds() > 60:
            ApiToken.objects.filter(pk=token.pk).update(last_used_at=now)
        return token.owner, token

    def authenticate_header(self, request: Request) -> str:
        """Name the scheme."""
        return "Bearer"


class TokenAsPasswordAuthentication(BearerAuthentication):
    """HTTP Basic with an API token as the password, for clients that know nothing else.

    The account's own password opens nothing here.
    """

    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        """Return the token's owner, None without HTTP Basic, or refuse a bad one."""
        kind, _sep, encoded = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "basic":
            return None
        try:
            pair = base64.b64decode(encoded.strip(), validate=True).decode()
        except ValueError:
            pair = ""
        username, _sep, secret = pair.partition(":")
        return self.admit(secret, username)


class StrictSerializer(serializers.Serializer):
    """A serializer that refuses fields it does not know, by name."""

    def to_internal_value(self, data: Any) -> Any:
        """Check for unknown fields before the known ones."""
        if isinstance(data, Mapping):
            writable = {name for name, field in self.fields.items() if not field.read_only}
            unknown = sorted(set(data) - writable)
            if unknown:
                message = _("This field is not known here.")
                raise serializers.ValidationError(
                    {name: [exceptions.ErrorDetail(message, "unknown_field")] for name in unknown}
                )
        return super().to_internal_value(data)


class KeyPagination(pagination.CursorPagination):
    """Pages by key, newest first; `limit` 50, at most 200."""

    page_size = 50
    max_page_size = 200
    page_size_query_param = "limit"
    ordering = ("-created_at", "-id")


def signed_in(request: HttpRequest | Request) -> User:
    """Return the user of a view that admits only who is signed in.

    Raises:
        NotAuthenticated: The view forgot to ask.
    """
    if not isinstance(request.user, User):
        raise exceptions.NotAuthenticated
    return request.user


def get_visible(
    rows: models.QuerySet[Row], user: User | AnonymousUser, pk: int | str | UUID
) -> Row:
    """Return one row this user may see, or raise 404 as for a row that does not exist."""
    try:
        return rows.visible_to(user).get(pk=pk)  # type: ignore[attr-defined]
    except (ObjectDoesNotExist, ValueError, OverflowError, TypeError) as error:
        raise Http404 from error


def whole_number(text: str) -> int | None:
    """Read a whole number that a client wrote: 1 to 18 plain digits, which a column holds.

    Other digits than ours, and more of them than Python converts, are None like any other text.
    """
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def wait_seconds(request: HttpRequest | Request) -> float:
    """Read `Prefer: wait=N` (RFC 7240), at most 60 seconds."""
    for part in request.headers.get("Prefer", "").split(","):
        name, _sep, value = part.strip().partition("=")
        if name == "wait" and (seconds := whole_number(value)) is not None:
            return min(float(seconds), 60.0)
    return 0.0


def wait_for(job: Any, seconds: float) -> Any:
    """Wait until a job is final or the time is over, then return it refreshed."""
    deadline = time.monotonic() + seconds
    while not job.is_final and time.monotonic() < deadline:
        time.sleep(0.1)
        job.refresh_from_db(fields=["status"])
    job.refresh_from_db()
    return job


def idempotent(view: Callable[..., Response]) -> Callable[..., Response]:
    """Give a repeated POST with the same `Idempotency-Key` the first one's answer again.

    Raises (as problems):
        idempotency_conflict: The key came before with another body, or is still being answered.
    """

    @functools.wraps(view)
    def wrapped(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = request.headers.get("Idempotency-Key", "")[:200]
        if not key:
            return view(self, request, *args, **kwargs)
        text = json.dumps([request.method, request.path, request.data], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        oldest = timezone.now() - settings.STUDIO_IDEMPOTENCY_AGE
        IdempotencyKey.objects.filter(owner=signed_in(request), created_at__lt=oldest).delete()
        try:
            with transaction.atomic():
                row = IdempotencyKey.objects.create(
                    owner=signed_in(request), key=key, digest=digest
                )
        except IntegrityError:
            return _answer_again(
                IdempotencyKey.objects.get(owner=signed_in(request), key=key), digest
            )
        try:
            response = view(self, request, *args, **kwargs)
        except BaseException:
            row.delete()
            raise
        row.status = response.status_code
        row.body = json.loads(json.dumps(response.data, default=str))
        row.save(update_fields=("status", "body"))
        return response

    return wrapped


def _answer_again(row: IdempotencyKey, digest: str) -> Response:
    if row.digest != digest:
        raise Problem(
            "idempotency_conflict",
            _("This Idempotency-Key was used with another request; choose a new one."),
            status=status.HTTP_409_CONFLICT,
        )
    if not row.status:
        raise Problem(
            "idempotency_conflict",
            _("The first request with this Idempotency-Key is still being answered."),
            status=status.HTTP_409_CONFLICT,
            headers={"Retry-After": "1"},
        )
    url = row.body.get("url") if row.status in (201, 202) else None
    return Response(row.body, status=row.status, headers={"Location": url} if url else None)
