"""The routes that belong to the site as a whole: tokens, tickets, options and the queue."""

from __future__ import annotations

import dataclasses
from typing import Any

from allauth.mfa.utils import is_mfa_enabled
from django.conf import settings
from django.core import signing
from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.utils import OpenApiTypes, extend_schema
from rest_framework import generics, serializers
from rest_framework.authentication import BasicAuthentication
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import ScopedRateThrottle, SimpleRateThrottle
from rest_framework.views import APIView

from datasets_app.captions import MAX_CAPTION
from generation_app.engine.request import MODES, SCHEDULERS, Limits
from studio_project import __version__
from studio_project.api import (
    BearerAuthentication,
    Problem,
    SessionAuthentication,
    StrictSerializer,
    signed_in,
)
from studio_project.consumers import TICKET_SALT
from studio_project.event_schemas import EVENT_SCHEMAS
from studio_project.models import ApiToken, AuditEntry
from studio_project.queue import queue_overview
from training_app.trainer.config import TrainingConfig


class TokenSerializer(StrictSerializer):
    """A token as lists show it: never with its secret."""

    id = serializers.IntegerField(read_only=True)
    name = serializers.CharField(max_length=100)
    created_at = serializers.DateTimeField(read_only=True)
    expires_at = serializers.DateTimeField(read_only=True)
    last_used_at = serializers.DateTimeField(read_only=True, allow_null=True)


class IssuedTokenSerializer(TokenSerializer):
    """A token as its maker sees it once."""

    token = serializers.CharField(read_only=True)


class TokenThrottle(SimpleRateThrottle):
    """Limits tries by address, so that wrong passwords count too."""

    scope = "tokens"

    def get_cache_key(self, request: Request, view: APIView) -> str:
        """Count by address; asking who it is would already try the password."""
        ident = self.get_ident(request)
        return self.cache_format % {"scope": self.scope, "ident": ident}


class TokenList(generics.ListAPIView):
    """My living tokens; POST makes one, with HTTP Basic from a script or from the account page."""

    authentication_classes = (BearerAuthentication, BasicAuthentication, SessionAuthentication)
    serializer_class = TokenSerializer
    throttle_classes = ()
    filter_backends = ()

    def perform_authentication(self, request: Request) -> None:
        """Count a try before its password is looked at; listing is not limited."""
        throttle = TokenThrottle()
        if request.method == "POST" and not throttle.allow_request(request, self):
            self.throttled(request, throttle.wait() or 60.0)
        super().perform_authentication(request)

    def get_queryset(self) -> Any:
        """My tokens that still open something."""
        if getattr(self, "swagger_fake_view", False):
            return ApiToken.objects.none()
        return ApiToken.objects.filter(
            owner=signed_in(self.request), revoked_at=None, expires_at__gt=timezone.now()
        )

    @extend_schema(request=TokenSerializer, responses={201: IssuedTokenSerializer})
    def post(self, request: Request) -> Response:
        """Make a token; the secret is in this answer and never again."""
        basic = isinstance(request.successful_authenticator, BasicAuthentication)
        if basic and is_mfa_enabled(signed_in(request)):
            raise Problem(
                "two_factor_required",
                _("This account uses a second factor, which a password alone cannot replace."),
                status=403,
                hint=_("Make the token on your account page."),
            )
        given = TokenSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        row, secret = ApiToken.issue(signed_in(request), given.validated_data["name"])
        AuditEntry.write(signed_in(request), "token.created", row.name)
        row.token = secret  # type: ignore[attr-defined]
        return Response(IssuedTokenSerializer(row).data, status=201)


class TokenDetail(generics.DestroyAPIView):
    """Revoke one of my tokens; its scripts and sockets end."""

    serializer_class = TokenSerializer
    queryset = ApiToken.objects.none()

    def get_queryset(self) -> Any:
        """My tokens only."""
        return ApiToken.objects.filter(owner=signed_in(self.request), revoked_at=None)

    def perform_destroy(self, instance: ApiToken) -> None:
        """Keep the row for the audit, without its power."""
        ApiToken.objects.filter(pk=instance.pk).update(revoked_at=timezone.now())
        AuditEntry.write(signed_in(self.request), "token.revoked", instance.name)


class TicketSerializer(serializers.Serializer):
    """A short pass for one websocket handshake."""

    ticket = serializers.CharField()
    expires_in_seconds = serializers.IntegerField()


class Ticket(APIView):
    """A short-lived ticket for clients that cannot send headers in a websocket handshake."""

    throttle_classes = (ScopedRateThrottle,)
    throttle_scope = "ws-ticket"

    @extend_schema(request=None, responses={201: TicketSerializer})
    def post(self, request: Request) -> Response:
        """Make a ticket for `/ws/events/?ticket=…`."""
        proof = [signed_in(request).pk, signed_in(request).session_epoch]
        ticket = signing.dumps(proof, salt=TICKET_SALT)
        body = {"ticket": ticket, "expires_in_seconds": settings.STUDIO_TICKET_SECONDS}
        return Response(body, status=201)


class Options(APIView):
    """What this site offers and where its limits are."""

    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """Return version, limits, schedulers and the training fields with their bounds."""
        return Response(
            {
                "version": __version__,
                "languages": [code for code, _name in settings.LANGUAGES],
                "limits": {
                    "request_bytes": settings.STUDIO_MAX_REQUEST_BYTES,
                    "request_files": settings.STUDIO_MAX_REQUEST_FILES,
                    "pixels": settings.STUDIO_MAX_PIXELS,
                    "caption_length": MAX_CAPTION,
                    "active_jobs": signed_in(request).max_active_jobs,
                    "images_per_request": signed_in(request).max_images_per_request,
                    "stored_bytes": signed_in(request).max_stored_bytes,
                },
                "stored_bytes": signed_in(request).stored_bytes,
                "schedulers": list(SCHEDULERS),
                "generation": {
                    **dataclasses.asdict(Limits()),
                    "max_images": signed_in(request).max_images_per_request,
                },
                "modes": {
                    name: {
                        "architectures": mode.architectures,
                        "inputs": mode.inputs,
                        "takes_inpainting_models": mode.takes_inpainting_models,
                    }
                    for name, mode in MODES.items()
                },
                "training": {
                    field.name: dict(field.metadata) for field in dataclasses.fields(TrainingConfig)
                },
            }
        )


class EventSchemas(APIView):
    """The JSON schema of every event on `/ws/events/`, by its type."""

    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """Return the schemas."""
        return Response(EVENT_SCHEMAS)


class Queue(APIView):
    """My jobs in order; others' without contents; the workers."""

    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """Return what the queue page shows."""
        return Response(queue_overview(signed_in(request)))


class Unknown(APIView):
    """Whatever else is asked for below `/api/`."""

    schema = None

    permission_classes = ()

    def http_method_not_allowed(self, request: Any, *args: Any, **kwargs: Any) -> Response:
        """Say that there is no such route."""
        raise Problem("not_found", _("The API has no such route."), status=404)
