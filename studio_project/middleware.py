"""What happens to every request before a view sees it."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import translation
from django.utils.translation import gettext as _


class RequestLimits:
    """Refuse an oversized request by its declared length, before its body is parsed."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer 413 that names the way out, or pass the request on."""
        try:
            length = int(request.META.get("CONTENT_LENGTH") or 0)
        except ValueError:
            length = 0
        if length > settings.STUDIO_MAX_REQUEST_BYTES:
            limit = settings.STUDIO_MAX_REQUEST_BYTES // 1024**2
            return JsonResponse(
                {
                    "type": "about:blank",
                    "title": _("Request too large"),
                    "status": 413,
                    "code": "request_too_large",
                    "detail": _("This request is larger than %(limit)d MB.") % {"limit": limit},
                    "hint": _("Send the files in several requests of at most 8 MB each."),
                },
                status=413,
                content_type="application/problem+json",
            )
        return self.get_response(request)


class UserLanguage:
    """Speak the language a signed-in user chose, over the browser's."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Activate the user's language for this request."""
        user = request.user
        if user.is_authenticated and user.language:
            translation.activate(user.language)
            request.LANGUAGE_CODE = user.language
        return self.get_response(request)
