"""Measurements: each runs ours and a peer side by side and prints ratios. None is a test."""

from __future__ import annotations

from typing import Any


class Silent:
    """A line to a worker that nobody reads and nobody stops."""

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Drop it."""

    def stop_requested(self) -> None:
        """Nobody stops a measurement."""

    def aside_wanted(self) -> bool:
        """Nobody else uses its device."""
        return False

    def wait_aside(self) -> None:
        """Nobody asks for it."""
