"""The ASGI door: pages and API over HTTP, events over one websocket."""

from __future__ import annotations

import os

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.sessions import SessionMiddlewareStack
from django.core.asgi import get_asgi_application
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "studio_project.settings")
http_application = get_asgi_application()

from studio_project.consumers import EventsConsumer  # noqa: E402  (needs the apps to be ready)
from studio_project.daphne_corrections import correct_daphne  # noqa: E402
from studio_project.full_disk import RoomForBodies  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": RoomForBodies(http_application),
        "websocket": SessionMiddlewareStack(
            URLRouter([re_path(r"^ws/events/?$", EventsConsumer.as_asgi())])
        ),
    }
)
correct_daphne()
