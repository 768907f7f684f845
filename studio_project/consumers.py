"""The one websocket: events to a page or a script, nothing the other way.

Who may connect is checked at the handshake and again every few seconds, so that a socket ends with
the session, the token or the account it came with.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.models import Session
from django.core import signing
from django.db import DatabaseError
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from studio_project import daphne_corrections, events
from studio_project.models import ApiToken, User

CLOSE_UNAUTHENTICATED = 4401
CLOSE_ORIGIN = 4403
CHECK_SECONDS = 15.0
MAX_WAITING_EVENTS = 200
TICKET_SALT = "studio.ws-ticket"

logger = logging.getLogger(__name__)


class Proof(Protocol):
    """What a socket was opened with, which must hold as long as it is open."""

    def user(self) -> User | None:
        """The user it stands for now; ``None`` when it has ended. Asks the database."""


class TokenProof:
    """An API token of the ``Authorization`` header."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def user(self) -> User | None:
        """See ``Proof``."""
        token = ApiToken.find(self._secret)
        return token.owner if token else None


class TicketProof:
    """A ticket of the query string: fresh at the handshake, then as good as its user's epoch."""

    def __init__(self, ticket: str) -> None:
        try:
            age = settings.STUDIO_TICKET_SECONDS
            user_id, epoch = signing.loads(ticket, salt=TICKET_SALT, max_age=age)
        except (signing.BadSignature, ValueError, TypeError):
            user_id, epoch = None, None
        self._user_id, self._epoch = user_id, epoch

    def user(self) -> User | None:
        """See ``Proof``."""
        if self._user_id is None:
            return None
        rows = User.objects.filter(pk=self._user_id, is_active=True, session_epoch=self._epoch)
        return rows.first()


class SessionProof:
    """The browser's session."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def user(self) -> User | None:
        """See ``Proof``."""
        key = getattr(self._session, "session_key", None)
        alive = Session.objects.filter(session_key=key, expire_date__gt=timezone.now()).first()
        data = alive.get_decoded() if alive else {}
        if SESSION_KEY not in data or data.get(BACKEND_SESSION_KEY) not in (
            settings.AUTHENTICATION_BACKENDS
        ):
            return None
        user = User.objects.filter(pk=data[SESSION_KEY], is_active=True).first()
        if user is None or not constant_time_compare(
            data.get(HASH_SESSION_KEY, ""), user.get_session_auth_hash()
        ):
            return None
        return user


class EventsConsumer(AsyncWebsocketConsumer):
    """``/ws/events/``: opens for a session (with our origin), a token or a ticket."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serves the socket; its tasks end with it, also when the server goes down."""
        self.tasks: list[asyncio.Task[None]] = []
        try:
            await super().__call__(scope, receive, send)
        finally:
            for task in self.tasks:
                task.cancel()

    async def connect(self) -> None:
        """Checks who asks, joins the groups, and says which protocol is spoken."""
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in self.scope["headers"]
        }
        self.joined: list[str] = []
        self.proof, needs_origin = self._proof(headers)
        if needs_origin and not _our_origin(headers.get("origin", "")):
            await self._refuse(CLOSE_ORIGIN)
            return
        user = await database_sync_to_async(self.proof.user)()
        if user is None:
            await self._refuse(CLOSE_UNAUTHENTICATED)
            return
        self.user_id = user.pk
        self.waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_WAITING_EVENTS)
        for group in (events.user_group(user.pk), events.SHARED_GROUP):
            await self.channel_layer.group_add(group, self.channel_name)
            self.joined.append(group)
        await self.accept()
        ready = {"type": "connection.ready", "protocol": events.PROTOCOL}
        await self.send(text_data=json.dumps(ready))
        self.tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._write())]

    def _proof(self, headers: dict[str, str]) -> tuple[Proof, bool]:
        """What the handshake brings, and whether a browser sent it by itself."""
        kind, _separator, secret = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return TokenProof(secret.strip()), False
        ticket = parse_qs(self.scope.get("query_string", b"").decode("latin-1")).get("ticket")
        if ticket:
            return TicketProof(ticket[0]), False
        return SessionProof(self.scope.get("session")), True

    async def _refuse(self, code: int) -> None:
        """Closes with a code; a browser only sees it on a socket that was open."""
        await self.accept()
        await self.close(code=code)

    async def disconnect(self, code: int) -> None:
        """Leaves the groups."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for group in self.joined:
            await self.channel_layer.group_discard(group, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Takes no commands: whatever a client sends is ignored."""

    # --- from the groups ---------------------------------------------------------------------
    async def event_message(self, message: dict[str, Any]) -> None:
        """Puts an event in line. A socket that reads too slowly is closed: it fetches anew then."""
        if self.waiting.full():
            await self.close(code=daphne_corrections.TRY_AGAIN_LATER)
            return
        self.waiting.put_nowait(message["event"])

    async def session_ended(self, message: dict[str, Any]) -> None:
        """Looks at once whether the session, the token and the account still hold."""
        await self._check()

    # --- tasks -------------------------------------------------------------------------------
    async def _write(self) -> None:
        while True:
            event = await self.waiting.get()
            await self.send(text_data=json.dumps(event, allow_nan=False))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._check()
            except DatabaseError as error:
                logger.warning("a socket was not checked: %s", error)

    async def _check(self) -> None:
        if await database_sync_to_async(self.proof.user)() is None:
            await self.close(code=CLOSE_UNAUTHENTICATED)


def _our_origin(origin: str) -> bool:
    """Whether a page of this site opened the socket."""
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    # On loopback the site answers to each of its names, at the one port.
    base = urlsplit(settings.STUDIO_BASE_URL)
    port = f":{base.port}" if base.port else ""
    ours = {f"{base.scheme}://{host}{port}" for host in settings.ALLOWED_HOSTS}
    return settings.IS_LOOPBACK and origin in ours
