"""The broker whose idle consumers wait for a bell instead of asking again and again.

Dramatiq's own consumer sleeps between two looks at its queue, so a bell is heard late and an idle
worker still asks Redis many times a second. Here an idle consumer blocks in Redis until there is
something in the queue.
"""

from __future__ import annotations

import redis
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.errors import ConnectionClosed

# Shorter than the client's socket timeout; also how long a consumer is deaf to being paused.
WAIT_SECONDS = 0.5


class BlockingConsumer(_RedisConsumer):
    """Waits until its queue holds something, then fetches as ever.

    Fetching is also what tells Redis that this worker lives, so it goes on while nothing comes.
    """

    def __next__(self) -> MessageProxy | None:
        """Return the next message, or None after a while without one."""
        if not self.message_cache and self.outstanding_message_count < self.prefetch:
            self._wait()
            self.misses = 0
        return super().__next__()

    def _wait(self) -> None:
        """Block until the queue holds something: its first message is moved onto itself."""
        key = f"{self.broker.namespace}:{self.queue_name}"
        try:
            self.broker.client.blmove(key, key, WAIT_SECONDS, "LEFT", "LEFT")
        except redis.ConnectionError as error:
            raise ConnectionClosed(error) from None


class BlockingRedisBroker(RedisBroker):
    """Dramatiq's Redis broker with consumers that block."""

    @property
    def consumer_class(self) -> type[BlockingConsumer]:
        """What `consume` makes."""
        return BlockingConsumer
