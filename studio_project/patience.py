"""Doing something although the database or the storage is away for a while."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from django.db import InterfaceError, OperationalError, connection

from studio_project import storage

logger = logging.getLogger(__name__)


def patiently(action: Callable[[], None], *, label: str, deadline: float) -> bool:
    """Does something, again and again while the database or the storage is away.

    Args:
        action: What to do; it may be done several times.
        label: What the log calls it.
        deadline: Until when it is worth it, by the monotonic clock.

    Returns:
        Whether it was done; if not, the database is still away.

    Raises:
        OperationalError: Inside a transaction, which cannot be taken up again.
        InterfaceError: Likewise.
        Exception: The storage is still away; see ``storage.is_away``.
    """
    while True:
        try:
            action()
            return True
        except (OperationalError, InterfaceError) as error:
            if connection.in_atomic_block:
                raise
            connection.close()
            if time.monotonic() > deadline:
                return False
            logger.warning("%s: the database is away: %s", label, error)
        except Exception as error:
            if not storage.is_away(error) or time.monotonic() > deadline:
                raise
            logger.warning("%s: the storage is away: %s", label, error)
        time.sleep(random.uniform(0.5, 1.5))  # noqa: S311  # nosec B311
