"""Settings of the test run: its own data directory, no broker, no network."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("STUDIO_DATA_DIR", tempfile.mkdtemp(prefix="studio-tests-"))
os.environ.setdefault("STUDIO_MIN_FREE_BYTES", "1000000")
os.environ.setdefault("STUDIO_LOG_LEVEL", "WARNING")

from studio_project.settings import *  # noqa: F403
from studio_project.settings import DATA_DIR, DATABASES, DRAMATIQ_BROKER, IS_EMBEDDED

if IS_EMBEDDED:
    # A file, not memory: threads of one test must see one database, as processes do in life.
    DATABASES["default"]["TEST"] = {"NAME": DATA_DIR / "test.sqlite3"}
DRAMATIQ_BROKER["BROKER"] = "dramatiq.brokers.stub.StubBroker"
DRAMATIQ_BROKER["OPTIONS"] = {}
# Playwright runs an event loop in the main thread, where the tests use the ORM all the same.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
WHITENOISE_AUTOREFRESH = True
