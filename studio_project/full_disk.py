"""What a request is answered when there is no room even for its body, before Django reads it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from django.http import HttpRequest
from django.utils import translation

from studio_project.api import disk_full, is_disk_full

Message = MutableMapping[str, Any]


def no_room(headers: Iterable[tuple[bytes, bytes]]) -> list[Message]:
    """Return the ASGI messages of a 507, in the language that the headers ask for."""
    request = HttpRequest()
    for name, value in headers:
        if name.lower() == b"accept-language":
            request.META["HTTP_ACCEPT_LANGUAGE"] = value.decode("latin-1")
    with translation.override(translation.get_language_from_request(request)):
        problem = disk_full()
        body = json.dumps(problem.as_dict()).encode()
    kind = (b"Content-Type", b"application/problem+json")
    return [
        {"type": "http.response.start", "status": problem.status, "headers": [kind]},
        {"type": "http.response.body", "body": body},
    ]


class RoomForBodies:
    """Answers for an application that found no room to keep a request's body.

    Args:
        application: The ASGI application behind it.
    """

    def __init__(self, application: Callable[..., Awaitable[None]]) -> None:
        self.application = application

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Pass the request on; Django answers every error itself once it has the body."""
        try:
            await self.application(scope, receive, send)
        except OSError as error:
            if not is_disk_full(error):
                raise
            for message in no_room(scope["headers"]):
                await send(message)
