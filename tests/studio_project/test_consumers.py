"""The websocket: who may open it, what comes through, and when it ends."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import jsonschema
import pytest
from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from channels.sessions import SessionMiddlewareStack
from channels.testing import WebsocketCommunicator
from django.conf import settings as site
from django.core import signing
from django.test import Client
from django.utils import timezone

from studio_project import accounts, consumers, events
from studio_project.consumers import TICKET_SALT, EventsConsumer
from studio_project.event_schemas import EVENT_SCHEMAS
from studio_project.models import ApiToken, User

pytestmark = pytest.mark.django_db(transaction=True)

APPLICATION = SessionMiddlewareStack(EventsConsumer.as_asgi())
EVENT = {"type": "dataset.changed", "id": 7, "version": 3, "ts": "2026-11-23T06:00:00+00:00"}
ORIGIN = (b"origin", site.STUDIO_BASE_URL.encode())
Socket = WebsocketCommunicator


def socket(*headers: tuple[bytes, bytes], query: str = "") -> Socket:
    return Socket(APPLICATION, f"/ws/events/{query}", headers=list(headers))


def bearer(secret: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {secret}".encode())


def cookie(user: User) -> tuple[bytes, bytes]:
    client = Client()
    client.force_login(user)
    return (b"cookie", f"sessionid={client.cookies['sessionid'].value}".encode())


def in_loop(scenario: Callable[[], Awaitable[None]]) -> None:
    async_to_sync(scenario)()


async def open_socket(communicator: Socket) -> None:
    connected, _protocol = await communicator.connect()
    assert connected
    ready = await communicator.receive_json_from(5)
    assert ready == {"type": "connection.ready", "protocol": 1}
    jsonschema.validate(ready, EVENT_SCHEMAS["connection.ready"])


async def refused_with(communicator: Socket) -> int:
    connected, _protocol = await communicator.connect()
    assert connected
    return await closed_with(communicator)


async def closed_with(communicator: Socket) -> int:
    message = await communicator.receive_output(5)
    assert message["type"] == "websocket.close"
    await communicator.disconnect()
    code: int = message["code"]
    return code


async def tell(group: str, event: dict[str, Any]) -> None:
    await get_channel_layer().group_send(group, {"type": "event.message", "event": event})


def test_a_page_hears_its_users_events_and_the_shared_ones(alice: User, bob: User) -> None:
    mine, yours = cookie(alice), cookie(bob)

    async def scenario() -> None:
        page, stranger = socket(mine, ORIGIN), socket(yours, ORIGIN)
        await open_socket(page)
        await open_socket(stranger)
        await tell(events.user_group(alice.pk), EVENT)
        assert await page.receive_json_from(5) == EVENT
        assert await stranger.receive_nothing(0.1)
        await tell(events.SHARED_GROUP, EVENT)
        assert await page.receive_json_from(5) == EVENT
        assert await stranger.receive_json_from(5) == EVENT
        await page.disconnect()
        await stranger.disconnect()

    in_loop(scenario)


def test_it_takes_no_commands(alice: User) -> None:
    header = cookie(alice)

    async def scenario() -> None:
        page = socket(header, ORIGIN)
        await open_socket(page)
        await page.send_to(text_data=json.dumps({"type": "subscribe", "group": "user.1"}))
        await page.send_to(text_data="not json at all")
        await page.send_to(bytes_data=b"\x00\xff")
        assert await page.receive_nothing(0.1)
        await tell(events.SHARED_GROUP, EVENT)
        assert await page.receive_json_from(5) == EVENT
        await page.disconnect()

    in_loop(scenario)


@pytest.mark.parametrize("origin", [None, b"https://evil.example", b"null", b"http://[bad"])
def test_a_session_from_another_origin_is_refused(origin: bytes | None, alice: User) -> None:
    headers = [cookie(alice)]
    if origin is not None:
        headers.append((b"origin", origin))

    async def scenario() -> None:
        assert await refused_with(socket(*headers)) == 4403

    in_loop(scenario)


def test_a_script_comes_with_a_token_and_no_origin(alice: User) -> None:
    _row, secret = ApiToken.issue(alice, "script")

    async def scenario() -> None:
        script = socket(bearer(secret))
        await open_socket(script)
        await script.disconnect()

    in_loop(scenario)


def test_nobody_comes_without_proof(alice: User) -> None:
    row, secret = ApiToken.issue(alice, "old")
    ApiToken.objects.filter(pk=row.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    stale = signing.dumps([alice.pk, alice.session_epoch + 1], salt=TICKET_SALT)
    foreign = signing.dumps([alice.pk, alice.session_epoch], salt="something else")

    async def scenario() -> None:
        assert await refused_with(socket(ORIGIN)) == 4401
        assert await refused_with(socket(bearer("studio_wrong"))) == 4401
        assert await refused_with(socket(bearer(secret))) == 4401
        for ticket in ("", "rubbish", stale, foreign):
            query = f"?ticket={ticket}"
            assert await refused_with(socket(ORIGIN, query=query)) == 4401

    in_loop(scenario)


def test_a_ticket_opens_one_minute_long(alice: User, settings: Any) -> None:
    ticket = signing.dumps([alice.pk, alice.session_epoch], salt=TICKET_SALT)

    async def opens() -> None:
        script = socket(query=f"?ticket={ticket}")
        await open_socket(script)
        await script.disconnect()

    async def is_refused() -> None:
        assert await refused_with(socket(query=f"?ticket={ticket}")) == 4401

    in_loop(opens)
    settings.STUDIO_TICKET_SECONDS = -1
    in_loop(is_refused)


@pytest.mark.parametrize("end", ["logout", "password", "deactivate", "epoch", "token"])
def test_the_socket_ends_with_what_it_was_opened_with(
    end: str, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(events, "deliver", lambda groups, message: None)
    client = Client()
    client.force_login(alice)
    header = (b"cookie", f"sessionid={client.cookies['sessionid'].value}".encode())
    row, secret = ApiToken.issue(alice, "script")

    def end_it() -> None:
        if end == "logout":
            client.logout()
        elif end == "password":
            alice.set_password("something else 9")
            alice.save()
        elif end == "deactivate":
            accounts.deactivate(alice)
        elif end == "epoch":
            User.objects.filter(pk=alice.pk).update(session_epoch=5)
        else:
            ApiToken.objects.filter(pk=row.pk).update(revoked_at=timezone.now())

    async def scenario() -> None:
        page = socket(bearer(secret)) if end == "token" else socket(header, ORIGIN)
        await open_socket(page)
        assert await page.receive_nothing(0.2)
        await database_sync_to_async(end_it)()
        assert await closed_with(page) == 4401

    in_loop(scenario)


def test_a_deactivated_users_sockets_end_at_once_when_told(alice: User) -> None:
    header = cookie(alice)
    deactivate = database_sync_to_async(User.objects.filter(pk=alice.pk).update)

    async def scenario() -> None:
        page = socket(header, ORIGIN)
        await open_socket(page)
        await get_channel_layer().group_send(f"user.{alice.pk}", {"type": "session.ended"})
        assert await page.receive_nothing(0.2)  # nothing had ended
        await deactivate(is_active=False)
        await get_channel_layer().group_send(f"user.{alice.pk}", {"type": "session.ended"})
        assert await closed_with(page) == 4401

    in_loop(scenario)


def test_a_socket_that_does_not_read_is_closed_and_not_remembered(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "MAX_WAITING_EVENTS", 2)

    async def never(self: EventsConsumer) -> None:
        """Be a socket whose other end takes nothing."""

    monkeypatch.setattr(EventsConsumer, "_write", never)
    header = cookie(alice)

    async def scenario() -> None:
        page = socket(header, ORIGIN)
        await open_socket(page)
        for _ in range(3):
            await tell(events.SHARED_GROUP, EVENT)
        assert await closed_with(page) == 1013

    in_loop(scenario)
