"""Whether this process answers, and whether the site can work. Details go to the log only."""

from __future__ import annotations

import logging
from collections.abc import Callable

import redis
from django.conf import settings
from django.core.files.storage import default_storage
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

logger = logging.getLogger(__name__)

REDIS_SECONDS = 2.0


def database_answers() -> bool:
    """Whether the database answers a query."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone() == (1,)


def redis_answers() -> bool:
    """Whether Redis answers; without it jobs and pages go on, only slower."""
    if not str(settings.DRAMATIQ_BROKER["BROKER"]).endswith("RedisBroker"):
        return True
    client = redis.Redis.from_url(
        settings.STUDIO_REDIS_URL,
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
    )
    try:
        return bool(client.ping())
    finally:
        client.close()


def storage_answers() -> bool:
    """Whether the file storage can be asked; the file it is asked for need not exist."""
    default_storage.exists("ready")
    return True


def migrations_done() -> bool:
    """Whether the database has the tables of this version."""
    executor = MigrationExecutor(connection)
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())


CHECKS: dict[str, Callable[[], bool]] = {
    "database": database_answers,
    "redis": redis_answers,
    "storage": storage_answers,
    "migrations": migrations_done,
}


def check(name: str) -> bool:
    """Does one of ``CHECKS``; a failure is logged with its reason and is ``False``."""
    try:
        return CHECKS[name]()
    except Exception as error:
        logger.warning("the check of %s failed: %r", name, error)
        return False


@never_cache
@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """This process answers."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """Database, Redis, storage and migrations; 503 if one is not ready. Says which, not why."""
    results = {name: check(name) for name in CHECKS}
    ready = all(results.values())
    body = {
        "status": "ready" if ready else "not ready",
        "checks": {name: "ok" if passed else "failed" for name, passed in results.items()},
    }
    return JsonResponse(body, status=200 if ready else 503)
