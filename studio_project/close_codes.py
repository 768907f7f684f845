"""Lets daphne close a websocket with the codes of the standard that its library refuses.

Autobahn sends 1000 and 3000 to 4999 only. Clients know 1012 (the server restarts) and 1013 (try
again later) from the registry of close codes, and other servers send them. Nothing else of daphne
is touched, and nothing at all under another server.
"""

from __future__ import annotations

import sys

RESTART = 1012
TRY_AGAIN_LATER = 1013


def allow_standard_codes() -> None:
    """Teaches daphne's websockets the two codes, if daphne is what runs this process."""
    if "daphne.server" not in sys.modules:
        return
    from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol

    class StandardCodes(WebSocketProtocol):
        """A websocket that may also close with 1012 and 1013."""

        def serverClose(self, code: int | None = None) -> None:  # noqa: N802  (daphne's name)
            if code in (RESTART, TRY_AGAIN_LATER):
                self.sendCloseFrame(code=code)
            else:
                super().serverClose(code)

    WebSocketFactory.protocol = StandardCodes
