"""The one resident engine of this worker process: started when first needed, kept warm, let go.

It starts again after a crash, and drops what it holds when a training needs the device.
"""

from __future__ import annotations

import logging
import threading
import time

from studio_project.child_process import Child
from studio_project.device_share import DeviceShare

logger = logging.getLogger(__name__)

ENGINE = "generation_app.engine"
RELEASE_SECONDS = 10.0


class EngineHost:
    """Keeps the engine's process. Its device lets only one job at a time use it."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._lock = threading.Lock()

    def ready(self, share: DeviceShare) -> Child:
        """Return the running engine, starting it if need be."""
        with self._lock:
            if self._child is None or not self._child.alive:
                self.forget()
                self._child = Child(ENGINE, nice=share.nice)
                logger.info("the engine starts as process %s", self._child.pid)
            return self._child

    def release(self) -> None:
        """Have the engine give its memory back; one that does not answer is ended."""
        with self._lock:
            child = self._child
            if child is None or not child.alive or not child.send({"cmd": "release"}):
                return
            deadline = time.monotonic() + RELEASE_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                message = child.messages.get(left)
                if message is not None and message["type"] == "warm" and not message["models"]:
                    return
            logger.warning("the engine did not release the device and is ended")
            self.forget()

    def stop(self) -> None:
        """End the engine."""
        with self._lock:
            self.forget()

    def forget(self) -> None:
        """End the process, if there is one; the caller holds the lock."""
        if self._child is not None:
            self._child.kill()
            self._child = None
