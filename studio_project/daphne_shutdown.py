"""How daphne ends its websockets when the server goes down or a client is too slow.

Two corrections, applied only in a process that daphne runs. Its library Autobahn closes with 1000
and 3000 to 4999 only, though the registry of close codes has 1012 (the server restarts) and 1013
(try again later), which clients know. And daphne 4.2 stumbles over upgraded connections when it
ends: it logs a traceback, and sockets break off without a word.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

RESTART = 1012
TRY_AGAIN_LATER = 1013
# Twisted closes connections right after the shutdown's first phase; the last frames go out before.
FLUSH_SECONDS = 0.2


def correct_daphne() -> None:
    """Applies both corrections, if daphne is what runs this process."""
    if "daphne.server" not in sys.modules:
        return
    from daphne.server import Server
    from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
    from twisted.internet import defer

    class StandardCodes(WebSocketProtocol):
        """A websocket that may also close with 1012 and 1013."""

        def serverClose(self, code: int | None = None) -> None:  # noqa: N802  (daphne's name)
            if code in (RESTART, TRY_AGAIN_LATER):
                self.sendCloseFrame(code=code)
            else:
                super().serverClose(code)

    async def end(connections: dict[Any, dict[str, Any]]) -> None:
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

    def kill_all_applications(server: Server) -> defer.Deferred:
        return defer.Deferred.fromFuture(asyncio.ensure_future(end(dict(server.connections))))

    WebSocketFactory.protocol = StandardCodes
    Server.kill_all_applications = kill_all_applications
