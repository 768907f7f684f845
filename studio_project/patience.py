"""Doing something with the database although it is away for a while."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from django.db import InterfaceError, OperationalError, connection

logger = logging.getLogger(__name__)


def with_database(action: Callable[[], None], *, label: str, deadline: float) -> bool:
    """Does something with the database, again and again while the database is away.

    Args:
        action: What to do; it may be done twice.
        label: What the log calls it.
        deadline: Until when it is worth it, by the monotonic clock.

    Returns:
        Whether it was done.

    Raises:
        OperationalError: Inside a transaction, which cannot be taken up again.
        InterfaceError: Likewise.
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
            time.sleep(random.uniform(0.5, 1.5))  # noqa: S311  # nosec B311
