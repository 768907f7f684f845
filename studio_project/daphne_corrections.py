"""What daphne is taught when it serves the site: request bodies, and how websockets end.

Three corrections, applied only in a process that daphne runs.

Bodies: its library Twisted parses every form in memory, fourteen times its size, though Django
parses it again; and a body of any size is stored before the site is asked. Here no body is parsed,
and what exceeds the site's limit is not kept: the site then refuses it by its length. Where the
disk has no room for a body the sender is told so; daphne would break off without a word.

Ends: its library Autobahn closes with 1000 and 3000 to 4999 only, though the registry of close
codes has 1012 (the server restarts) and 1013 (try again later), which clients know. And daphne 4.2
stumbles over upgraded connections when it ends: it logs a traceback, and sockets break off without
a word.
"""

from __future__ import annotations

import asyncio
import sys
from io import BytesIO
from typing import Any

from django.conf import settings

from studio_project.api import is_disk_full
from studio_project.full_disk import no_room

RESTART = 1012
TRY_AGAIN_LATER = 1013
# Twisted closes connections right after the shutdown's first phase; the last frames go out before.
FLUSH_SECONDS = 0.2


def correct_daphne() -> None:
    """Applies the corrections, if daphne is what runs this process."""
    if "daphne.server" not in sys.modules:
        return
    from daphne import http_protocol
    from daphne.server import Server
    from daphne.ws_protocol import WebSocketFactory

    http_protocol.WebRequest = bounded_requests(http_protocol.WebRequest)
    WebSocketFactory.protocol = standard_codes(WebSocketFactory.protocol)
    Server.kill_all_applications = _kill_all_applications


def bounded_requests(web_request: type[Any]) -> type[Any]:
    """Makes daphne's class of requests one that keeps no more of a body than the site takes."""

    class BoundedRequest(web_request):
        """A request whose body is not parsed here, and dropped where it grows too large."""

        received_bytes = 0
        has_room = True

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs, parsePOSTFormSubmission=False)

        def handleContentChunk(self, data: bytes) -> None:  # noqa: N802  (Twisted's name)
            self.received_bytes += len(data)
            if self.received_bytes > settings.STUDIO_MAX_REQUEST_BYTES or not self.has_room:
                return
            try:
                super().handleContentChunk(data)
            except OSError as error:
                if not is_disk_full(error):
                    raise
                self.has_room = False
                self.content = BytesIO()

        def process(self) -> Any:
            if not self.has_room:
                for message in no_room(
                    (name, value)
                    for name, values in self.requestHeaders.getAllRawHeaders()
                    for value in values
                ):
                    self.handle_reply(message)
                return None
            if self.requestHeaders.hasHeader(b"Transfer-Encoding"):
                # It came in chunks without a length; it is whole now, and Django wants to know.
                self.requestHeaders.removeHeader(b"Transfer-Encoding")
                length = b"%d" % self.received_bytes
                self.requestHeaders.setRawHeaders(b"Content-Length", [length])
            return super().process()

    return BoundedRequest


def standard_codes(protocol: type[Any]) -> type[Any]:
    """Makes daphne's class of websockets one that may also close with 1012 and 1013."""

    class StandardCodes(protocol):
        """A websocket that knows the registry's codes."""

        def serverClose(self, code: int | None = None) -> None:  # noqa: N802  (daphne's name)
            if code in (RESTART, TRY_AGAIN_LATER):
                self.sendCloseFrame(code=code)
            else:
                super().serverClose(code)

    return StandardCodes


def _kill_all_applications(server: Any) -> Any:
    """Ends everything before the server stops; Twisted waits for what is returned."""
    from twisted.internet import defer

    return defer.Deferred.fromFuture(asyncio.ensure_future(_end(dict(server.connections))))


async def _end(connections: dict[Any, dict[str, Any]]) -> None:
    from daphne.ws_protocol import WebSocketProtocol

    for protocol in connections:
        if isinstance(protocol, WebSocketProtocol) and protocol.state == protocol.STATE_OPEN:
            protocol.serverClose(RESTART)
    if connections:
        await asyncio.sleep(FLUSH_SECONDS)
    instances = [details.get("application_instance") for details in connections.values()]
    waiting = [instance for instance in instances if instance and not instance.done()]
    for instance in waiting:
        instance.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
